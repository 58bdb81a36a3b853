//! `save`.

use amphora_engine::Engine;
use amphora_spec::Platform;
use clap::Args;

use super::export::{Output, to_file};
use crate::errors::{Failure, Outcome};

// Arguments of `save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<std::path::PathBuf>,
    /// Save only the given platform of images that are for several
    #[arg(long)]
    platform: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

/// `save`.
pub(crate) fn save(engine: &Engine, args: &SaveArgs) -> Outcome {
    let platform = args
        .platform
        .as_deref()
        .map(str::parse::<Platform>)
        .transpose()
        .map_err(|e| Failure::Local(e.to_string()))?;
    let write = |out: Output<'_>| Ok(engine.save(&args.names, platform.as_ref(), out)?);
    to_file(args.output.as_deref(), "save image", write)
}
