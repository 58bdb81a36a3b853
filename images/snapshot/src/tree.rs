//! The directory of a layer while it is filled. Every step names one component beneath an open
//! directory; directories are opened beneath the root without following any link.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use amphora_content::tarball::{Entry, EntryKind};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat,
    openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::path::RelPath;

/// Directories kept open.
const CACHED_DIRS: usize = 64;
const IMPLICIT_DIR_MODE: u32 = 0o755;
const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Why an entry was not made.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The kernel refused a step.
    Step(&'static str, io::Error),
    /// The entry is not acceptable.
    Refused(&'static str),
    /// Its data could not be read.
    Data(io::Error),
}

type Placed<T> = Result<T, Fault>;

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Fault {
    move |e| Fault::Step(what, e.into())
}

/// The layer's directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Modification times of directories, set last: their entries change them.
    dir_times: Vec<(RelPath, Timestamps)>,
    umask: u32,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self {
            root: Rc::new(root),
            open: HashMap::new(),
            dir_times: Vec::new(),
            umask: umask(),
        }
    }

    /// Makes the entry at `path`, replacing what an earlier entry made there.
    pub(crate) fn make(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        target: Option<&RelPath>,
        data: &mut impl BufRead,
    ) -> Placed<()> {
        let owner = owner(entry)?;
        let Some((parent, name)) = path.split() else {
            if entry.kind != EntryKind::Directory {
                return Err(Fault::Refused("the root of a layer is a directory"));
            }
            let root = Rc::clone(&self.root);
            return self.dress_dir(path, &root, entry, owner, IMPLICIT_DIR_MODE);
        };
        let dir = self.dir(parent)?;
        match entry.kind {
            EntryKind::Directory => self.make_dir(path, &dir, name, entry, owner),
            EntryKind::File => self.make_file(&dir, name, entry, owner, data),
            EntryKind::HardLink => self.make_link(&dir, path, name, target),
            EntryKind::Char if entry.device == (0, 0) => self.hide(parent, name),
            EntryKind::Symlink | EntryKind::Fifo | EntryKind::Char | EntryKind::Block => {
                self.make_special(&dir, name, entry, owner)
            }
        }
    }

    /// Hides `name` of the layers below.
    pub(crate) fn hide(&mut self, parent: &[u8], name: &[u8]) -> Placed<()> {
        let dir = self.dir(parent)?;
        match look(&dir, name)? {
            None => whiteout(&dir, name),
            // An entry of this layer hides what is below by itself, a directory has to say so.
            Some(found) if is_dir(&found) => {
                let made = openat(&dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(step("open"))?;
                opaque(&made)
            }
            Some(_) => Ok(()),
        }
    }

    /// Hides all that the layers below have in a directory.
    pub(crate) fn hide_all(&mut self, dir: &[u8]) -> Placed<()> {
        let dir = self.dir(dir)?;
        opaque(&dir)
    }

    /// Sets the times of directories. The tree is complete then.
    pub(crate) fn finish(mut self) -> Placed<()> {
        let times = std::mem::take(&mut self.dir_times);
        for (path, times) in times.iter().rev() {
            match self.open_dir(path.bytes()) {
                Ok(dir) => futimens(&dir, times).map_err(step("set times of"))?,
                // A later entry replaced the directory.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(step("open")(e)),
            }
        }
        Ok(())
    }

    fn open_dir(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(Rc::clone(dir));
        }
        let dir = Rc::new(openat2(&self.root, path, DIR, Mode::empty(), BENEATH)?);
        self.remember(path, &dir);
        Ok(dir)
    }

    fn remember(&mut self, path: &[u8], dir: &Rc<OwnedFd>) {
        if self.open.len() >= CACHED_DIRS {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), Rc::clone(dir));
    }

    /// Opens a directory, making it and its parents where they are missing.
    fn dir(&mut self, path: &[u8]) -> Placed<Rc<OwnedFd>> {
        match self.open_dir(path) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => {
                return Err(Fault::Refused(
                    "its path leads through a symbolic link of the layer",
                ));
            }
            Err(e) => return Err(step("open parent of")(e)),
        }
        let mut dir = Rc::clone(&self.root);
        let mut end = 0;
        for part in path.split(|b| *b == b'/') {
            end += part.len();
            match mkdirat(&dir, part, Mode::from_raw_mode(IMPLICIT_DIR_MODE)) {
                Ok(()) => dir = Rc::new(self.fresh_dir(&dir, part)?),
                Err(Errno::EXIST) => dir = self.step_into(&dir, part)?,
                Err(e) => return Err(step("make parent of")(e)),
            }
            end += 1;
        }
        debug_assert!(end > path.len());
        self.remember(path, &dir);
        Ok(dir)
    }

    /// Opens a directory that was just made implicitly, and gives it its mode whatever the umask.
    fn fresh_dir(&self, dir: &OwnedFd, name: &[u8]) -> Placed<OwnedFd> {
        let made =
            openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(step("open"))?;
        if IMPLICIT_DIR_MODE & self.umask != 0 {
            fchmod(&made, Mode::from_raw_mode(IMPLICIT_DIR_MODE)).map_err(step("set mode of"))?;
        }
        Ok(made)
    }

    /// Opens an existing component of a parent path; a whiteout there becomes an opaque directory.
    fn step_into(&mut self, dir: &OwnedFd, name: &[u8]) -> Placed<Rc<OwnedFd>> {
        match openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(next) => return Ok(Rc::new(next)),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(step("open parent of")(e)),
        }
        match look(dir, name)? {
            Some(found) if is_whiteout(&found) => {
                unlinkat(dir, name, AtFlags::empty()).map_err(step("replace"))?;
                mkdirat(dir, name, Mode::from_raw_mode(IMPLICIT_DIR_MODE)).map_err(step("make"))?;
                let made = self.fresh_dir(dir, name)?;
                opaque(&made)?;
                Ok(Rc::new(made))
            }
            Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => Err(
                Fault::Refused("its path leads through a symbolic link of the layer"),
            ),
            _ => Err(Fault::Refused("its path leads through a file of the layer")),
        }
    }

    fn make_dir(
        &mut self,
        path: &RelPath,
        dir: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Placed<()> {
        // Nobody but us may look in before the owner is set.
        let start = entry.mode & 0o777;
        let mode = Mode::from_raw_mode(start);
        let mut hides = false;
        let mut made = start & !self.umask;
        if let Err(e) = mkdirat(dir, name, mode) {
            if e != Errno::EXIST {
                return Err(step("make")(e));
            }
            match look(dir, name)? {
                Some(found) if is_dir(&found) => made = found.st_mode & 0o7777,
                _ => {
                    self.remove(dir, name)?;
                    mkdirat(dir, name, mode).map_err(step("make"))?;
                    hides = true;
                }
            }
        }
        let fd = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(step("open"))?;
        let fd = Rc::new(fd);
        if hides {
            opaque(&fd)?;
        }
        self.dress_dir(path, &fd, entry, owner, made)?;
        self.remember(path.bytes(), &fd);
        Ok(())
    }

    fn dress_dir(
        &mut self,
        path: &RelPath,
        dir: &OwnedFd,
        entry: &Entry,
        owner: Owner,
        mode: u32,
    ) -> Placed<()> {
        let now = if mode == entry.mode {
            None
        } else {
            Some(entry.mode)
        };
        let replaced = rustix::fs::fstat(dir).map_err(step("stat"))?;
        let same = (replaced.st_uid, replaced.st_gid) == (owner.uid, owner.gid);
        if !same {
            fchown(dir, Some(owner.uid()), Some(owner.gid())).map_err(step("set owner of"))?;
        }
        // The set-id bits of a directory go with its owner too.
        if let Some(mode) = now.or((!same && entry.mode & 0o6000 != 0).then_some(entry.mode)) {
            fchmod(dir, Mode::from_raw_mode(mode)).map_err(step("set mode of"))?;
        }
        set_xattrs(dir, entry)?;
        self.dir_times.push((path.clone(), times(entry)));
        Ok(())
    }

    fn make_file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        owner: Owner,
        data: &mut impl BufRead,
    ) -> Placed<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let file = self
            .replacing(dir, name, || openat(dir, name, flags, mode))
            .map_err(|f| relabel(f, "create"))?;
        copy(data, &file)?;
        if !owner.is_root() {
            fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(step("set owner of"))?;
        }
        let special = entry.mode & 0o7000 != 0;
        if special || entry.mode & self.umask != 0 {
            fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(step("set mode of"))?;
        }
        set_xattrs(&file, entry)?;
        futimens(&file, &times(entry)).map_err(step("set times of"))
    }

    fn make_link(
        &mut self,
        dir: &OwnedFd,
        path: &RelPath,
        name: &[u8],
        target: Option<&RelPath>,
    ) -> Placed<()> {
        let missing = Fault::Refused("its hard link target is not in the layer");
        let Some(target) = target else {
            return Err(missing);
        };
        let Some((target_parent, target_name)) = target.split() else {
            return Err(missing);
        };
        if target == path {
            return Ok(());
        }
        let from = match self.open_dir(target_parent) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing),
            Err(e) => return Err(step("open hard link target of")(e)),
        };
        match look(&from, target_name)? {
            None => return Err(missing),
            Some(found) if is_whiteout(&found) => return Err(missing),
            Some(found) if is_dir(&found) => {
                return Err(Fault::Refused("its hard link target is a directory"));
            }
            Some(_) => {}
        }
        self.replacing(dir, name, || {
            linkat(&from, target_name, dir, name, AtFlags::empty())
        })
        .map_err(|f| relabel(f, "link"))
    }

    fn make_special(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Placed<()> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let device = makedev(entry.device.0, entry.device.1);
        let node = |kind, device| mknodat(dir, name, kind, mode, device);
        self.replacing(dir, name, || match entry.kind {
            EntryKind::Symlink => symlinkat(&*entry.link, dir, name),
            EntryKind::Char => node(FileType::CharacterDevice, device),
            EntryKind::Block => node(FileType::BlockDevice, device),
            _ => node(FileType::Fifo, 0),
        })
        .map_err(|f| relabel(f, "create"))?;
        if !owner.is_root() {
            let (uid, gid) = (Some(owner.uid()), Some(owner.gid()));
            chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(step("set owner of"))?;
        }
        if entry.kind != EntryKind::Symlink
            && (entry.mode & 0o7000 != 0 || entry.mode & self.umask != 0)
        {
            // Just made, in a directory that nobody else writes to: no link to follow.
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(step("set mode of"))?;
        }
        utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(step("set times of"))
    }

    /// Runs `make`; when something is in the way, removes that and runs it again.
    fn replacing<T>(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Placed<T> {
        match make() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(step("create")),
        }
        self.remove(dir, name)?;
        make().map_err(step("create"))
    }

    fn remove(&mut self, dir: &OwnedFd, name: &[u8]) -> Placed<()> {
        self.open.clear();
        remove_all(dir, name).map_err(step("replace"))
    }
}

