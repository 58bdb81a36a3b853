//! Ids of files on disk that a bind shows as others: `idmap=uids=0-1000-1;gids=0-1000-1`, as podman
//! spells it.

use std::os::fd::{AsFd, BorrowedFd};

use amphora_sys::mount::{IDMAP, MountAttr, set_attr};
use amphora_sys::userns::{Maps, make};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{EngineError, Result};

/// Most ranges of one map that the kernel takes.
const RANGES_MAX: usize = 340;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id on disk.
    pub disk: u32,
    /// What it is shown as.
    pub shown: u32,
    /// How many there are.
    pub count: u32,
}

/// The maps of a mount; an empty one leaves these ids as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

/// Parses the value of `idmap`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(text: &str) -> Result<IdMap> {
    let mut map = IdMap::default();
    for part in text.split(';') {
        let (ids, ranges) = match part.split_once('=') {
            Some(("uids", ranges)) => (&mut map.uids, ranges),
            Some(("gids", ranges)) => (&mut map.gids, ranges),
            _ => return Err(invalid(text)),
        };
        if !ids.is_empty() {
            return Err(invalid(text));
        }
        let ranges: Option<Vec<IdRange>> = ranges.split('#').map(range).collect();
        *ids = ranges.ok_or_else(|| invalid(text))?;
        check(text, ids)?;
    }
    Ok(map)
}

fn invalid(text: &str) -> EngineError {
    EngineError::Invalid(format!(
        "invalid value for idmap: {text} (must be \"uids=DISK-SHOWN-COUNT[#...];gids=...\")"
    ))
}

fn range(text: &str) -> Option<IdRange> {
    let mut numbers = text.split('-').map(str::parse);
    let found = IdRange {
        disk: numbers.next()?.ok()?,
        shown: numbers.next()?.ok()?,
        count: numbers.next()?.ok()?,
    };
    let fits = |first: u32| first.checked_add(found.count).is_some();
    let whole = found.count > 0 && fits(found.disk) && fits(found.shown);
    (whole && numbers.next().is_none()).then_some(found)
}

fn check(text: &str, ranges: &[IdRange]) -> Result<()> {
    let overlap = |a: u32, a_count: u32, b: u32, b_count: u32| {
        u64::from(a) < u64::from(b) + u64::from(b_count)
            && u64::from(b) < u64::from(a) + u64::from(a_count)
    };
    let twice = |one: &IdRange, other: &IdRange| {
        overlap(one.disk, one.count, other.disk, other.count)
            || overlap(one.shown, one.count, other.shown, other.count)
    };
    for (at, one) in ranges.iter().enumerate() {
        if ranges.iter().skip(at + 1).any(|other| twice(one, other)) {
            let why = format!("invalid value for idmap: {text} (ranges overlap)");
            return Err(EngineError::Invalid(why));
        }
    }
    if ranges.len() > RANGES_MAX {
        let why = format!("invalid value for idmap: more than {RANGES_MAX} ranges");
        return Err(EngineError::Invalid(why));
    }
    Ok(())
}

fn lines(ranges: &[IdRange]) -> String {
    if ranges.is_empty() {
        // All there are.
        return format!("0 0 {}\n", u32::MAX);
    }
    let line = |r: &IdRange| format!("{} {} {}\n", r.disk, r.shown, r.count);
    ranges.iter().map(line).collect()
}

/// Gives a detached mount its map; `shown` is what it is called in errors.
pub(crate) fn apply(mount: BorrowedFd<'_>, map: &IdMap, shown: &str) -> Result<()> {
    let maps = Maps {
        uids: lines(&map.uids),
        gids: lines(&map.gids),
        groups: true,
    };
    let namespace = make(&maps, None).map_err(EngineError::io(format!(
        "failed to make a user namespace for the ids of \"{shown}\""
    )))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd());
    let attr = MountAttr {
        attr_set: IDMAP,
        userns_fd: u64::from(number.unsigned_abs()),
        ..MountAttr::default()
    };
    match set_attr(mount, true, &attr) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Err(EngineError::Unsupported(format!(
                "idmap of \"{shown}\": its file system, or one below it, cannot show other ids"
            )))
        }
        set => set.map_err(EngineError::io(format!(
            "failed to map the ids of \"{shown}\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_podman_writes_them() {
        let map = parse("uids=0-1-10#10-11-10;gids=0-100-10").unwrap();
        assert_eq!(lines(&map.uids), "0 1 10\n10 11 10\n");
        assert_eq!(lines(&map.gids), "0 100 10\n");
        assert_eq!(
            lines(&parse("uids=5-6-1").unwrap().gids),
            "0 0 4294967295\n"
        );
        for bad in [
            "",
            "uids",
            "uids=",
            "uids=0-1",
            "uids=0-1-0",
            "uids=0-1-2-3",
            "uids=@0-1-2",
            "uids=4294967295-0-1",
            "uids=0-0-2#1-5-1",
            "uids=0-5-2#7-6-1",
            "uids=0-0-1;uids=1-1-1",
            "people=0-0-1",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("invalid value for idmap: "), "{error}");
        }
    }
}
