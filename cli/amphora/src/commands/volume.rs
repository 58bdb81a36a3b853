//! Volume commands.

use amphora_engine::Engine;
use clap::{Args, Subcommand};

use super::each;
use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// `volume …`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Volume {
    /// Create a volume
    Create(CreateArgs),
    /// Display detailed information on one or more volumes
    Inspect(super::inspect::OtherArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(super::volume_ls::LsArgs),
    /// Remove unused local volumes
    Prune(super::prune::AllArgs),
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

// Arguments of `volume create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Set metadata for a volume
    #[arg(long)]
    label: Vec<String>,
    /// Specify volume driver name; only "local"
    #[arg(short, long, value_parser = ["local"], default_value = "local")]
    driver: String,
    /// Name
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

// Flags of `volume rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Ignore volumes that do not exist
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

/// Carries out `volume …`.
pub(crate) fn volume(engine: impl FnOnce() -> Outcome<Engine>, command: Volume) -> Outcome {
    let engine = engine()?;
    match command {
        Volume::Create(args) => {
            if let Some(name) = &args.name {
                amphora_spec::id::check_name(name).map_err(|_| {
                    Failure::Local(format!(
                        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
                    ))
                })?;
            }
            let volume = engine.volume_create(args.name.as_deref(), parse::pairs(&args.label))?;
            ui::line(&volume.name);
            Ok(())
        }
        Volume::Inspect(args) => {
            super::inspect::other(&engine, super::inspect::Kind::Volume, &args)
        }
        Volume::Ls(args) => super::volume_ls::ls(&engine, &args),
        Volume::Prune(args) => super::prune::volumes(&engine, &args),
        Volume::Rm(args) => each(&args.names, |name| {
            if args.force && engine.volume(name).is_err() {
                return Ok(());
            }
            engine.volume_remove(name)?;
            ui::line(name);
            Ok(())
        }),
    }
}
