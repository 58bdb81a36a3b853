//! Copies a directory tree between two descriptors: owners, modes, times, extended attributes,
//! symbolic and hard links, devices. No name is ever followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, linkat, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat, utimensat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use crate::xattr::whole;

/// Why a tree was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file.
    #[error("failed to copy {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Directories lie in one another beyond reason.
    #[error("failed to copy {0:?}: nested too deeply")]
    TooDeep(PathBuf),
}

type Result<T> = std::result::Result<T, CopyError>;

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::File {
        path,
        source: source.into(),
    }
}

/// Two descriptors are open per level.
const DEPTH_MAX: usize = 400;

/// What a copy has done.
#[derive(Debug, Default)]
pub struct Copier {
    /// First name, below the target, of each file with more than one.
    links: HashMap<(u64, u64), PathBuf>,
    root: Option<OwnedFd>,
    /// Files, directories and links so far.
    pub entries: u64,
}

impl Copier {
    /// Copies what is in `source`, and the attributes of `source` itself, to `target`; `shown` is what
    /// `source` is called in errors.
    ///
    /// # Errors
    /// The first file that cannot be copied.
    pub fn copy(&mut self, source: &OwnedFd, target: &OwnedFd, shown: &Path) -> Result<()> {
        self.root = Some(target.try_clone().map_err(failed(shown))?);
        self.directory(source.as_fd(), target.as_fd(), Path::new(""), shown, 0)
    }

    fn directory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        below: &Path,
        shown: &Path,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(CopyError::TooDeep(shown.to_owned()));
        }
        let fail = || failed(shown);
        for entry in Dir::read_from(source).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let (below, shown) = (below.join(os(name)), shown.join(os(name)));
            let meta = statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail())?;
            self.entries += 1;
            if FileType::from_raw_mode(meta.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(source, name, flags, Mode::empty()).map_err(fail())?;
                mkdirat(target, name, Mode::RWXU).map_err(fail())?;
                let made = openat(target, name, flags, Mode::empty()).map_err(fail())?;
                self.directory(inner.as_fd(), made.as_fd(), &below, &shown, depth + 1)?;
            } else {
                self.leaf(source, target, name, &meta, &below)
                    .map_err(failed(&shown))?;
            }
        }
        let meta = rustix::fs::fstat(source).map_err(fail())?;
        attributes(source, target, &meta).map_err(failed(shown))
    }

    fn leaf(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        meta: &Stat,
        below: &Path,
    ) -> io::Result<()> {
        if meta.st_nlink > 1
            && let Some(first) = self.links.get(&(meta.st_dev, meta.st_ino))
            && let Some(root) = &self.root
        {
            return Ok(linkat(root, first, target, name, AtFlags::empty())?);
        }
        match FileType::from_raw_mode(meta.st_mode) {
            FileType::RegularFile => regular(source, target, name, meta)?,
            FileType::Symlink => symlink(source, target, name, meta)?,
            // Nobody could connect to a copy.
            FileType::Socket => return Ok(()),
            kind => {
                mknodat(target, name, kind, Mode::from_raw_mode(0o600), meta.st_rdev)?;
                own(target, name, meta)?;
                chmodat(target, name, mode(meta), AtFlags::empty())?;
            }
        }
        if meta.st_nlink > 1 {
            self.links
                .insert((meta.st_dev, meta.st_ino), below.to_owned());
        }
        Ok(())
    }
}

fn regular(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    meta: &Stat,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut from = File::from(openat(source, name, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut to = File::from(openat(target, name, flags, Mode::from_raw_mode(0o600))?);
    io::copy(&mut from, &mut to)?;
    attributes(from.as_fd(), to.as_fd(), meta)
}

fn symlink(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    meta: &Stat,
) -> io::Result<()> {
    let points: CString = readlinkat(source, name, Vec::new())?;
    symlinkat(points.as_c_str(), target, name)?;
    own(target, name, meta)?;
    Ok(utimensat(
        target,
        name,
        &times(meta),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Gives a file or directory the attributes of another. The owner comes first: changing it
/// takes set-id bits and capabilities away.
///
/// # Errors
/// What the kernel answers; a file system without extended attributes is no error.
pub fn attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>, meta: &Stat) -> io::Result<()> {
    fchown(
        target,
        Some(Uid::from_raw(meta.st_uid)),
        Some(Gid::from_raw(meta.st_gid)),
    )?;
    fchmod(target, mode(meta))?;
    xattrs(source, target)?;
    Ok(futimens(target, &times(meta))?)
}

fn xattrs(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let names = match whole(|buffer| flistxattr(source, buffer)) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // What an overlay keeps for itself means nothing elsewhere.
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let value = whole(|buffer| fgetxattr(source, name, buffer))?;
        match fsetxattr(target, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn own(target: BorrowedFd<'_>, name: &CStr, meta: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(meta.st_uid), Gid::from_raw(meta.st_gid));
    Ok(chownat(
        target,
        name,
        Some(user),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

const fn mode(meta: &Stat) -> Mode {
    Mode::from_raw_mode(meta.st_mode & 0o7777)
}

fn times(meta: &Stat) -> Timestamps {
    let nanos = |n| i64::try_from(n).unwrap_or(0);
    Timestamps {
        last_access: Timespec {
            tv_sec: meta.st_atime,
            tv_nsec: nanos(meta.st_atime_nsec),
        },
        last_modification: Timespec {
            tv_sec: meta.st_mtime,
            tv_nsec: nanos(meta.st_mtime_nsec),
        },
    }
}

fn os(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}
