//! The exit record: how a container ended. JSON, written once per run, renamed into place.

use std::os::fd::BorrowedFd;

use amphora_sys::pidfd::Exit;
use serde::{Deserialize, Serialize};

use crate::{SupervisorError, clock, files};

const NAME: &str = "exit";
const LIMIT: usize = 64 << 10;
const VERSION: u16 = 1;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this format, 1.
    pub version: u16,
    /// Exit code as the command line shows it: the process's own, or 128 + the signal.
    pub code: i32,
    /// The signal that ended it, 0 when it exited by itself.
    pub signal: i32,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// RFC 3339 with nanoseconds, UTC.
    pub started_at: String,
    /// RFC 3339 with nanoseconds, UTC.
    pub finished_at: String,
    /// Why the code is not to be trusted, when it is not (a supervisor was killed).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// How often it was restarted by itself before.
    #[serde(default)]
    pub restarts: u32,
    /// Bytes of output that could not be logged (full disk).
    #[serde(default)]
    pub log_bytes_dropped: u64,
}

impl ExitRecord {
    /// The code recorded when nobody could learn the real one.
    pub const UNKNOWN: i32 = 255;

    /// Makes a record of how a process ended.
    pub(crate) fn from_exit(exit: Exit, started_at: u64, finished_at: u64) -> Self {
        let signal = match exit {
            Exit::Code(_) => 0,
            Exit::Signal(signal) => i32::from(signal),
        };
        Self {
            code: exit.shell_code(),
            signal,
            ..Self::unknown("", started_at, finished_at)
        }
    }

    /// Makes a record for an end that nobody saw. Times are nanoseconds since the epoch.
    #[must_use]
    pub fn unknown(error: &str, started_at: u64, finished_at: u64) -> Self {
        Self {
            version: 1,
            code: Self::UNKNOWN,
            signal: 0,
            oom_killed: false,
            started_at: clock::text(started_at),
            finished_at: clock::text(finished_at),
            error: error.to_owned(),
            restarts: 0,
            log_bytes_dropped: 0,
        }
    }

    /// Reads the record of a container from its data directory (`D/containers/<id>`) or its run
    /// directory; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn read(dir: BorrowedFd<'_>) -> Result<Option<Self>, SupervisorError> {
        let bytes =
            files::read(dir, NAME, LIMIT).map_err(|e| SupervisorError::file("read", NAME, e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let malformed = |why| SupervisorError::Malformed {
            what: "exit record",
            why,
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if record.version == VERSION {
            Ok(Some(record))
        } else {
            Err(malformed(format!(
                "it is of version {}; this amphora knows version {VERSION}",
                record.version
            )))
        }
    }

    /// Looks in the data directory, then in the run directory: containers that are removed when
    /// they exit leave their record there, as does everybody when the disk is full.
    ///
    /// # Errors
    /// When a file cannot be read or parsed.
    pub fn find(
        data_dir: BorrowedFd<'_>,
        run_dir: BorrowedFd<'_>,
    ) -> Result<Option<Self>, SupervisorError> {
        match Self::read(data_dir)? {
            Some(record) => Ok(Some(record)),
            None => Self::read(run_dir),
        }
    }

    /// Writes the record beneath `dir`, all at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, dir: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        let mut bytes = serde_json::to_vec(self).map_err(|e| SupervisorError::Malformed {
            what: "exit record",
            why: e.to_string(),
        })?;
        bytes.push(b'\n');
        files::replace_lasting(dir, NAME, &bytes)
            .map_err(|e| SupervisorError::file("write", NAME, e))
    }

    /// Removes the record of an earlier run; none is fine.
    ///
    /// # Errors
    /// What `unlinkat(2)` answers.
    pub fn remove(dir: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        match rustix::fs::unlinkat(dir, NAME, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(SupervisorError::file("remove", NAME, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn ends_become_docker_codes() {
        let of = |exit| {
            let r = ExitRecord::from_exit(exit, 0, 0);
            (r.code, r.signal)
        };
        assert_eq!(of(Exit::Code(42)), (42, 0));
        assert_eq!(of(Exit::Signal(9)), (137, 9));
    }

    #[test]
    fn records_are_found_in_either_directory_and_unknown_fields_ignored() {
        let path = std::env::temp_dir().join(format!("amphora-exit-{}", std::process::id()));
        std::fs::create_dir_all(path.join("data")).unwrap();
        let (run, data) = (
            files::open_dir(&path).unwrap(),
            files::open_dir(&path.join("data")).unwrap(),
        );
        let (run, data) = (run.as_fd(), data.as_fd());
        assert_eq!(ExitRecord::find(data, run).unwrap(), None);
        let record = ExitRecord::from_exit(Exit::Code(3), 0, clock::NANOS);
        record.write(run).unwrap();
        assert_eq!(ExitRecord::find(data, run).unwrap(), Some(record.clone()));
        let mut value = serde_json::to_value(&record).unwrap();
        value["later"] = serde_json::json!({"x": 1});
        std::fs::write(path.join("data/exit"), value.to_string()).unwrap();
        assert_eq!(ExitRecord::read(data).unwrap(), Some(record));
        value["version"] = 2.into();
        std::fs::write(path.join("data/exit"), value.to_string()).unwrap();
        let refused = ExitRecord::read(data).unwrap_err().to_string();
        assert!(
            refused.contains("it is of version 2; this amphora knows version 1"),
            "{refused}"
        );
        ExitRecord::remove(data).unwrap();
        ExitRecord::remove(data).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
    }
}
