//! `commit`.

use amphora_engine::{CommitOptions, Engine};
use clap::Args;

use crate::errors::Outcome;
use crate::ui;

// Arguments of `commit`.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(short, long)]
    author: Option<String>,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Commit message
    #[arg(short, long)]
    message: Option<String>,
    /// Pause container during commit (default true)
    #[arg(short, long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pause: bool,
    /// Name or id
    container: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// `commit`.
pub(crate) fn commit(engine: &Engine, args: &CommitArgs) -> Outcome {
    let reference = super::import::reference(args.reference.as_deref())?;
    let options = CommitOptions {
        author: args.author.clone().unwrap_or_default(),
        message: args.message.clone().unwrap_or_default(),
        changes: args.change.clone(),
        pause: args.pause,
    };
    let id = engine.find(&args.container)?;
    let image = engine.commit(&id, reference.as_ref(), &options)?;
    ui::line(&image.to_string());
    Ok(())
}
