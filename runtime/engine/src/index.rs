//! The index: what `ps` shows of containers without a run directory, in one file on tmpfs. It only
//! saves reading records; whether it still holds, the directories of the containers say.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amphora_spec::ContainerId;
use rustix::fs::Stat;
use rustix::time::Timespec;

use crate::ps::{Ended, Listed};
use crate::summary::{Summary, Texts};

/// Name of the index under the run root.
const NAME: &str = "index";
/// What it begins with; the number behind the name is its version.
const MAGIC: &[u8; 16] = b"amphindx\x02\x00\0\0\0\0\0\0";
/// Bytes up to the first row, and of a row.
const HEAD: usize = 64;
const ROW: usize = 84;

/// Flags of a row: its record is there; the container has ended; it is removed when it ends.
const KNOWN: u32 = 1;
const ENDED: u32 = 2;
const AUTO_REMOVE: u32 = 4;

/// What changes in a directory within this time of its last change may leave the same stamp
/// behind: the kernel's clock for files ticks.
const TICK: Duration = Duration::from_millis(100);
/// The same on file systems that count whole seconds.
const SECONDS: Duration = Duration::from_secs(2);

/// What tells one state of a directory from the next. All records of a container are renamed into
/// place, so that its directory changes with each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    seconds: i64,
    nanoseconds: u32,
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            // The time of change: nobody can set it.
            seconds: stat.st_ctime,
            nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
        }
    }

    /// Itself, if no later change can leave the same behind. `now` is from before it was taken.
    pub(crate) fn settled(self, now: Timespec) -> Option<Self> {
        let margin = if self.nanoseconds == 0 { SECONDS } else { TICK };
        let changed = Timespec {
            tv_sec: self.seconds,
            tv_nsec: self.nanoseconds.into(),
        };
        let age = Duration::try_from(now.checked_sub(changed)?).ok()?;
        (age > margin).then_some(self)
    }
}

/// The index as it was read.
#[derive(Debug, Default)]
pub(crate) struct Index {
    bytes: Arc<Vec<u8>>,
    rows: usize,
    device: u64,
    containers: Option<Stamp>,
}

impl Index {
    /// Reads the index; one that is missing, damaged or of another version is empty.
    pub(crate) fn read(run_root: &Path) -> Self {
        let bytes = std::fs::read(run_root.join(NAME)).unwrap_or_default();
        Self::parse(bytes).unwrap_or_default()
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let mut reader = Reader(bytes.get(..HEAD)?);
        if reader.take::<16>()? != *MAGIC {
            return None;
        }
        let sum = reader.u64()?;
        let rows = usize::try_from(reader.u32()?).ok()?;
        let texts = usize::try_from(reader.u32()?).ok()?;
        let device = reader.u64()?;
        let containers = stamp(&mut reader, device)?;
        let len = rows.checked_mul(ROW)?.checked_add(HEAD)?;
        if len.checked_add(texts)? != bytes.len() || sum != self::sum(bytes.get(24..)?) {
            return None;
        }
        Some(Self {
            bytes: Arc::new(bytes),
            rows,
            device,
            containers,
        })
    }

    /// The state of the directory of all containers that its ids are those of.
    pub(crate) fn containers(&self) -> Option<Stamp> {
        self.containers
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The containers, newest first, each with the stamp that its record holds for, if it has one.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Listed, Option<Stamp>)> {
        let texts = HEAD + self.rows * ROW;
        let rows = self.bytes.get(HEAD..texts).unwrap_or_default();
        rows.chunks_exact(ROW)
            .filter_map(move |row| self.row(&mut Reader(row), texts))
    }

    fn row(&self, row: &mut Reader<'_>, texts: usize) -> Option<(Listed, Option<Stamp>)> {
        let id = ContainerId::from_random(row.take()?);
        let created = row.u64()?;
        let stamp = stamp(row, self.device)?;
        let flags = row.u32()?;
        let code = row.i32()?;
        let at = row.u64()?;
        let start = usize::try_from(row.u32()?).ok()?;
        let len = usize::try_from(row.u32()?).ok()?;
        let texts = Texts::part(&self.bytes, texts.checked_add(start)?, len);
        let summary = Summary::new(id, created, flags & AUTO_REMOVE != 0, texts);
        let ended = (flags & ENDED != 0).then_some(Ended { code, at });
        let stamp = stamp.filter(|_| flags & KNOWN != 0);
        Some((Listed::idle(summary, ended), stamp))
    }
}

fn stamp(reader: &mut Reader<'_>, device: u64) -> Option<Option<Stamp>> {
    let stamp = Stamp {
        device,
        inode: reader.u64()?,
        seconds: reader.i64()?,
        nanoseconds: reader.u32()?,
    };
    Some((stamp.inode != 0).then_some(stamp))
}

