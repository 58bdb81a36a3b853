//! A tar stream becomes files beneath a directory. Parents are resolved by the kernel beneath the
//! root that confines them, each last component is named beneath an open directory and not
//! followed: whatever the archive says, and whatever is swapped meanwhile, stays inside.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_content::tarball::{Entry, EntryKind, TarLimits, TarReader};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat,
    openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// `openat2` answers EAGAIN to a path with `..` when anything is renamed or mounted meanwhile.
const MAX_TRIES: usize = 256;
/// Most components of a path.
const DEPTH_MAX: usize = 400;
const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Whose files are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Those of the archive.
    Archive,
    /// The caller's.
    Caller,
    /// This user's and group's.
    Fixed(u32, u32),
}

/// What keeps an unpacking inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confine {
    /// Links are followed as if the root were `/`: a container's own.
    InRoot,
    /// No link is followed: a directory of the host, into which somebody else's files come.
    NoLinks,
}

/// Where and how an archive is unpacked.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// What nothing leaves.
    pub(crate) root: BorrowedFd<'a>,
    /// The directory to unpack into, from the root.
    pub(crate) base: String,
    /// How paths are confined.
    pub(crate) confine: Confine,
    /// Owner of what is made.
    pub(crate) owner: Owner,
    /// Refuse to replace a directory by a file and the other way round.
    pub(crate) keep_kind: bool,
    /// Make devices; left out and reported when not.
    pub(crate) devices: bool,
    /// Beginning of the names in the archive, and what takes its place.
    pub(crate) rebase: Option<(Vec<u8>, Vec<u8>)>,
}

/// What an unpacking did.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Bytes of files.
    pub bytes: u64,
    /// Entries left out, with the reason.
    pub skipped: Vec<String>,
}

struct Work<'a> {
    target: &'a Target<'a>,
    /// Times of directories, set last: what is made in them changes them.
    times: Vec<(Vec<u8>, Timestamps)>,
    done: Unpacked,
}

/// Unpacks a plain tar stream.
pub(crate) fn unpack(target: &Target<'_>, tar: impl Read) -> io::Result<Unpacked> {
    let mut reader = TarReader::new(tar, TarLimits::default());
    let mut work = Work {
        target,
        times: Vec::new(),
        done: Unpacked::default(),
    };
    while let Some(mut entry) = reader.next().map_err(io::Error::other)? {
        if let Some((from, to)) = &target.rebase {
            rebase(&mut entry.path, from, to);
            if entry.kind == EntryKind::HardLink {
                rebase(&mut entry.link, from, to);
            }
        }
        work.entry(&entry, &mut reader).map_err(|e| {
            let text = format!("{}: {e}", String::from_utf8_lossy(&entry.path));
            io::Error::new(e.kind(), text)
        })?;
    }
    reader.drain().map_err(io::Error::other)?;
    for (path, times) in work.times.iter().rev() {
        if let Ok(dir) = work.open(path, DIR) {
            futimens(&dir, times)?;
        }
    }
    Ok(work.done)
}

fn rebase(name: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let from = if from == b"/" { b"" } else { from };
    if let Some(rest) = name.strip_prefix(from) {
        *name = [to, rest].concat();
    }
}

/// Splits a name into components, by the text alone; `None` when it leads outside.
fn components(name: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    (parts.len() <= DEPTH_MAX).then_some(parts)
}

fn other<T>(text: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(text.into()))
}

