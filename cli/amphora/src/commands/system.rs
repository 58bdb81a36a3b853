//! Commands about the engine itself, and `system …`.

use amphora_engine::Engine;
use clap::Subcommand;

use crate::errors::Outcome;

/// Commands about the engine that stand at the top level.
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show the amphora version information
    Version(super::info::FormatArgs),
    /// Display system-wide information
    Info(super::info::FormatArgs),
    /// Get real time events
    Events(super::events::EventsArgs),
    /// Manage amphora
    #[command(subcommand)]
    #[command(name = "system")]
    Group(Group),
}

/// `system …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Show disk usage
    Df(super::df::DfArgs),
    /// Get real time events
    Events(super::events::EventsArgs),
    /// Display system-wide information
    Info(super::info::FormatArgs),
    /// Remove unused data
    Prune(super::prune::SystemArgs),
}

/// Carries out a command about the engine.
pub(crate) fn system(engine: impl FnOnce() -> Outcome<Engine>, command: &System) -> Outcome {
    match command {
        System::Version(args) => super::info::version(args),
        System::Info(args) | System::Group(Group::Info(args)) => {
            super::info::info(&engine()?, args)
        }
        System::Events(args) | System::Group(Group::Events(args)) => {
            super::events::events(&engine()?, args)
        }
        System::Group(Group::Df(args)) => super::df::df(&engine()?, args),
        System::Group(Group::Prune(args)) => super::prune::system(&engine()?, args),
    }
}
