//! The state record: what a container is doing now, in 256 bytes on tmpfs.
//!
//! `R/containers/<id>/state`, version 1, little-endian, replaced as a whole:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `amphstat` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | status: 0 created, 1 starting, 2 running, 3 exited, 4 restarting |
//! | 11 | 1 | flags: 1 adopted |
//! | 12 | 4 | pid of init in the host's pid namespace, 0 before it runs |
//! | 16 | 8 | start time of init (`/proc/<pid>/stat` field 22, clock ticks since boot) |
//! | 24 | 4 | pid of the supervisor |
//! | 28 | 4 | exit code, valid when exited |
//! | 32 | 8 | start time of the supervisor |
//! | 40 | 8 | started_at, nanoseconds since 1970 |
//! | 48 | 8 | finished_at, nanoseconds since 1970, 0 before |
//! | 56 | 4 | restarts by itself since it was started |
//! | 60 | 8 | pause before the last of them, nanoseconds |
//! | 68 | 184 | zeroes, for later versions |
//! | 252 | 4 | sum of all bytes before, modulo 2^32 |

use std::io;
use std::os::fd::BorrowedFd;

use amphora_sys::pidfd::Exit;

use crate::{SupervisorError, files};

const NAME: &str = "state";
const LEN: usize = 256;
const MAGIC: &[u8; 8] = b"amphstat";
const VERSION: u16 = 1;

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Status {
    /// Claimed, never started in this boot.
    #[default]
    Created,
    /// A supervisor is about to launch it.
    Starting,
    /// Its init runs (or ran, if the supervisor's lock is free).
    Running,
    /// It has ended; the exit record says how.
    Exited,
    /// The same, and its supervisor is about to run it again.
    Restarting,
}

/// One state record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// What the container is doing.
    pub status: Status,
    /// Whether the supervisor took the container over from a killed one.
    pub adopted: bool,
    /// Process id of init, 0 before it runs.
    pub init_pid: i32,
    /// Start time of init, in clock ticks since boot: with the pid it names one process for good.
    pub init_start: u64,
    /// Process id of the supervisor.
    pub supervisor_pid: i32,
    /// Start time of the supervisor.
    pub supervisor_start: u64,
    /// When init was launched, nanoseconds since 1970.
    pub started_at: u64,
    /// When init ended, nanoseconds since 1970; 0 before.
    pub finished_at: u64,
    /// Exit code, valid when exited.
    pub exit_code: i32,
    /// How often it was restarted by itself since it was started.
    pub restarts: u32,
    /// The pause before the last of these restarts, in nanoseconds.
    pub pause_ns: u64,
}

impl State {
    /// Reads the record of a run directory; `None` when there is none yet.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a record of a known version.
    pub fn read(run_dir: BorrowedFd<'_>) -> Result<Option<Self>, SupervisorError> {
        let bytes = files::read(run_dir, NAME, LEN * 2)
            .map_err(|e| SupervisorError::file("read", NAME, e))?;
        bytes.map(|b| Self::decode(&b)).transpose()
    }