impl Work<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, data: &mut TarReader<R>) -> io::Result<()> {
        let Some(parts) = components(&entry.path) else {
            return other(format!("it is outside of \"{}\"", self.target.base));
        };
        let Some((name, above)) = parts.split_last() else {
            // The directory itself is somebody else's.
            return Ok(());
        };
        let above = above.join(&b'/');
        let dir = self.parent(&above)?;
        let path = parts.join(&b'/');
        let found = match statat(&dir, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        let device = matches!(entry.kind, EntryKind::Char | EntryKind::Block);
        if device && !self.target.devices {
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            self.done.skipped.push(format!("{shown}: is a device"));
            return Ok(());
        }
        if entry.kind == EntryKind::Directory {
            return self.directory(&dir, name, &path, found.as_ref(), entry);
        }
        if let Some(found) = &found {
            if is_dir(found) && self.target.keep_kind {
                return other(format!(
                    "cannot overwrite directory \"{}\" with non-directory \"{}\"",
                    self.shown(&path),
                    self.target.base
                ));
            }
            remove_all(&dir, name, 0)?;
        }
        match entry.kind {
            EntryKind::File => self.file(&dir, name, entry, data),
            EntryKind::HardLink => self.link(&dir, name, entry),
            _ => self.node(&dir, name, entry),
        }
    }

    fn shown(&self, path: &[u8]) -> String {
        let base = self.target.base.trim_end_matches('/');
        format!("{base}/{}", String::from_utf8_lossy(path))
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let base = self.target.base.trim_matches('/').as_bytes();
        let mut whole = [base, b"/", path].concat();
        if base.is_empty() {
            whole = path.to_vec();
        }
        if whole.iter().all(|byte| *byte == b'/') {
            whole = b".".to_vec();
        }
        open_in(self.target.root, &whole, self.target.confine, flags)
    }

    /// Opens the directory above an entry, making what is missing.
    fn parent(&self, path: &[u8]) -> io::Result<OwnedFd> {
        match self.open(path, DIR) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            other => return Ok(other?),
        }
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path.get(..at), path.get(at + 1..)),
            None => (Some(&b""[..]), Some(path)),
        };
        let (above, name) = (above.unwrap_or_default(), name.unwrap_or_default());
        let dir = self.parent(above)?;
        match mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let mode = Mode::from_raw_mode(0o755);
                let made = openat(&dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
                rustix::fs::fchmod(&made, mode)?;
                Ok(made)
            }
            // A link that leads nowhere stands there.
            Err(Errno::EXIST) => Ok(self.open(path, DIR)?),
            Err(e) => Err(e.into()),
        }
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        found: Option<&Stat>,
        entry: &Entry,
    ) -> io::Result<()> {
        match found {
            Some(found) if is_dir(found) => {}
            Some(_) if self.target.keep_kind => {
                return other(format!(
                    "cannot overwrite non-directory \"{}\" with directory \"{}\"",
                    self.shown(path),
                    self.target.base
                ));
            }
            Some(_) => {
                unlinkat(dir, name, AtFlags::empty())?;
                mkdirat(dir, name, Mode::RWXU)?;
            }
            None => mkdirat(dir, name, Mode::RWXU)?,
        }
        let made = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
        self.own(made.as_fd(), b"", AtFlags::EMPTY_PATH, entry)?;
        rustix::fs::fchmod(&made, mode(entry))?;
        set_xattrs(made.as_fd(), entry)?;
        self.times.push((path.to_vec(), times(entry)));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
        copy(data, &fd)?;
        self.done.bytes += entry.size;
        self.own(fd.as_fd(), b"", AtFlags::EMPTY_PATH, entry)?;
        rustix::fs::fchmod(&fd, mode(entry))?;
        set_xattrs(fd.as_fd(), entry)?;
        Ok(futimens(&fd, &times(entry))?)
    }

    fn link(&self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
        let outside = || io::Error::other("its hard link target is outside of the archive");
        let parts = components(&entry.link).ok_or_else(outside)?;
        let (last, above) = parts.split_last().ok_or_else(outside)?;
        let from = self.open(&above.join(&b'/'), DIR)?;
        Ok(linkat(&from, *last, dir, name, AtFlags::empty())?)
    }

    fn node(&self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
        let device = makedev(entry.device.0, entry.device.1);
        let start = Mode::from_raw_mode(0o600);
        match entry.kind {
            EntryKind::Symlink => symlinkat(&*entry.link, dir, name)?,
            EntryKind::Char => mknodat(dir, name, FileType::CharacterDevice, start, device)?,
            EntryKind::Block => mknodat(dir, name, FileType::BlockDevice, start, device)?,
            _ => mknodat(dir, name, FileType::Fifo, start, 0)?,
        }
        self.own(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW, entry)?;
        if entry.kind != EntryKind::Symlink {
            chmod_node(dir, name, entry)?;
        }
        Ok(utimensat(
            dir,
            name,
            &times(entry),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn own(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        flags: AtFlags,
        entry: &Entry,
    ) -> io::Result<()> {
        let id = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|value| *value != u32::MAX)
                .ok_or_else(|| io::Error::other("its owner is out of range"))
        };
        let (uid, gid) = match self.target.owner {
            Owner::Caller => return Ok(()),
            Owner::Archive => (id(entry.uid)?, id(entry.gid)?),
            Owner::Fixed(uid, gid) => (uid, gid),
        };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(chownat(dir, name, uid, gid, flags)?)
    }
}

