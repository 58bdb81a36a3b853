//! Commands that change a container, or take something out of it. Each has a file of its own.

use amphora_engine::Engine;
use clap::{Args, Subcommand};

use crate::errors::Outcome;

/// Container commands that stand at the top level too.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Change {
    /// Pause all processes within one or more containers
    Pause(Containers),
    /// Unpause all processes within one or more containers
    Unpause(Containers),
    /// Rename a container
    Rename(super::rename::RenameArgs),
    /// Copy files/folders between a container and the local filesystem
    Cp(super::cp::CpArgs),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(super::diff::DiffArgs),
    /// Export a container's filesystem as a tar archive
    Export(super::export::ExportArgs),
    /// Create a new image from a container's changes
    Commit(super::commit::CommitArgs),
    /// Update configuration of one or more containers
    Update(Box<super::update::UpdateArgs>),
}

// Names of containers.
#[derive(Debug, Args)]
pub(crate) struct Containers {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) names: Vec<String>,
}

/// Carries out a command that changes a container.
pub(crate) fn change(engine: impl FnOnce() -> Outcome<Engine>, command: Change) -> Outcome {
    let engine = engine()?;
    match command {
        Change::Pause(args) => super::pause::pause(&engine, &args),
        Change::Unpause(args) => super::pause::unpause(&engine, &args),
        Change::Rename(args) => super::rename::rename(&engine, &args),
        Change::Cp(args) => super::cp::cp(&engine, &args),
        Change::Diff(args) => super::diff::diff(&engine, &args),
        Change::Export(args) => super::export::export(&engine, &args),
        Change::Commit(args) => super::commit::commit(&engine, &args),
        Change::Update(args) => super::update::update(&engine, &args),
    }
}