    /// Replaces the record of a run directory. A full disk has no room for a second one: there the
    /// first is overwritten, or a container that has ended would be said to run.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, run_dir: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        let bytes = self.encode();
        files::replace(run_dir, NAME, &bytes)
            .or_else(|e| files::overwrite(run_dir, NAME, &bytes).map_err(|_| e))
            .map_err(|e| SupervisorError::file("write", NAME, e))
    }

    /// Says whether the recorded init still runs: its pid exists with the recorded start time and
    /// is no zombie.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn init_alive(&self) -> Result<bool, SupervisorError> {
        let stat = proc_stat(self.init_pid)?;
        Ok(stat.is_some_and(|s| s.start == self.init_start && !s.dead))
    }

    /// Says whether its supervisor, if it is alive, is about to run it again.
    #[must_use]
    pub const fn restarts_soon(&self) -> bool {
        matches!(self.status, Status::Restarting)
            || (matches!(self.status, Status::Starting) && self.restarts > 0)
    }

    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = match self.status {
            Status::Created => 0,
            Status::Starting => 1,
            Status::Running => 2,
            Status::Exited => 3,
            Status::Restarting => 4,
        };
        out[11] = u8::from(self.adopted);
        out[12..16].copy_from_slice(&self.init_pid.to_le_bytes());
        out[16..24].copy_from_slice(&self.init_start.to_le_bytes());
        out[24..28].copy_from_slice(&self.supervisor_pid.to_le_bytes());
        out[28..32].copy_from_slice(&self.exit_code.to_le_bytes());
        out[32..40].copy_from_slice(&self.supervisor_start.to_le_bytes());
        out[40..48].copy_from_slice(&self.started_at.to_le_bytes());
        out[48..56].copy_from_slice(&self.finished_at.to_le_bytes());
        out[56..60].copy_from_slice(&self.restarts.to_le_bytes());
        out[60..68].copy_from_slice(&self.pause_ns.to_le_bytes());
        let sum = sum(&out[..LEN - 4]);
        out[LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, SupervisorError> {
        let bad = |why: String| SupervisorError::Malformed {
            what: "state record",
            why,
        };
        let bytes: &[u8; LEN] = bytes
            .try_into()
            .map_err(|_| bad(format!("{} bytes", bytes.len())))?;
        if &bytes[0..8] != MAGIC || sum(&bytes[..LEN - 4]) != u32::from_le_bytes(at(bytes, LEN - 4))
        {
            return Err(bad("wrong magic or sum".to_owned()));
        }
        let version = u16::from_le_bytes(at(bytes, 8));
        if version != VERSION {
            return Err(bad(format!(
                "it is of version {version}; this amphora knows version {VERSION}"
            )));
        }
        let status = match bytes[10] {
            0 => Status::Created,
            1 => Status::Starting,
            2 => Status::Running,
            3 => Status::Exited,
            4 => Status::Restarting,
            n => return Err(bad(format!("status {n}"))),
        };
        Ok(Self {
            status,
            adopted: bytes[11] & 1 != 0,
            init_pid: i32::from_le_bytes(at(bytes, 12)),
            init_start: u64::from_le_bytes(at(bytes, 16)),
            supervisor_pid: i32::from_le_bytes(at(bytes, 24)),
            exit_code: i32::from_le_bytes(at(bytes, 28)),
            supervisor_start: u64::from_le_bytes(at(bytes, 32)),
            started_at: u64::from_le_bytes(at(bytes, 40)),
            finished_at: u64::from_le_bytes(at(bytes, 48)),
            restarts: u32::from_le_bytes(at(bytes, 56)),
            pause_ns: u64::from_le_bytes(at(bytes, 60)),
        })
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum: u32, b| sum.wrapping_add(u32::from(*b)))
}

fn at<const N: usize>(bytes: &[u8; LEN], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

/// What `/proc/<pid>/stat` says of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcStat {
    /// Zombie or dead.
    pub(crate) dead: bool,
    /// Start time in clock ticks since boot.
    pub(crate) start: u64,
    /// How a zombie ended.
    pub(crate) exit: Option<Exit>,
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such process.
pub(crate) fn proc_stat(pid: i32) -> Result<Option<ProcStat>, SupervisorError> {
    let path = format!("/proc/{pid}/stat");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(3) => {
            return Ok(None);
        }
        Err(e) => return Err(SupervisorError::file("read", path, e)),
    };
    parse_stat(&text)
        .map(Some)
        .ok_or(SupervisorError::Malformed {
            what: "/proc/<pid>/stat",
            why: text,
        })
}

