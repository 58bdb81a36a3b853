//! Health: what is on record of a container's checks, how a result changes that, and when the next
//! check is due. Pure, but for reading and writing the record.
//!
//! `health` in the run directory is written by the supervisor at the start of a run, then by every
//! check; in the data directory it is what the last run left.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::{SupervisorError, clock, files};

const NAME: &str = "health";
const VERSION: u16 = 1;
/// Results that are kept.
const LOG_MAX: usize = 5;
/// Most bytes of a record: five results, every byte of their output escaped.
const LIMIT: usize = 256 << 10;

/// What a supervisor is told of its container's healthcheck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthConfig {
    /// What makes one check, as argv of this same binary: it inherits a connection to the
    /// supervisor as descriptor 3 ([`crate::Client::inherited`]) and no environment, and answers by
    /// its exit code ([`HealthStatus::exit_code`]).
    pub probe: Vec<String>,
    /// Time between two checks.
    pub interval_ns: u64,
    /// The same in the start period, until a check has succeeded.
    pub start_interval_ns: u64,
    /// Time after the start in which failures do not count.
    pub start_period_ns: u64,
    /// How long a check may take; what makes it enforces this.
    pub timeout_ns: u64,
    /// What becomes of an unhealthy container.
    pub on_failure: HealthAction,
    /// How long it may take to stop before it is killed, seconds.
    pub stop_timeout_s: u64,
}

impl HealthConfig {
    /// The pause before the next check of a container that has run for so long.
    pub(crate) fn pause_ns(&self, status: HealthStatus, ran_ns: u64) -> u64 {
        if status == HealthStatus::Starting && ran_ns < self.start_period_ns {
            self.start_interval_ns
        } else {
            self.interval_ns
        }
    }
}

/// What becomes of an unhealthy container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthAction {
    /// Nothing.
    #[default]
    None,
    /// It is killed, and stays so.
    Kill,
    /// It is stopped, and started again whatever its restart policy.
    Restart,
    /// It is stopped, and stays so.
    Stop,
}

impl HealthAction {
    /// All actions with their names.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::None, "none"),
        (Self::Kill, "kill"),
        (Self::Restart, "restart"),
        (Self::Stop, "stop"),
    ];

    /// Returns podman's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(action, _)| *action == self);
        found.map_or("none", |(_, name)| name)
    }
}

/// Docker's word for a container's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has decided yet.
    #[default]
    Starting,
    /// The last checks that counted succeeded.
    Healthy,
    /// So many in a row have failed as it takes.
    Unhealthy,
}

impl HealthStatus {
    const ALL: [(Self, &'static str, u8); 3] = [
        (Self::Starting, "starting", 10),
        (Self::Healthy, "healthy", 11),
        (Self::Unhealthy, "unhealthy", 12),
    ];

    /// Returns Docker's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(status, ..)| *status == self);
        found.map_or("starting", |(_, name, _)| name)
    }

    /// Returns the code by which what made a check tells the supervisor its outcome.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        let found = Self::ALL.iter().find(|(status, ..)| *status == self);
        found.map_or(0, |(.., code)| *code)
    }

    pub(crate) fn from_exit_code(code: u8) -> Option<Self> {
        let found = Self::ALL.iter().find(|(.., known)| *known == code);
        found.map(|(status, ..)| *status)
    }
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began, RFC 3339.
    pub start: String,
    /// When it ended, RFC 3339.
    pub end: String,
    /// Its exit code; -1 when it was cut off or did not come to be.
    pub exit_code: i32,
    /// What it wrote, cut.
    pub output: String,
}

/// Whether failures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthPhase {
    /// The check began in the start period.
    Start,
    /// It began later.
    After,
}

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthRecord {
    version: u16,
    /// The verdict.
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<HealthResult>,
}

impl Default for HealthRecord {
    fn default() -> Self {
        Self {
            version: VERSION,
            status: HealthStatus::default(),
            failing_streak: 0,
            log: Vec::new(),
        }
    }
}

