//! What a container changed in the file system of its image.
//!
//! The writable layer says where to look; what is there is read in two merged views, with and
//! without it, so that whiteouts, opaque directories and whatever else overlayfs keeps in its
//! layers need no interpretation here.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_spec::ContainerId;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, statat};
use rustix::io::Errno;

use crate::config::ContainerConfig;
use crate::files::open_dir;
use crate::{Engine, EngineError, Result};

/// Deepest tree; three descriptors are open per level.
const DEPTH_MAX: usize = 300;

/// How a path was changed; the numbers are Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Another content, another attribute; of a directory, also something in it.
    Modified = 0,
    /// Not in the image.
    Added = 1,
    /// Only in the image.
    Deleted = 2,
}

impl ChangeKind {
    /// Returns Docker's letter.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Modified => 'C',
            Self::Added => 'A',
            Self::Deleted => 'D',
        }
    }
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// Absolute path; any bytes but zero.
    pub path: Vec<u8>,
}

/// A container's file system beside that of its image.
#[derive(Debug)]
pub(crate) struct Views {
    /// With the container's changes.
    pub(crate) merged: OwnedFd,
    lower: OwnedFd,
    /// The writable layer; none before the first start.
    upper: Option<OwnedFd>,
}

impl Engine {
    /// Lists what a container changed, by path.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; a directory that cannot be read.
    pub fn changes(&self, id: &ContainerId) -> Result<Vec<Change>> {
        self.reconcile_one(id)?;
        let views = self.views(&self.config(id)?)?;
        changes(&views).map_err(EngineError::io(format!(
            "failed to compare the files of container {id}"
        )))
    }

    /// Opens both views of a container.
    pub(crate) fn views(&self, config: &ContainerConfig) -> Result<Views> {
        let skeleton = self.skeleton()?;
        let upper = self.container_dir(&config.id).join("upper");
        let view = |top: Option<&std::path::Path>| {
            self.layers
                .view(Some(&skeleton), &config.layers, top)
                .map_err(EngineError::plain)
        };
        let lower = view(None)?;
        if !upper.is_dir() {
            return Ok(Views {
                merged: view(None)?,
                lower,
                upper: None,
            });
        }
        Ok(Views {
            merged: view(Some(&upper))?,
            lower,
            upper: Some(open_dir(&upper)?),
        })
    }
}

/// Compares the views.
pub(crate) fn changes(views: &Views) -> std::io::Result<Vec<Change>> {
    let Some(upper) = &views.upper else {
        return Ok(Vec::new());
    };
    let mut walk = Walk { found: Vec::new() };
    let roots = Level {
        merged: views.merged.as_fd(),
        lower: Some(views.lower.as_fd()),
        upper: Some(upper.as_fd()),
    };
    walk.level(roots, b"", 0)?;
    walk.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

/// One directory in each view. Without `upper` everything in it is compared.
#[derive(Clone, Copy)]
struct Level<'a> {
    merged: BorrowedFd<'a>,
    lower: Option<BorrowedFd<'a>>,
    upper: Option<BorrowedFd<'a>>,
}

struct Walk {
    found: Vec<Change>,
}

impl Walk {
    fn push(&mut self, kind: ChangeKind, path: &[u8]) {
        let path = path.to_vec();
        self.found.push(Change { kind, path });
    }

    fn level(&mut self, level: Level<'_>, prefix: &[u8], depth: usize) -> std::io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let mut listed = BTreeSet::new();
        if let Some(upper) = level.upper {
            names(upper, &mut listed)?;
        } else {
            names(level.merged, &mut listed)?;
            level
                .lower
                .map_or(Ok(()), |lower| names(lower, &mut listed))?;
        }
        for name in listed {
            let path = [prefix, b"/", name.as_slice()].concat();
            let now = look(level.merged, &name)?;
            let before = level.lower.map_or(Ok(None), |lower| look(lower, &name))?;
            match (now, before) {
                (None, None) => {}
                (None, Some(_)) => self.push(ChangeKind::Deleted, &path),
                (Some(now), before) => {
                    self.present(level, &name, &path, (now, before), depth)?;
                }
            }
        }
        Ok(())
    }

    fn present(
        &mut self,
        level: Level<'_>,
        name: &[u8],
        path: &[u8],
        (now, before): (Stat, Option<Stat>),
        depth: usize,
    ) -> std::io::Result<()> {
        let was_dir = before.as_ref().is_some_and(is_dir);
        let at = self.found.len();
        if is_dir(&now) {
            let merged = open(level.merged, name)?;
            let lower = match level.lower.filter(|_| was_dir) {
                Some(lower) => Some(open(lower, name)?),
                None => None,
            };
            let upper = level.upper.and_then(|upper| guide(upper, name));
            let below = Level {
                merged: merged.as_fd(),
                lower: lower.as_ref().map(AsFd::as_fd),
                upper: upper.as_ref().filter(|_| lower.is_some()).map(AsFd::as_fd),
            };
            self.level(below, path, depth + 1)?;
        }
        let kind = match before {
            None => ChangeKind::Added,
            Some(before) => {
                let inside = is_dir(&now) && was_dir && self.found.len() > at;
                let other = differ(&now, &before)
                    || capability(level.merged, name, &now)
                        != level
                            .lower
                            .and_then(|lower| capability(lower, name, &before));
                if !inside && !other {
                    return Ok(());
                }
                ChangeKind::Modified
            }
        };
        self.push(kind, path);
        Ok(())
    }
}

fn names(dir: BorrowedFd<'_>, into: &mut BTreeSet<Vec<u8>>) -> std::io::Result<()> {
    // A descriptor of its own: reading moves the position.
    let dir = open(dir, b".")?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            into.insert(name.to_vec());
        }
    }
    Ok(())
}

fn open(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn look(dir: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Opens a directory of the writable layer when what it lists is all that was changed in it: not
/// when it hides what is below, or stands for a directory of another name.
fn guide(upper: BorrowedFd<'_>, name: &[u8]) -> Option<OwnedFd> {
    let dir = open(upper, name).ok()?;
    let marked =
        |mark: &str| !matches!(fgetxattr(&dir, mark, &mut [0u8; 1][..]), Err(Errno::NODATA));
    let whole = ["trusted.overlay.opaque", "trusted.overlay.redirect"];
    (!whole.into_iter().any(marked)).then_some(dir)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn differ(a: &Stat, b: &Stat) -> bool {
    let attributes = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_rdev);
    let content = |s: &Stat| (s.st_mtime, s.st_mtime_nsec, s.st_size);
    attributes(a) != attributes(b) || (!is_dir(a) && content(a) != content(b))
}

/// The capabilities of a program: changing them changes no time.
fn capability(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Option<Vec<u8>> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).ok()?;
    let mut value = [0; 64];
    let length = fgetxattr(&file, "security.capability", &mut value[..]).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}
