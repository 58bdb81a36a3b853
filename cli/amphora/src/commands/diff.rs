//! `diff`.

use amphora_engine::Engine;
use clap::Args;

use crate::errors::Outcome;
use crate::ui;

// Arguments of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Name or id
    container: String,
}

/// `diff`.
pub(crate) fn diff(engine: &Engine, args: &DiffArgs) -> Outcome {
    for change in engine.changes(&engine.find(&args.container)?)? {
        let path = String::from_utf8_lossy(&change.path);
        ui::line(&format!("{} {path}", change.kind.letter()));
    }
    Ok(())
}
