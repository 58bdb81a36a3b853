//! Commands about the engine itself, and `system …`.

use amphora_engine::Engine;
use clap::Subcommand;

use crate::errors::{Failure, Outcome};
use crate::ui;

/// Commands about the engine that stand at the top level.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
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
#[command(defer = true)]
pub(crate) enum Group {
    /// Show disk usage
    Df(super::df::DfArgs),
    /// Get real time events
    Events(super::events::EventsArgs),
    /// Display system-wide information
    Info(super::info::FormatArgs),
    /// Remove unused data
    Prune(super::prune::SystemArgs),
    /// Start the containers that a reboot ended, by their restart policies
    #[command(
        long_about = "Start the containers that a reboot or a power cut ended, by their restart policies: \
                      always, unless-stopped when they were not stopped by hand, on-failure when \
                      they failed or the machine went down under them. Containers whose namespaces \
                      others join are started before these. Prints the names of those it started."
    )]
    Start,
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
        System::Group(Group::Start) => start(&engine()?),
    }
}

/// `system start`. Goes on after a failure, and fails at the end.
fn start(engine: &Engine) -> Outcome {
    let booted = engine.boot()?;
    for name in &booted.started {
        ui::line(name);
    }
    for (name, error) in &booted.failed {
        ui::error(&format!(
            "failed to start container {name}: {}",
            amphora_spec::error::chain(error)
        ));
    }
    if booted.failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Code(1))
    }
}
