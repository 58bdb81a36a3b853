//! The directory of a layer while it is filled. Every step names one component beneath an open
//! directory, following no link; parents that are links of the layer are walked by [`Tree::walk`].

mod walk;

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use amphora_content::tarball::{Entry, EntryKind};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, makedev, mkdirat,
    mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::path::RelPath;
use crate::unpack::Limits;

/// Directories kept open.
const CACHED_DIRS: usize = 64;
const IMPLICIT_DIR_MODE: u32 = 0o755;
/// Bytes of a remembered directory beside its path, about.
const DIR_BYTES: usize = 96;
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

/// An open directory of the layer.
#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    /// Components between it and the root.
    depth: usize,
}

/// The layer's directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Rc<Dir>,
    open: HashMap<Vec<u8>, Rc<Dir>>,
    /// Modification times of directories by inode, set last: their entries change them.
    dir_times: HashMap<u64, (RelPath, Timestamps)>,
    /// Bytes of the paths in `dir_times`.
    held: usize,
    limits: Limits,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd, limits: &Limits) -> Self {
        Self {
            root: Rc::new(Dir { fd: root, depth: 0 }),
            open: HashMap::new(),
            dir_times: HashMap::new(),
            held: 0,
            limits: *limits,
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
            return self.dress_dir(path, &root.fd, entry, owner);
        };
        let parent_dir = self.dir(parent)?;
        if parent_dir.depth >= self.limits.depth {
            return Err(Fault::Refused("the path has too many components"));
        }
        let dir = &parent_dir.fd;
        match entry.kind {
            EntryKind::Directory => self.make_dir(path, &parent_dir, name, entry, owner),
            EntryKind::File => self.make_file(dir, name, entry, owner, data),
            EntryKind::HardLink => self.make_link(dir, path, name, target),
            EntryKind::Char if entry.device == (0, 0) => self.hide(parent, name),
            EntryKind::Symlink | EntryKind::Fifo | EntryKind::Char | EntryKind::Block => {
                self.make_special(dir, name, entry, owner)
            }
        }
    }

    /// Hides `name` of the layers below.
    pub(crate) fn hide(&mut self, parent: &[u8], name: &[u8]) -> Placed<()> {
        let parent = self.dir(parent)?;
        let dir = &parent.fd;
        match look(dir, name)? {
            None => whiteout(dir, name),
            // An entry of this layer hides what is below by itself, a directory has to say so.
            Some(found) if is_dir(&found) => {
                let made = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(step("open"))?;
                opaque(&made)
            }
            Some(_) => Ok(()),
        }
    }

    /// Hides all that the layers below have in a directory.
    pub(crate) fn hide_all(&mut self, dir: &[u8]) -> Placed<()> {
        opaque(&self.dir(dir)?.fd)
    }

    /// Sets the times of directories. The tree is complete then.
    pub(crate) fn finish(mut self) -> Placed<()> {
        self.flush_times()
    }

    fn flush_times(&mut self) -> Placed<()> {
        self.held = 0;
        for (inode, (path, times)) in std::mem::take(&mut self.dir_times) {
            let dir = match self.find(path.bytes()) {
                Ok(Some(dir)) => dir,
                // A later entry replaced the directory, perhaps by a link.
                Ok(None) | Err(Fault::Refused(_)) => continue,
                Err(e) => return Err(e),
            };
            if fstat(&dir.fd).map_err(step("stat"))?.st_ino == inode {
                futimens(&dir.fd, &times).map_err(step("set times of"))?;
            }
        }
        Ok(())
    }

    /// Notes when a directory changed last. With very many directories the times are set early:
    /// those that get further entries show when that was.
    fn remember_times(&mut self, inode: u64, path: &RelPath, times: Timestamps) -> Placed<()> {
        let before = self.dir_times.insert(inode, (path.clone(), times));
        let before = before.map_or(0, |(path, _)| cost(&path));
        self.held = self.held.saturating_add(cost(path)).saturating_sub(before);
        if self.held > self.limits.dir_bytes {
            self.flush_times()?;
        }
        Ok(())
    }

    /// Opens a directory whose path leads through no link.
    fn open_dir(&mut self, path: &[u8]) -> Result<Rc<Dir>, Errno> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(Rc::clone(dir));
        }
        let dir = Rc::new(Dir {
            fd: openat2(&self.root.fd, path, DIR, Mode::empty(), BENEATH)?,
            depth: path.split(|b| *b == b'/').count(),
        });
        self.remember(path, &dir);
        Ok(dir)
    }

    fn remember(&mut self, path: &[u8], dir: &Rc<Dir>) {
        if self.open.len() >= CACHED_DIRS {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), Rc::clone(dir));
    }

    /// Opens a directory, making it and its parents where they are missing.
    fn dir(&mut self, path: &[u8]) -> Placed<Rc<Dir>> {
        match self.open_dir(path) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(step("open parent of")(e)),
        }
        let Some(dir) = self.walk(path, walk::Missing::Make)? else {
            return Err(Fault::Refused("its path leads nowhere"));
        };
        self.remember(path, &dir);
        Ok(dir)
    }

    /// Opens a directory if it is there.
    fn find(&mut self, path: &[u8]) -> Placed<Option<Rc<Dir>>> {
        match self.open_dir(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path, walk::Missing::Stop),
            Err(e) => Err(step("open parent of")(e)),
        }
    }

    fn make_dir(
        &mut self,
        path: &RelPath,
        parent: &Dir,
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Placed<()> {
        let dir = &parent.fd;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let mut hides = false;
        if let Err(e) = mkdirat(dir, name, mode) {
            if e != Errno::EXIST {
                return Err(step("make")(e));
            }
            match look(dir, name)? {
                Some(found) if is_dir(&found) => {}
                _ => {
                    self.remove(dir, name)?;
                    mkdirat(dir, name, mode).map_err(step("make"))?;
                    hides = true;
                }
            }
        }
        let fd = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(step("open"))?;
        if hides {
            opaque(&fd)?;
        }
        self.dress_dir(path, &fd, entry, owner)?;
        let depth = parent.depth + 1;
        self.remember(path.bytes(), &Rc::new(Dir { fd, depth }));
        Ok(())
    }

    fn dress_dir(
        &mut self,
        path: &RelPath,
        dir: &OwnedFd,
        entry: &Entry,
        owner: Owner,
    ) -> Placed<()> {
        let made = fstat(dir).map_err(step("stat"))?;
        dress(dir, &made, owner, entry.mode)?;
        set_xattrs(dir, entry)?;
        self.remember_times(made.st_ino, path, times(entry))
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
        let made = fstat(&file).map_err(step("stat"))?;
        dress(&file, &made, owner, entry.mode)?;
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
        let Some(from) = self.find(target_parent)? else {
            return Err(missing);
        };
        let from = &from.fd;
        match look(from, target_name)? {
            None => return Err(missing),
            Some(found) if is_whiteout(&found) => return Err(missing),
            Some(found) if is_dir(&found) => {
                return Err(Fault::Refused("its hard link target is a directory"));
            }
            Some(_) => {}
        }
        self.replacing(dir, name, || {
            linkat(from, target_name, dir, name, AtFlags::empty())
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
        let made = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
        if !owner.has(&made) {
            let (uid, gid) = (Some(owner.uid()), Some(owner.gid()));
            chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(step("set owner of"))?;
        }
        if entry.kind != EntryKind::Symlink && made.st_mode & 0o7777 != entry.mode {
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

    /// Below a directory with the set-group-id bit the kernel gives away what we make.
    const fn has(self, stat: &Stat) -> bool {
        self.uid == stat.st_uid && self.gid == stat.st_gid
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

/// Gives a file or directory, as it was `made`, its owner and mode, whatever umask and parent did.
fn dress(file: &OwnedFd, made: &Stat, owner: Owner, mode: u32) -> Placed<()> {
    let given = !owner.has(made);
    if given {
        fchown(file, Some(owner.uid()), Some(owner.gid())).map_err(step("set owner of"))?;
    }
    // The set-id bits go with a change of the owner.
    if made.st_mode & 0o7777 != mode || (given && mode & 0o6000 != 0) {
        fchmod(file, Mode::from_raw_mode(mode)).map_err(step("set mode of"))?;
    }
    Ok(())
}

/// What it costs to remember a directory, about.
fn cost(path: &RelPath) -> usize {
    path.bytes().len() + DIR_BYTES
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

/// Sets the extended attributes that an image may bring; the reader hands out no others.
fn set_xattrs(file: &OwnedFd, entry: &Entry) -> Placed<()> {
    for (name, value) in &entry.xattrs {
        let user = name.starts_with(b"user.");
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