/// Fields are counted from the last `)`: the command name may hold anything.
fn parse_stat(text: &str) -> Option<ProcStat> {
    let fields = text.get(text.rfind(')')? + 1..)?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    let status: i32 = fields.nth(29)?.parse().ok()?;
    let dead = matches!(state, "Z" | "X" | "x");
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(0);
    let exit = match status & 0x7f {
        0 => Exit::Code(byte(status >> 8)),
        signal => Exit::Signal(byte(signal)),
    };
    Some(ProcStat {
        dead,
        start,
        exit: dead.then_some(exit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_damage_is_noticed() {
        let state = State {
            status: Status::Running,
            adopted: true,
            init_pid: 4711,
            init_start: 99,
            supervisor_pid: 4710,
            supervisor_start: 98,
            started_at: u64::MAX,
            finished_at: 1,
            exit_code: -1,
            restarts: 7,
            pause_ns: 1 << 40,
        };
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes).unwrap(), state);
        for i in 0..LEN {
            let mut bad = bytes;
            bad[i] ^= 0x10;
            assert!(State::decode(&bad).is_err(), "byte {i}");
        }
        assert!(State::decode(&bytes[..255]).is_err());
    }

    #[test]
    fn a_record_that_cannot_be_replaced_is_overwritten() {
        use std::os::fd::AsFd;
        let path = std::env::temp_dir().join(format!("amphora-state-{}", std::process::id()));
        // What is in the way of a second file, as a full disk is.
        std::fs::create_dir_all(path.join("state.new")).unwrap();
        let dir = files::open_dir(&path).unwrap();
        let mut state = State::decode(&State::default().encode()).unwrap();
        state.write(dir.as_fd()).unwrap_err();
        assert_eq!(State::read(dir.as_fd()).unwrap(), None);
        state.status = Status::Running;
        std::fs::write(path.join(NAME), state.encode()).unwrap();
        state.status = Status::Exited;
        state.write(dir.as_fd()).unwrap();
        assert_eq!(State::read(dir.as_fd()).unwrap(), Some(state));
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_record_of_version_1_is_read_as_documented() {
        // By the table in `docs/formats.md`, not by the code that writes it.
        let mut bytes = [0_u8; LEN];
        bytes[..8].copy_from_slice(b"amphstat");
        bytes[8..16].copy_from_slice(&[1, 0, 2, 1, 0x39, 0x30, 0, 0]);
        bytes[16..24].copy_from_slice(&7_u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&99_i32.to_le_bytes());
        bytes[32..40].copy_from_slice(&8_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&1_700_000_000_000_000_000_u64.to_le_bytes());
        bytes[56..60].copy_from_slice(&3_u32.to_le_bytes());
        bytes[60..68].copy_from_slice(&400_u64.to_le_bytes());
        let sealed = |mut bytes: [u8; LEN]| {
            let sum: u32 = bytes[..252].iter().map(|b| u32::from(*b)).sum();
            bytes[252..].copy_from_slice(&sum.to_le_bytes());
            bytes
        };
        let state = State::decode(&sealed(bytes)).unwrap();
        assert_eq!(state.status, Status::Running);
        assert!(state.adopted);
        assert_eq!((state.init_pid, state.init_start), (12345, 7));
        assert_eq!((state.supervisor_pid, state.supervisor_start), (99, 8));
        assert_eq!(state.started_at, 1_700_000_000_000_000_000);
        assert_eq!((state.restarts, state.pause_ns), (3, 400));
        bytes[8] = 2;
        let refused = State::decode(&sealed(bytes)).unwrap_err().to_string();
        assert!(
            refused.contains("it is of version 2; this amphora knows version 1"),
            "{refused}"
        );
    }

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = proc_stat(pid).unwrap().unwrap();
        assert!(stat.start > 0 && !stat.dead);
        let tail = (4..=52)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        let parsed = parse_stat(&format!("1 (a) Z b) R) Z {tail}")).unwrap();
        assert_eq!((parsed.dead, parsed.start), (true, 22));
        assert_eq!(parsed.exit, Some(Exit::Signal(52)));
    }
}
