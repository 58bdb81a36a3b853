//! The file of events: `R/events`, one line of JSON a record, written with one `write` each.
//!
//! Writers append without a lock: the kernel keeps appended records whole and gives them an
//! order. When the file has grown beyond [`LIMIT`], the writer that notices renames it to
//! `events.1`, in place of the one before; a lock on the old file keeps two writers from doing
//! that twice. A record that was being written at that moment lands in `events.1`.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{SupervisorError, clock, files};

/// Bytes from which on the file is put aside.
pub const LIMIT: u64 = 1 << 20;
/// Attributes that were changed after the start, in the run directory.
const ATTRIBUTES: &str = "attributes";

/// Path of the file under a run root.
#[must_use]
pub fn events_path(run_root: &Path) -> PathBuf {
    run_root.join("events")
}

/// Path of the file before.
#[must_use]
pub fn older_events_path(run_root: &Path) -> PathBuf {
    run_root.join("events.1")
}

/// Tells the supervisor of a run directory of other attributes, as [`attributes`] renders them.
///
/// # Errors
/// When they cannot be written.
pub fn change_attributes(run_dir: BorrowedFd<'_>, attributes: &str) -> Result<(), SupervisorError> {
    files::replace(run_dir, ATTRIBUTES, attributes.as_bytes())
        .map_err(|e| SupervisorError::file("write", ATTRIBUTES, e))
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// `container`, `image`, `volume` or `network`.
    pub kind: &'a str,
    /// Docker's word, for example `start`.
    pub action: &'a str,
    /// Id of the object.
    pub id: &'a str,
    /// Members of the attributes' JSON object, without its braces ([`attributes`]).
    pub attributes: &'a str,
    /// When, nanoseconds since 1970.
    pub time: u64,
}

/// Renders attributes as the members of a JSON object.
#[must_use]
pub fn attributes<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        text(key, &mut out);
        out.push(':');
        text(value, &mut out);
    }
    out
}

fn text(value: &str, out: &mut String) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

impl Event<'_> {
    /// Renders the record, its newline included.
    #[must_use]
    pub fn line(&self) -> String {
        let mut out = String::with_capacity(256);
        out.push_str("{\"Type\":");
        text(self.kind, &mut out);
        out.push_str(",\"Action\":");
        text(self.action, &mut out);
        out.push_str(",\"Actor\":{\"ID\":");
        text(self.id, &mut out);
        let _ = writeln!(
            out,
            ",\"Attributes\":{{{}}}}},\"scope\":\"local\",\"time\":{},\"timeNano\":{}}}",
            self.attributes,
            self.time / 1_000_000_000,
            self.time
        );
        out
    }
}

/// Appends records in one write.
///
/// # Errors
/// When the file cannot be opened or written. Nobody needs the events to go on.
pub fn append_events(path: &Path, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::from_raw_mode(0o600))?;
    rustix::io::write(&file, lines.as_bytes())?;
    let end = rustix::fs::tell(&file)?;
    if end < LIMIT {
        return Ok(());
    }
    flock(file.as_fd(), FlockOperation::LockExclusive)?;
    match stat(path) {
        Ok(now) if now.st_ino == fstat(&file)?.st_ino => {
            std::fs::rename(path, path.with_extension("1"))
        }
        // Another writer has moved it.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What a supervisor needs to write its container's events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLog {
    /// The file; empty: no events are written.
    pub path: PathBuf,
    /// The container's attributes, as [`attributes`] renders them.
    pub attributes: String,
    /// Records of what happened before the start, written together with it.
    pub before: String,
}

impl EventLog {
    /// Renders an event of the container, with its own attributes and more.
    pub(crate) fn line(&self, id: &str, own: &str, action: &str, more: &[(&str, &str)]) -> String {
        let more = attributes(more.iter().copied());
        let comma = if more.is_empty() || own.is_empty() {
            ""
        } else {
            ","
        };
        Event {
            kind: "container",
            action,
            id,
            attributes: &format!("{more}{comma}{own}"),
            time: clock::now(),
        }
        .line()
    }

    /// The attributes as they were changed after the start; `None` when they were not.
    pub(crate) fn changed_attributes(&self, run_dir: &Path) -> Option<String> {
        if self.path.as_os_str().is_empty() {
            return None;
        }
        std::fs::read_to_string(run_dir.join(ATTRIBUTES)).ok()
    }

    /// Writes records; a failure is nobody's concern.
    pub(crate) fn write(&self, lines: &str) {
        if !self.path.as_os_str().is_empty() {
            let _ = append_events(&self.path, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_and_the_file_is_bounded() {
        let dir = std::env::temp_dir().join(format!("amphora-events-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = events_path(&dir);
        let padding = "x".repeat(1000);
        let write = |writer: usize| {
            for n in 0..900 {
                let event = Event {
                    kind: "container",
                    action: "start",
                    id: &format!("{writer}-{n}"),
                    attributes: &attributes([("name", "a\"b\\\n"), ("pad", &padding)]),
                    time: 1_700_000_000_000_000_001,
                };
                append_events(&path, &event.line()).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for writer in 0..3 {
                scope.spawn(move || write(writer));
            }
        });
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let (older, newer) = (read(older_events_path(&dir)), read(path.clone()));
        assert!(older.len() as u64 >= LIMIT && (older.len() as u64) < LIMIT + (64 << 10));
        assert!((newer.len() as u64) < LIMIT);
        let mut last = [None; 3];
        for line in older.lines().chain(newer.lines()) {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["Actor"]["Attributes"]["name"], "a\"b\\\n");
            assert_eq!(record["time"], 1_700_000_000);
            let id = record["Actor"]["ID"].as_str().unwrap();
            let (writer, n) = id.split_once('-').unwrap();
            let (writer, n): (usize, i32) = (writer.parse().unwrap(), n.parse().unwrap());
            assert!(last[writer].is_none_or(|before| before < n), "order");
            last[writer] = Some(n);
        }
        assert!(last.contains(&Some(899)));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
