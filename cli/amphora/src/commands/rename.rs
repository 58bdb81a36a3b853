//! `rename`.

use amphora_engine::Engine;
use clap::Args;

use crate::errors::{Failure, Outcome, daemon_text};
use crate::ui;

// Arguments of `rename`.
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

/// `rename`.
pub(crate) fn rename(engine: &Engine, args: &RenameArgs) -> Outcome {
    let (old, new) = (args.container.trim(), args.name.trim());
    if old.is_empty() || new.is_empty() {
        let text = "Error: Neither old nor new names may be empty";
        return Err(Failure::Local(text.to_owned()));
    }
    let renamed = engine.find(old).and_then(|id| engine.rename(&id, new));
    renamed.map_err(|error| {
        ui::error(&daemon_text(&error));
        Failure::Local(format!("Error: failed to rename container named {old}"))
    })
}
