//! `export`.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use amphora_engine::Engine;
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

/// `export`.
pub(crate) fn export(engine: &Engine, args: &ExportArgs) -> Outcome {
    let Some(path) = &args.output else {
        if ui::stdout_is_terminal() {
            return Err(Failure::Local(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect".to_owned(),
            ));
        }
        let id = engine.find(&args.container)?;
        return Ok(engine.export(&id, BufWriter::new(io::stdout().lock()))?);
    };
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    if !above.is_dir() {
        return Err(Failure::Local(format!(
            "failed to export container: invalid output path: directory \"{}\" does not exist",
            above.display()
        )));
    }
    let id = engine.find(&args.container)?;
    // Whole or not at all.
    let temp = above.join(format!(".amphora-export-{}", std::process::id()));
    let failed = |e: io::Error| {
        Failure::Local(format!(
            "failed to write {}: {}",
            path.display(),
            parse::os_text(&e)
        ))
    };
    let file = File::create_new(&temp).map_err(failed)?;
    let written = engine
        .export(&id, BufWriter::new(file))
        .map_err(Failure::from)
        .and_then(|()| fs::rename(&temp, path).map_err(failed));
    if written.is_err() {
        // The failure being reported is the one that counts.
        let _ = fs::remove_file(&temp);
    }
    written
}