impl HealthRecord {
    /// Takes a result in, by Docker's rules; says whether the verdict changed.
    pub fn note(&mut self, result: HealthResult, phase: HealthPhase, retries: u32) -> bool {
        let before = self.status;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if self.status != HealthStatus::Starting || phase == HealthPhase::After {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(result);
        let old = self.log.len().saturating_sub(LOG_MAX);
        self.log.drain(..old);
        self.status != before
    }

    /// Reads the record of a run or data directory; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is of an unknown version.
    pub fn read(dir: BorrowedFd<'_>) -> Result<Option<Self>, SupervisorError> {
        let malformed = |why: String| SupervisorError::Malformed {
            what: "health record",
            why,
        };
        let bytes =
            files::read(dir, NAME, LIMIT).map_err(|e| SupervisorError::file("read", NAME, e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let record: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if record.version != VERSION {
            return Err(malformed("unknown version".to_owned()));
        }
        Ok(Some(record))
    }

    /// Replaces the record of a run or data directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, dir: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        let text = serde_json::to_vec(self).map_err(|e| SupervisorError::Malformed {
            what: "health record",
            why: e.to_string(),
        })?;
        files::replace(dir, NAME, &text).map_err(|e| SupervisorError::file("write", NAME, e))
    }
}

/// A time in the form of the record.
#[must_use]
pub fn health_time(nanos: u64) -> String {
    clock::text(nanos)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn result(exit_code: i32) -> HealthResult {
        HealthResult {
            exit_code,
            output: format!("code {exit_code}"),
            ..HealthResult::default()
        }
    }

    /// Status and streak after each of the codes.
    fn after(phase: HealthPhase, codes: &[i32]) -> Vec<(HealthStatus, u32, bool)> {
        let mut record = HealthRecord::default();
        let each = codes.iter().map(|code| {
            let changed = record.note(result(*code), phase, 3);
            (record.status, record.failing_streak, changed)
        });
        each.collect()
    }

    #[test]
    fn so_many_failures_in_a_row_make_it_unhealthy() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let seen = after(HealthPhase::After, &[1, -1, 0, 1, 2, 127, 1, 0]);
        let want = [
            (Starting, 1, false),
            (Starting, 2, false),
            (Healthy, 0, true),
            (Healthy, 1, false),
            (Healthy, 2, false),
            (Unhealthy, 3, true),
            (Unhealthy, 4, false),
            (Healthy, 0, true),
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn failures_in_the_start_period_count_only_after_a_success() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let seen = after(HealthPhase::Start, &[1, 1, 1, 1, 0, 1, 1, 1]);
        assert_eq!(seen[3], (Starting, 0, false));
        assert_eq!(seen[4], (Healthy, 0, true));
        assert_eq!(seen[7], (Unhealthy, 3, true));
    }

    #[test]
    fn the_last_five_results_are_kept_and_survive() {
        let mut record = HealthRecord::default();
        for code in 0..9 {
            record.note(result(code), HealthPhase::After, 3);
        }
        let codes: Vec<i32> = record.log.iter().map(|r| r.exit_code).collect();
        assert_eq!(codes, [4, 5, 6, 7, 8]);
        // The longest there is: each byte takes six.
        for entry in &mut record.log {
            entry.output = "\u{1}".repeat(4096);
        }
        let path = std::env::temp_dir().join(format!("amphora-health-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let dir = files::open_dir(&path).unwrap();
        assert_eq!(HealthRecord::read(dir.as_fd()).unwrap(), None);
        record.write(dir.as_fd()).unwrap();
        assert_eq!(HealthRecord::read(dir.as_fd()).unwrap(), Some(record));
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn pauses_are_short_while_it_starts_within_the_period() {
        let config = HealthConfig {
            probe: Vec::new(),
            interval_ns: 30,
            start_interval_ns: 5,
            start_period_ns: 100,
            timeout_ns: 1,
            on_failure: HealthAction::None,
            stop_timeout_s: 10,
        };
        assert_eq!(config.pause_ns(HealthStatus::Starting, 99), 5);
        assert_eq!(config.pause_ns(HealthStatus::Starting, 100), 30);
        assert_eq!(config.pause_ns(HealthStatus::Healthy, 0), 30);
        for (status, name, code) in HealthStatus::ALL {
            assert_eq!(HealthStatus::from_exit_code(code), Some(status));
            assert_eq!((status.name(), status.exit_code()), (name, code));
        }
        assert_eq!(HealthStatus::from_exit_code(0), None);
    }
}
