//! `export`.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use amphora_engine::Engine;
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

/// Links that are followed to a file, as the kernel does.
const MAX_LINKS: usize = 40;

/// Where an archive goes.
pub(crate) type Output<'a> = BufWriter<Box<dyn io::Write + 'a>>;

/// `export`.
pub(crate) fn export(engine: &Engine, args: &ExportArgs) -> Outcome {
    to_file(args.output.as_deref(), "export container", |out| {
        let id = engine.find(&args.container)?;
        Ok(engine.export(&id, out)?)
    })
}

/// Has an archive written to a file, whole or not at all, or to a standard output that is no
/// terminal. `what` is being done.
pub(crate) fn to_file(
    path: Option<&Path>,
    what: &str,
    write: impl FnOnce(Output<'_>) -> Outcome,
) -> Outcome {
    let Some(path) = path.filter(|path| !is_stdout(path)) else {
        if ui::stdout_is_terminal() {
            return Err(Failure::Local(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect".to_owned(),
            ));
        }
        return write(BufWriter::new(Box::new(io::stdout().lock())));
    };
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    if !above.is_dir() {
        return Err(Failure::Local(format!(
            "failed to {what}: invalid output path: directory \"{}\" does not exist",
            above.display()
        )));
    }
    check_target(path, what)?;
    let path = &behind_links(path, what)?;
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    let temp = above.join(format!(".amphora-export-{}", std::process::id()));
    let failed = |e: io::Error| {
        Failure::Local(format!(
            "failed to write {}: {}",
            path.display(),
            parse::os_text(&e)
        ))
    };
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&temp);
    let file = file.map_err(failed)?;
    let written = write(BufWriter::new(Box::new(file)))
        .and_then(|()| fs::rename(&temp, path).map_err(failed));
    if written.is_err() {
        // The failure being reported is the one that counts.
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Says whether a path, such as `/dev/stdout`, is what standard output is, and no terminal.
fn is_stdout(path: &Path) -> bool {
    let (Ok(named), Ok(own)) = (fs::metadata(path), rustix::fs::fstat(io::stdout())) else {
        return false;
    };
    (named.dev(), named.ino()) == (own.st_dev, own.st_ino) && !named.file_type().is_char_device()
}

/// Where links lead, the last part of the path: what they name is written, and they stay.
fn behind_links(path: &Path, what: &str) -> Outcome<PathBuf> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&at) {
            Ok(target) => at = at.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(at),
        }
    }
    Err(Failure::Local(format!(
        "failed to {what}: too many levels of symbolic links: \"{}\"",
        path.display()
    )))
}

/// Refuses what the archive would take the place of, and is no file.
fn check_target(path: &Path, what: &str) -> Outcome {
    let Ok(found) = fs::metadata(path) else {
        return Ok(());
    };
    let kind = found.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let why = if kind.is_dir() {
        "cannot write to a directory".to_owned()
    } else {
        let got = if kind.is_char_device() || kind.is_block_device() {
            "a device"
        } else {
            "an irregular file"
        };
        format!(
            "invalid output path: \"{}\" must be a directory or a regular file: got {got}",
            path.display()
        )
    };
    Err(Failure::Local(format!("failed to {what}: {why}")))
}