/// Removes a file or a whole directory beneath `dir`, following nothing.
fn remove_all(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let inner = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
    // The names first: one descriptor for each level is enough.
    let names = rustix::fs::Dir::read_from(&inner)?
        .map(|entry| Ok(entry?.file_name().to_bytes().to_vec()))
        .collect::<rustix::io::Result<Vec<_>>>()?;
    for name in names.iter().filter(|n| *n != b"." && *n != b"..") {
        remove_all(&inner, name)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn relabel(fault: Fault, what: &'static str) -> Fault {
    match fault {
        Fault::Step("create", e) => Fault::Step(what, e),
        other => other,
    }
}

fn look(dir: &OwnedFd, name: &[u8]) -> Placed<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(step("stat")(e)),
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn whiteout(dir: &OwnedFd, name: &[u8]) -> Placed<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(step("hide"))
}

fn opaque(dir: &OwnedFd) -> Placed<()> {
    fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(step("make opaque"))
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn uid(self) -> Uid {
        Uid::from_raw(self.uid)
    }

    fn gid(self) -> Gid {
        Gid::from_raw(self.gid)
    }

    const fn is_root(self) -> bool {
        self.uid == 0 && self.gid == 0
    }
}

fn owner(entry: &Entry) -> Placed<Owner> {
    let id = |value: u64| {
        // The largest value means "leave it" to the kernel.
        u32::try_from(value)
            .ok()
            .filter(|v| *v != u32::MAX)
            .ok_or(Fault::Refused("its owner is out of range"))
    };
    Ok(Owner {
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
    })
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

/// Sets the extended attributes that an image may bring: `user.*` and file capabilities. Those of
/// overlayfs are ours to set, ACLs and security labels are the host's business.
fn set_xattrs(file: &OwnedFd, entry: &Entry) -> Placed<()> {
    for (name, value) in &entry.xattrs {
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        let capability = name == b"security.capability";
        if !user && !capability {
            continue;
        }
        match fsetxattr(file.as_fd(), &**name, value, XattrFlags::empty()) {
            // A file system without user attributes loses decoration, not function.
            Err(Errno::OPNOTSUPP) if user => {}
            other => other.map_err(step("set extended attribute of"))?,
        }
    }
    Ok(())
}

/// Copies the data of an entry without another buffer.
fn copy(data: &mut impl BufRead, file: &OwnedFd) -> Placed<()> {
    loop {
        let chunk = data.fill_buf().map_err(Fault::Data)?;
        if chunk.is_empty() {
            return Ok(());
        }
        let n = match rustix::io::write(file, chunk) {
            Ok(0) => return Err(step("write")(io::Error::from(io::ErrorKind::WriteZero))),
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(e) => return Err(step("write")(e)),
        };
        data.consume(n);
    }
}

/// Reads the umask of the process; everything, when it cannot be read, so that modes are set.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    line.and_then(|l| u32::from_str_radix(l.trim(), 8).ok())
        .unwrap_or(0o777)
}
