//! Reading a container's log back.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use amphora_spec::ContainerId;
use serde::Deserialize;

use crate::{Engine, EngineError, Result, Status};

/// How often a follower looks whether the container still runs, when nothing is written.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// Options of `logs`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Put the time before each line.
    pub timestamps: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
}

impl Engine {
    /// Writes a container's log to `out` and `err`.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; a log that was not kept.
    pub fn logs(
        &self,
        id: &ContainerId,
        options: LogOptions,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<()> {
        let config = self.config(id)?;
        if config.host.log_none {
            return Err(EngineError::Unsupported(
                "configured logging driver does not support reading".to_owned(),
            ));
        }
        let files = log_files(&self.container_dir(id));
        let mut skip = match options.tail {
            Some(tail) => count_lines(&files)?.saturating_sub(tail),
            None => 0,
        };
        let mut last = None;
        for path in files {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let mut reader = BufReader::with_capacity(64 << 10, file);
            copy(&mut reader, &path, options, &mut skip, out, err)?;
            last = Some((reader, path));
        }
        let Some((mut reader, path)) = last else {
            return Ok(());
        };
        if !options.follow {
            return Ok(());
        }
        loop {
            let running = self.view(id).is_ok_and(|v| v.status == Status::Running);
            let got = copy(&mut reader, &path, options, &mut 0, out, err)?;
            if !running && got == 0 {
                return Ok(());
            }
            if got == 0 {
                std::thread::sleep(FOLLOW_POLL);
            }
        }
    }
}

/// Lists the files of a container's log, oldest first.
pub(crate) fn log_files(dir: &std::path::Path) -> Vec<PathBuf> {
    /// More rotated files than any configuration keeps.
    const MOST: u32 = 64;
    let logs = dir.join("logs");
    let mut files: Vec<PathBuf> = (1..MOST)
        .map(|n| logs.join(format!("json.log.{n}")))
        .take_while(|p| p.exists())
        .collect();
    files.reverse();
    files.push(logs.join("json.log"));
    files
}

fn count_lines(files: &[PathBuf]) -> Result<usize> {
    let mut count = 0;
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        for line in BufReader::new(file).split(b'\n') {
            line.map_err(|e| EngineError::file("read", path, e))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Copies whole lines; returns how many.
fn copy(
    reader: &mut BufReader<File>,
    path: &std::path::Path,
    options: LogOptions,
    skip: &mut usize,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<usize> {
    let mut buffer = String::new();
    let mut count = 0;
    loop {
        buffer.clear();
        let n = reader
            .read_line(&mut buffer)
            .map_err(|e| EngineError::file("read", path, e))?;
        if n == 0 {
            break;
        }
        if !buffer.ends_with('\n') {
            // The writer is in the middle of it; come back later.
            let _ = reader.seek_relative(-i64::try_from(n).unwrap_or(0));
            break;
        }
        count += 1;
        if *skip > 0 {
            *skip -= 1;
            continue;
        }
        let Ok(line) = serde_json::from_str::<Line<'_>>(&buffer) else {
            continue;
        };
        let sink: &mut dyn Write = if line.stream == "stderr" { err } else { out };
        let stamp = if options.timestamps {
            format!("{} ", line.time)
        } else {
            String::new()
        };
        let written = sink
            .write_all(stamp.as_bytes())
            .and_then(|()| sink.write_all(line.log.as_bytes()));
        if let Err(e) = written {
            return Err(EngineError::io("failed to write the log")(e));
        }
    }
    let _ = out.flush();
    Ok(count)
}
