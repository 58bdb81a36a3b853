//! Reading a container's log back: all its files, oldest first, and on as it grows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use amphora_spec::ContainerId;
use flate2::read::MultiGzDecoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Deserialize;

use crate::{Engine, EngineError, Result};

/// How often a follower looks whether the container still runs, when nothing is written.
const FOLLOW_POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Most files of one log.
pub(crate) const FILES_MAX: u32 = 64;
/// Attempts at a list of files that no rotation came between.
const LIST_ATTEMPTS: u32 = 8;
const BUFFER: usize = 64 << 10;

/// Options of `logs`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only lines from this time on, nanoseconds since 1970.
    pub since: Option<i128>,
    /// Only lines up to this time, nanoseconds since 1970.
    pub until: Option<i128>,
    /// Put labels and variables before each line.
    pub details: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Where lines go.
struct Output<'a> {
    options: LogOptions,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Lines still to be left out.
    skip: usize,
    /// A line was later than what was asked for.
    over: bool,
}

/// One open file of a log, plain or compressed.
struct Source {
    reader: BufReader<Box<dyn Read>>,
    path: PathBuf,
    /// Its inode, and how much of it has been read.
    place: (u64, u64),
    /// Its first line, by which it is known again under whatever name.
    first: Vec<u8>,
    /// What of a line has been read so far.
    partial: Vec<u8>,
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
        let name = config.host.log.readable()?;
        let dir = self.container_dir(id).join("logs");
        let mut output = Output {
            options,
            out,
            err,
            skip: 0,
            over: false,
        };
        let watch = options.follow.then(|| watch(&dir)).flatten();
        let mut sources = sources(&dir, name)?;
        if let Some(tail) = options.tail {
            output.skip = count(&dir, name, &options)?.saturating_sub(tail);
        }
        for source in &mut sources {
            source.copy(&mut output)?;
        }
        let mut last = sources.pop();
        drop(sources);
        while options.follow && !output.over {
            let active = self.view(id).is_ok_and(|v| v.status.is_active());
            let got = follow(&dir, name, &mut last, &mut output)?;
            let past = |until: i128| i128::from(crate::list::now_nanos()) > until;
            if !got && (!active || options.until.is_some_and(past)) {
                break;
            }
            if !got {
                pause(watch.as_ref());
            }
        }
        Ok(())
    }
}

/// Copies what is new; goes on to newer files when the one at hand was rotated away.
fn follow(
    dir: &Path,
    name: &str,
    last: &mut Option<Source>,
    output: &mut Output<'_>,
) -> Result<bool> {
    let mut got = match last {
        Some(source) => source.copy(output)?,
        None => false,
    };
    if got {
        return Ok(true);
    }
    let unchanged = |source: &Source| {
        let now = std::fs::metadata(dir.join(name)).map(|m| (m.ino(), m.len()));
        now.is_ok_and(|(inode, len)| inode == source.place.0 && len >= source.place.1)
    };
    if last.as_ref().is_some_and(unchanged) {
        return Ok(false);
    }
    let all = sources(dir, name)?;
    let known = last.as_ref().and_then(|source| {
        let same = |other: &Source| other.first == source.first;
        all.iter().position(same)
    });
    let newer = match (known, last.as_ref()) {
        (Some(at), _) => at + 1,
        // An empty file that has its first line now is what we read already.
        (None, Some(source)) if source.first.is_empty() => all.len(),
        (None, _) => 0,
    };
    for mut source in all.into_iter().skip(newer) {
        if let Some(old) = last {
            old.copy(output)?;
        }
        source.copy(output)?;
        *last = Some(source);
        got = true;
    }
    Ok(got)
}

/// Watches a directory of logs; without it the follower only looks now and then.
fn watch(dir: &Path) -> Option<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).ok()?;
    let events =
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, dir, events).ok()?;
    Some(watch)
}

fn pause(watch: Option<&OwnedFd>) {
    let Some(watch) = watch else {
        let _ = poll(&mut [], Some(&FOLLOW_POLL));
        return;
    };
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&FOLLOW_POLL));
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|n| n > 0) {}
}

/// Lists the files of a container's log that are there, oldest first; the current one always.
pub(crate) fn log_files(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for n in 1..FILES_MAX {
        let plain = dir.join(format!("{name}.{n}"));
        let packed = dir.join(format!("{name}.{n}.gz"));
        match [plain, packed].into_iter().find(|p| p.exists()) {
            Some(path) => files.push(path),
            None => break,
        }
    }
    files.reverse();
    files.push(dir.join(name));
    files
}

