//! `version`.

use amphora_engine::Engine;
use clap::Subcommand;

use crate::errors::Outcome;
use crate::ui;

/// Commands about the engine itself.
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show the amphora version information
    Version,
}

/// Carries out a command about the engine.
pub(crate) fn system(_engine: impl FnOnce() -> Outcome<Engine>, command: &System) -> Outcome {
    match command {
        System::Version => {
            ui::line(&format!("amphora version {}", env!("CARGO_PKG_VERSION")));
            ui::line(&format!("OS/Arch: linux/{}", std::env::consts::ARCH));
            Ok(())
        }
    }
}