/// What an index is made of.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// State of the directory of all containers whose ids these are, if that is known.
    pub(crate) containers: Option<Stamp>,
    /// Device of all stamps.
    pub(crate) device: u64,
    /// Containers, newest first, with the stamps their records hold for.
    pub(crate) rows: Vec<(Listed, Option<Stamp>)>,
    /// Containers of which no more is said than that they are there.
    pub(crate) others: Vec<ContainerId>,
}

impl Contents {
    fn bytes(&self) -> Option<Vec<u8>> {
        let count = self.rows.len() + self.others.len();
        let texts: usize = self.rows.iter().map(|(l, _)| l.summary.bytes().len()).sum();
        let mut out = Vec::with_capacity(HEAD + count * ROW + texts);
        out.extend(MAGIC);
        out.extend(0_u64.to_le_bytes());
        out.extend(u32::try_from(count).ok()?.to_le_bytes());
        out.extend(u32::try_from(texts).ok()?.to_le_bytes());
        out.extend(self.device.to_le_bytes());
        put_stamp(&mut out, self.containers);
        out.resize(HEAD, 0);
        let mut start = 0;
        for (listed, stamp) in &self.rows {
            start = put_row(&mut out, listed, *stamp, start)?;
        }
        for id in &self.others {
            let end = out.len() + ROW;
            out.extend(id.as_bytes());
            out.resize(end, 0);
        }
        for (listed, _) in &self.rows {
            out.extend(listed.summary.bytes());
        }
        let sum = sum(out.get(24..)?);
        out.get_mut(16..24)?.copy_from_slice(&sum.to_le_bytes());
        Some(out)
    }

    /// Replaces the index. It only saves time: a failure is nobody's concern.
    pub(crate) fn write(&self, run_root: &Path) {
        let Some(bytes) = self.bytes() else { return };
        let temp = run_root.join(format!("{NAME}.{}", std::process::id()));
        let written =
            std::fs::write(&temp, bytes).and_then(|()| std::fs::rename(&temp, run_root.join(NAME)));
        if written.is_err() {
            let _ = std::fs::remove_file(&temp);
        }
    }
}

fn put_stamp(out: &mut Vec<u8>, stamp: Option<Stamp>) {
    let (inode, seconds, nanoseconds) =
        stamp.map_or((0, 0, 0), |s| (s.inode, s.seconds, s.nanoseconds));
    out.extend(inode.to_le_bytes());
    out.extend(seconds.to_le_bytes());
    out.extend(nanoseconds.to_le_bytes());
}

/// Puts a row whose texts begin at `start`; returns where the next one's do.
fn put_row(out: &mut Vec<u8>, listed: &Listed, stamp: Option<Stamp>, start: u32) -> Option<u32> {
    let summary = &listed.summary;
    let len = u32::try_from(summary.bytes().len()).ok()?;
    let ended = listed.ended.unwrap_or(Ended { code: 0, at: 0 });
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(stamp.is_some(), KNOWN)
        | flag(listed.ended.is_some(), ENDED)
        | flag(summary.auto_remove, AUTO_REMOVE);
    out.extend(summary.id.as_bytes());
    out.extend(summary.created.to_le_bytes());
    put_stamp(out, stamp);
    out.extend(flags.to_le_bytes());
    out.extend(ended.code.to_le_bytes());
    out.extend(ended.at.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend(len.to_le_bytes());
    start.checked_add(len)
}

/// A sum that no torn or half-written file has by chance. Four at a time: each is a chain of
/// multiplications.
fn sum(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let mut lanes = [1, 2, 3, 4];
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            *lane = step(*lane, word.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    let rest = chunks.remainder();
    let all = rest
        .iter()
        .fold(bytes.len() as u64, |sum, byte| step(sum, u64::from(*byte)));
    lanes.into_iter().fold(all, step)
}

/// Takes numbers from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_when_the_clock_has_moved_on() {
        let stamp = |seconds, nanoseconds| Stamp {
            device: 1,
            inode: 2,
            seconds,
            nanoseconds,
        };
        let now = Timespec {
            tv_sec: 100,
            tv_nsec: 500_000_000,
        };
        for (seconds, nanoseconds, settled) in [
            (99, 999_999_999, true),
            (100, 399_999_999, true),
            (100, 400_000_000, false),
            (100, 500_000_000, false),
            // The clock was set back.
            (100, 500_000_001, false),
            (200, 1, false),
            // Whole seconds only.
            (99, 0, false),
            (98, 0, true),
        ] {
            let found = stamp(seconds, nanoseconds).settled(now);
            assert_eq!(found.is_some(), settled, "{seconds} {nanoseconds}");
        }
    }
}