/// Opens all files of a log, oldest first, as they stood at one moment.
fn sources(dir: &Path, name: &str) -> Result<Vec<Source>> {
    for _ in 0..LIST_ATTEMPTS {
        let paths = log_files(dir, name);
        let mut out = Vec::new();
        let mut whole = true;
        for path in &paths {
            match Source::open(path)? {
                Some(source) => out.push(source),
                // The current one may not be there yet; another was there a moment ago.
                None => whole &= path.ends_with(name),
            }
        }
        let firsts: std::collections::BTreeSet<_> = out.iter().map(|s| &s.first).collect();
        if whole && firsts.len() == out.len() && paths == log_files(dir, name) {
            return Ok(out);
        }
    }
    Err(EngineError::State(
        "the log is rotated faster than it can be read".to_owned(),
    ))
}

fn count(dir: &Path, name: &str, options: &LogOptions) -> Result<usize> {
    let mut lines = 0;
    for mut source in sources(dir, name)? {
        while let Some(line) = source.line()? {
            if options.since.is_none() && options.until.is_none() {
                lines += 1;
                continue;
            }
            let inside = serde_json::from_slice::<Line<'_>>(&line)
                .is_ok_and(|line| options.place(&line.time) == Place::Inside);
            lines += usize::from(inside);
        }
    }
    Ok(lines)
}

#[derive(PartialEq, Eq)]
enum Place {
    Before,
    Inside,
    After,
}

impl LogOptions {
    fn place(&self, time: &str) -> Place {
        if self.since.is_none() && self.until.is_none() {
            return Place::Inside;
        }
        let Ok(time) = time.parse::<jiff::Timestamp>() else {
            return Place::Inside;
        };
        let time = time.as_nanosecond();
        if self.since.is_some_and(|since| time < since) {
            Place::Before
        } else if self.until.is_some_and(|until| time > until) {
            Place::After
        } else {
            Place::Inside
        }
    }
}

impl Source {
    fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(EngineError::file("open", path, e)),
        };
        let inode = file.metadata().map_or(0, |m| m.ino());
        let reader: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        let mut source = Self {
            reader: BufReader::with_capacity(BUFFER, reader),
            path: path.to_owned(),
            place: (inode, 0),
            first: Vec::new(),
            partial: Vec::new(),
        };
        if let Some(line) = source.line()? {
            source.first.clone_from(&line);
            // It is read again as the first one.
            source.partial = line;
        }
        Ok(Some(source))
    }

    /// Reads the next whole line; `None` when it has no end yet.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        if !self.partial.ends_with(b"\n") {
            let read = self
                .reader
                .read_until(b'\n', &mut self.partial)
                .map_err(|e| EngineError::file("read", &self.path, e))?;
            self.place.1 += read as u64;
        }
        Ok(self
            .partial
            .ends_with(b"\n")
            .then(|| std::mem::take(&mut self.partial)))
    }

    /// Copies the lines that are there; `false`: there was none.
    fn copy(&mut self, output: &mut Output<'_>) -> Result<bool> {
        let mut got = false;
        while !output.over {
            let Some(line) = self.line()? else { break };
            if self.first.is_empty() {
                self.first.clone_from(&line);
            }
            got = true;
            output.line(&line)?;
        }
        let _ = output.out.flush();
        Ok(got)
    }
}

impl Output<'_> {
    fn line(&mut self, bytes: &[u8]) -> Result<()> {
        // A line torn by a full disk or a crash is left out.
        let Ok(line) = serde_json::from_slice::<Line<'_>>(bytes) else {
            return Ok(());
        };
        match self.options.place(&line.time) {
            Place::Inside => {}
            Place::Before => return Ok(()),
            Place::After => {
                self.over = true;
                return Ok(());
            }
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        let mut head = String::new();
        if self.options.timestamps {
            head.push_str(&fixed(&line.time));
            head.push(' ');
        }
        if self.options.details {
            head.push_str(&details(&line.attrs));
            head.push(' ');
        }
        let sink: &mut dyn Write = if line.stream == "stderr" {
            self.err
        } else {
            self.out
        };
        sink.write_all(head.as_bytes())
            .and_then(|()| sink.write_all(line.log.as_bytes()))
            .map_err(EngineError::io("failed to write the log"))
    }
}

/// Nine digits of a second, as Docker shows them.
fn fixed(time: &str) -> String {
    let text = time.trim_end_matches('Z');
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{seconds}.{fraction:0<9}Z")
}

/// `key=value` pairs, escaped as in a URL.
fn details(attrs: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = attrs
        .iter()
        .map(|(k, v)| format!("{}={}", escape(k), escape(v)))
        .collect();
    pairs.join(",")
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_details_are_docker_s() {
        assert_eq!(
            fixed("2026-01-02T03:04:05.12Z"),
            "2026-01-02T03:04:05.120000000Z"
        );
        assert_eq!(
            fixed("2026-01-02T03:04:05Z"),
            "2026-01-02T03:04:05.000000000Z"
        );
        let attrs = [
            ("a b".to_owned(), "1,2".to_owned()),
            ("c".to_owned(), String::new()),
        ];
        assert_eq!(details(&attrs.into()), "a+b=1%2C2,c=");
    }
}
