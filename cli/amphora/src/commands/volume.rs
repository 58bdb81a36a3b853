//! Volume commands.

use amphora_engine::{Engine, EngineError, NewVolume};
use amphora_spec::{Classify, ErrorKind};
use clap::{Args, Subcommand};

use super::each;
use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// `volume …`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Volume {
    /// Create a volume with a copy of another's files
    Clone(CloneArgs),
    /// Create a volume
    Create(CreateArgs),
    /// Display detailed information on one or more volumes
    Inspect(super::inspect::OtherArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(super::volume_ls::LsArgs),
    /// Remove unused local volumes
    Prune(super::prune::AllArgs),
    /// Give a volume that no container uses another name
    Rename(RenameArgs),
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
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set driver specific options: type, device, o
    #[arg(short, long)]
    opt: Vec<String>,
    /// Name
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

// Arguments of `volume clone`.
#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// Set metadata for the new volume, over the source's
    #[arg(long)]
    label: Vec<String>,
    /// Volume to copy
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Name of the new one
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

// Arguments of `volume rename`.
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// Name it has
    #[arg(value_name = "VOLUME")]
    old: String,
    /// Name it gets
    #[arg(value_name = "NEW_NAME")]
    new: String,
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
            let driver = args.driver.as_str();
            if !matches!(driver, "" | "local") {
                let name = args.name.unwrap_or_default();
                return Err(Failure::Engine(EngineError::Invalid(format!(
                    "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
                ))));
            }
            let volume = engine.volume_create(NewVolume {
                name: args.name.filter(|name| !name.is_empty()),
                labels: parse::pairs(&args.label),
                options: parse::pairs(&args.opt),
            })?;
            ui::line(&volume.name);
            Ok(())
        }
        Volume::Clone(args) => {
            let (name, labels) = (args.name.as_deref(), parse::pairs(&args.label));
            let volume = engine.volume_clone(&args.source, name, labels)?;
            ui::line(&volume.name);
            Ok(())
        }
        Volume::Rename(args) => Ok(engine.volume_rename(&args.old, &args.new)?),
        Volume::Inspect(args) => {
            super::inspect::other(&engine, super::inspect::Kind::Volume, &args)
        }
        Volume::Ls(args) => super::volume_ls::ls(&engine, &args),
        Volume::Prune(args) => super::prune::volumes(&engine, &args),
        Volume::Rm(args) => each(&args.names, |name| {
            if !(args.force && is_missing(&engine, name)) {
                engine.volume_remove(name)?;
            }
            ui::line(name);
            Ok(())
        }),
    }
}

/// A record that cannot be read is no reason to be silent.
fn is_missing(engine: &Engine, name: &str) -> bool {
    matches!(engine.volume(name), Err(e) if e.kind() == ErrorKind::NotFound)
}
