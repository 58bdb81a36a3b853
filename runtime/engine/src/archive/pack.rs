//! A file or a tree becomes a tar stream. Every step names one component beneath an open
//! directory and follows nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_content::tarball::{Entry, EntryKind, TarWriter};
use amphora_sys::xattr::whole;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, fstatfs, major,
    minor, openat, readlinkat, statat,
};
use rustix::io::Errno;

/// Deepest tree; a descriptor is open per level.
const DEPTH_MAX: usize = 400;

/// File systems whose files are the kernel's, by the magic numbers of `statfs(2)`: proc, sysfs,
/// cgroup, cgroup2, devpts, mqueue, securityfs, debugfs, tracefs, bpf.
const KERNEL_FILES: [u64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
];

/// What a tree of files is written with.
#[derive(Debug)]
pub(crate) struct Packer<W: Write> {
    out: TarWriter<W>,
    /// First name of each file with more than one.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes of files.
    bytes: u64,
    /// Where a tree's own devices are mounted: left out below a container's root.
    skip_dev: bool,
}

impl<W: Write> Packer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out: TarWriter::new(out),
            links: HashMap::new(),
            bytes: 0,
            skip_dev: false,
        }
    }

    /// Leaves out the content of `dev` below the top where that is another file system.
    pub(crate) fn without_devices(mut self) -> Self {
        self.skip_dev = true;
        self
    }

    /// Writes the directory `dir` under the name `name`, and all below it.
    pub(crate) fn directory(&mut self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let meta = fstat(dir)?;
        self.tree(dir.as_fd(), &meta, name, 0)
    }

    /// Writes the file, link or node `file` beneath `dir` under the name `name`.
    pub(crate) fn file(&mut self, dir: BorrowedFd<'_>, file: &[u8], name: &[u8]) -> io::Result<()> {
        let meta = statat(dir, file, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(meta.st_mode) == FileType::Directory {
            let inner = open_dir(dir, file)?;
            return self.tree(inner.as_fd(), &meta, name, 0);
        }
        self.leaf(dir, file, &meta, name)
    }

    /// Writes the file, link, node or directory `file` beneath `dir` under the name `name`, and
    /// nothing below it.
    pub(crate) fn single(
        &mut self,
        dir: BorrowedFd<'_>,
        file: &[u8],
        name: &[u8],
    ) -> io::Result<()> {
        let meta = statat(dir, file, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(meta.st_mode) != FileType::Directory {
            return self.leaf(dir, file, &meta, name);
        }
        let path = [name, b"/"].concat();
        let mut entry = entry(&meta, EntryKind::Directory, path);
        entry.xattrs = xattrs(open_dir(dir, file)?.as_fd())?;
        self.entry(&entry)
    }

    /// Writes what is in the directory `dir`, under names without a beginning.
    pub(crate) fn contents(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let meta = fstat(dir)?;
        for child in names(dir.as_fd())? {
            self.child(dir.as_fd(), &meta, b"", &child, 0)?;
        }
        Ok(())
    }

    /// Writes an entry with data that is no file of the tree.
    pub(crate) fn data(&mut self, entry: &Entry, data: &mut dyn io::Read) -> io::Result<()> {
        self.out.append(entry, data)
    }

    /// Ends the stream; returns what it was written to and how many bytes of files it holds.
    pub(crate) fn finish(self) -> io::Result<(W, u64)> {
        Ok((self.out.finish()?, self.bytes))
    }

    /// Writes an entry that is no file of the tree.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.out.append(entry, &mut io::empty())
    }

    fn tree(
        &mut self,
        dir: BorrowedFd<'_>,
        meta: &Stat,
        name: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(named(name, &Errno::NAMETOOLONG.into()));
        }
        let mut path = name.to_vec();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut entry = entry(meta, EntryKind::Directory, path);
        entry.xattrs = xattrs(dir).map_err(|e| named(name, &e))?;
        self.entry(&entry)?;
        if kernel_files(dir)? {
            return Ok(());
        }
        for child in names(dir).map_err(|e| named(name, &e))? {
            self.child(dir, meta, &entry.path, &child, depth)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: BorrowedFd<'_>,
        above: &Stat,
        prefix: &[u8],
        child: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let path = [prefix, child].concat();
        let failed = |e: Errno| named(&path, &e.into());
        let meta = match statat(dir, child, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since the directory was listed.
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(failed)?,
        };
        if FileType::from_raw_mode(meta.st_mode) != FileType::Directory {
            return self.leaf(dir, child, &meta, &path);
        }
        let inner = match open_dir(dir, child) {
            // Something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other.map_err(failed)?,
        };
        let devices = depth == 0 && child == b"dev" && meta.st_dev != above.st_dev;
        if self.skip_dev && devices {
            let path = [path.as_slice(), b"/"].concat();
            return self.entry(&entry(&meta, EntryKind::Directory, path));
        }
        let meta = fstat(&inner).map_err(failed)?;
        self.tree(inner.as_fd(), &meta, &path, depth + 1)
    }

    fn leaf(
        &mut self,
        dir: BorrowedFd<'_>,
        file: &[u8],
        meta: &Stat,
        name: &[u8],
    ) -> io::Result<()> {
        let failed = |e: io::Error| named(name, &e);
        let key = (meta.st_dev, meta.st_ino);
        let kind = match FileType::from_raw_mode(meta.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::Char,
            FileType::BlockDevice => EntryKind::Block,
            FileType::Fifo => EntryKind::Fifo,
            // Nobody could connect to a copy.
            _ => return Ok(()),
        };
        let mut entry = entry(meta, kind, name.to_vec());
        if meta.st_nlink > 1 {
            if let Some(first) = self.links.get(&key) {
                entry.kind = EntryKind::HardLink;
                entry.link.clone_from(first);
                return self.entry(&entry);
            }
            self.links.insert(key, name.to_vec());
        }
        match kind {
            EntryKind::File => self.regular(dir, file, entry).map_err(failed),
            EntryKind::Symlink => {
                let target = readlinkat(dir, file, Vec::new()).map_err(|e| failed(e.into()))?;
                entry.link = target.into_bytes();
                self.entry(&entry)
            }
            EntryKind::Char | EntryKind::Block => {
                entry.device = (major(meta.st_rdev), minor(meta.st_rdev));
                self.entry(&entry)
            }
            _ => self.entry(&entry),
        }
    }

    fn regular(&mut self, dir: BorrowedFd<'_>, file: &[u8], mut entry: Entry) -> io::Result<()> {
        // Never block on what a file has become meanwhile, never touch a device.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match openat(dir, file, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        let meta = fstat(&fd)?;
        if FileType::from_raw_mode(meta.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        entry.size = u64::try_from(meta.st_size).unwrap_or(0);
        entry.xattrs = xattrs(fd.as_fd())?;
        self.bytes += entry.size;
        self.out.append(&entry, &mut File::from(fd))
    }
}

/// Says which file of a tree an error is about.
fn named(name: &[u8], error: &io::Error) -> io::Error {
    let name = String::from_utf8_lossy(name);
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

fn kernel_files(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = fstatfs(dir)?.f_type;
    Ok(KERNEL_FILES.iter().any(|magic| {
        // The kernel's type of this field differs between machines.
        u64::try_from(kind).is_ok_and(|kind| kind == *magic)
            || i32::try_from(kind).is_ok_and(|kind| u64::from(kind.cast_unsigned()) == *magic)
    }))
}

/// An entry with the attributes of a file.
pub(crate) fn entry(meta: &Stat, kind: EntryKind, path: Vec<u8>) -> Entry {
    Entry {
        path,
        link: Vec::new(),
        kind,
        mode: meta.st_mode & 0o7777,
        uid: u64::from(meta.st_uid),
        gid: u64::from(meta.st_gid),
        mtime: (meta.st_mtime, 0),
        size: 0,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// Reads the extended attributes that an archive keeps: file capabilities and `user.*`.
pub(crate) fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match whole(|buffer| flistxattr(file, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut out = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if user || name == b"security.capability" {
            let value = whole(|buffer| fgetxattr(file, name, buffer))?;
            out.push((name.to_vec(), value));
        }
    }
    Ok(out)
}