/// Sets the mode of a node by a descriptor that refers to nothing else: its name may be a link by
/// now.
fn chmod_node(dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(dir, name, flags, Mode::empty())?;
    let meta = rustix::fs::fstat(&node)?;
    if FileType::from_raw_mode(meta.st_mode) == FileType::Symlink {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
    Ok(chmodat(
        rustix::fs::CWD,
        path,
        mode(entry),
        AtFlags::empty(),
    )?)
}

/// Opens a path beneath `root`.
pub(crate) fn open_in(
    root: BorrowedFd<'_>,
    path: &[u8],
    confine: Confine,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_MAGICLINKS
        | match confine {
            Confine::InRoot => ResolveFlags::IN_ROOT,
            Confine::NoLinks => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
    for _ in 0..MAX_TRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Removes a file or a whole directory beneath `dir`, following nothing.
fn remove_all(dir: &OwnedFd, name: &[u8], depth: usize) -> rustix::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) if depth < DEPTH_MAX => {}
        other => return other,
    }
    let inner = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
    let names = Dir::read_from(&inner)?
        .map(|entry| Ok(entry?.file_name().to_bytes().to_vec()))
        .collect::<rustix::io::Result<Vec<_>>>()?;
    for name in names.iter().filter(|n| *n != b"." && *n != b"..") {
        remove_all(&inner, name, depth + 1)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, nanos) = entry.mtime;
    let time = Timespec {
        tv_sec,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Sets what an archive may bring: `user.*` and file capabilities.
fn set_xattrs(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    for (name, value) in &entry.xattrs {
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !user && name != b"security.capability" {
            continue;
        }
        match fsetxattr(file, &**name, value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            other => other?,
        }
    }
    Ok(())
}

fn copy(data: &mut impl BufRead, file: &OwnedFd) -> io::Result<()> {
    let mut file = File::from(file.try_clone()?);
    io::copy(data, &mut file).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let parts = |name: &str| {
            components(name.as_bytes()).map(|p| String::from_utf8(p.join(&b'/')).unwrap())
        };
        assert_eq!(parts("/a/./b/"), Some("a/b".to_owned()));
        assert_eq!(parts("a/../b"), Some("b".to_owned()));
        assert_eq!(parts("./"), Some(String::new()));
        assert_eq!(parts("../b"), None);
        assert_eq!(parts("a/../../b"), None);
    }

    #[test]
    fn names_are_rebased_once() {
        let moved = |name: &str, from: &str, to: &str| {
            let mut name = name.as_bytes().to_vec();
            rebase(&mut name, from.as_bytes(), to.as_bytes());
            String::from_utf8(name).unwrap()
        };
        assert_eq!(moved("old/old/x", "old", "new"), "new/old/x");
        assert_eq!(moved("./a", ".", "new"), "new/a");
        assert_eq!(moved("/a", "/", "new"), "new/a");
    }
}
