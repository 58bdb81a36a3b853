//! Files in and out of containers, as tar streams.
//!
//! Nothing of the container is trusted: its root is a descriptor, every path is resolved by the
//! kernel beneath it, no program and no library of it is run or loaded.

pub(crate) mod pack;
pub mod path;
pub(crate) mod root;
pub(crate) mod unpack;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_content::compress::decompress;
use amphora_spec::media::Compression;
use amphora_spec::{ContainerId, ErrorKind, error::io_kind};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, readlinkat, statx,
};
use rustix::io::Errno;

use crate::config::ContainerConfig;
use crate::{Engine, EngineError, Result};
use pack::Packer;
use unpack::{Confine, Target, open_in};
pub use unpack::{Owner, Unpacked};

/// Most symbolic links followed in one path, as Docker has it.
const MAX_LINKS: usize = 255;

/// What Docker tells of a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// Last part of the path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Where a symbolic link leads in the end, from the container's root; empty for all others.
    pub link_target: String,
}

impl PathStat {
    /// Says whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }

    /// Says whether it is a symbolic link.
    #[must_use]
    pub fn is_link(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Symlink
    }

    /// Says whether it is a device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(
            FileType::from_raw_mode(self.mode),
            FileType::CharacterDevice | FileType::BlockDevice
        )
    }
}

/// How an archive is put into a container.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Refuse to replace a directory by a file and the other way round.
    pub keep_kind: bool,
    /// Files belong to the container's user, not to those of the archive.
    pub as_user: bool,
    /// Beginning of the names in the archive, and what takes its place.
    pub rebase: Option<(String, String)>,
}

/// Where an archive is unpacked on the host.
#[derive(Debug, Clone)]
pub struct LocalTarget<'a> {
    /// An existing directory.
    pub directory: &'a Path,
    /// Owner of what is made.
    pub owner: Owner,
    /// Beginning of the names in the archive, and what takes its place.
    pub rebase: Option<(String, String)>,
}

/// The text by which a container was asked for and its id.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Id.
    pub id: &'a ContainerId,
    /// What the user wrote.
    pub text: &'a str,
}

impl Engine {
    /// Describes a path in a container; a symbolic link at its end is not followed unless the path
    /// ends in a slash.
    ///
    /// # Errors
    /// [`EngineError::NoSuchFile`]; a path through something that is no directory.
    pub fn archive_stat(&self, container: Named<'_>, path: &str) -> Result<PathStat> {
        let root = self.container_root(container.id)?;
        stat_in(root.fd(), path).map_err(missing(container, path))
    }

    /// Writes what is at a path in a container as a tar stream to `out`, which `begin` makes of
    /// the path's description. Names begin with the last part of the path.
    ///
    /// # Errors
    /// Those of [`Engine::archive_stat`]; a file that cannot be read; what writing answers.
    pub fn archive_get<W: Write>(
        &self,
        container: Named<'_>,
        path: &str,
        begin: impl FnOnce(&PathStat) -> io::Result<W>,
    ) -> Result<W> {
        let root = self.container_root(container.id)?;
        let stat = stat_in(root.fd(), path).map_err(missing(container, path))?;
        let whole = path::in_container(path);
        let failed = |e: io::Error| copy_error("read", path, e);
        self.note_action(container.id, "archive-path", &[])?;
        let out = begin(&stat).map_err(failed)?;
        let name = path::base(&whole).to_owned();
        let mut packer = Packer::new(out);
        let packed = if stat.is_dir() {
            packer = if path::clean(&whole) == "/" {
                packer.without_devices()
            } else {
                packer
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            open_in(root.fd(), relative(&whole), Confine::InRoot, flags)
                .map_err(io::Error::from)
                .and_then(|dir| packer.directory(&dir, name.as_bytes()))
        } else {
            let (above, last) = path::split(&whole);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            open_in(root.fd(), relative(&above), Confine::InRoot, flags)
                .map_err(io::Error::from)
                .and_then(|dir| packer.file(dir.as_fd(), last.as_bytes(), name.as_bytes()))
        };
        packed
            .and_then(|()| packer.finish())
            .map(|(out, _)| out)
            .map_err(failed)
    }

    /// Unpacks a tar stream, plain or compressed, into a directory of a container.
    ///
    /// # Errors
    /// [`EngineError::NoSuchFile`]; a path that is no directory or cannot be written to; an
    /// archive that is malformed or would leave the directory.
    pub fn archive_put(
        &self,
        container: Named<'_>,
        path: &str,
        options: &PutOptions,
        input: impl Read + Send,
    ) -> Result<Unpacked> {
        let config = self.config(container.id)?;
        let root = self.container_root(container.id)?;
        let whole = path::in_container(path);
        let dir = match open_in(
            root.fd(),
            relative(&whole),
            Confine::InRoot,
            OFlags::RDONLY | OFlags::DIRECTORY,
        ) {
            Err(Errno::NOTDIR) => {
                let text = "extraction point is not a directory";
                return Err(EngineError::Invalid(text.to_owned()));
            }
            other => other.map_err(missing(container, path))?,
        };
        refuse_read_only(root.fd(), &dir, &config)?;
        let owner = if options.as_user && !config.user.is_empty() {
            let user = amphora_executor::resolve_user(root.fd(), &config.user)
                .map_err(EngineError::plain)?
                .user;
            Owner::Fixed(user.uid, user.gid)
        } else {
            Owner::Archive
        };
        let target = Target {
            root: root.fd(),
            base: path::clean(&whole),
            confine: Confine::InRoot,
            owner,
            keep_kind: options.keep_kind,
            devices: true,
            rebase: bytes(options.rebase.as_ref()),
        };
        let failed = |e: io::Error| copy_error("unpack into", path, e);
        self.note_container(&config, "extract-to-dir", &[]);
        let plain = decompress(Compression::None, input).map_err(failed)?;
        unpack::unpack(&target, plain).map_err(failed)
    }
}

/// Writes a file or directory of the host as a tar stream: `directory/file`, or the directory
/// itself when `file` is `.`, under the name `name`. Returns what it was written to and the bytes
/// of its files.
///
/// # Errors
/// What reading or writing answers.
pub fn pack_local<W: Write>(
    directory: &Path,
    file: &str,
    name: &str,
    out: W,
) -> io::Result<(W, u64)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(directory, flags, Mode::empty())?;
    let mut packer = Packer::new(out);
    if matches!(file, "." | "/") {
        packer.directory(&dir, name.as_bytes())?;
    } else {
        packer.file(dir.as_fd(), file.as_bytes(), name.as_bytes())?;
    }
    packer.finish()
}

/// Unpacks a plain tar stream that came out of a container into a directory of the host. No link
/// in that directory is followed, and no device is made.
///
/// # Errors
/// An archive that is malformed or would leave the directory; what the file system answers.
pub fn unpack_local(target: &LocalTarget<'_>, input: impl Read) -> io::Result<Unpacked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(target.directory, flags, Mode::empty())?;
    let inner = Target {
        root: root.as_fd(),
        base: String::new(),
        confine: Confine::NoLinks,
        owner: target.owner,
        keep_kind: true,
        devices: false,
        rebase: bytes(target.rebase.as_ref()),
    };
    unpack::unpack(&inner, input)
}

fn bytes(rebase: Option<&(String, String)>) -> Option<(Vec<u8>, Vec<u8>)> {
    rebase.map(|(from, to)| (from.as_bytes().to_vec(), to.as_bytes().to_vec()))
}

/// A path of a container as it is looked up beneath the root.
fn relative(path: &str) -> &[u8] {
    match path.trim_start_matches('/') {
        "" => b".",
        rest => rest.as_bytes(),
    }
}

fn missing(container: Named<'_>, path: &str) -> impl FnOnce(Errno) -> EngineError {
    move |errno| match errno {
        Errno::NOENT => EngineError::NoSuchFile {
            path: path.to_owned(),
            container: container.text.to_owned(),
        },
        Errno::NOTDIR => EngineError::Invalid(format!("lstat {path}: not a directory")),
        errno => EngineError::file("look at", path.as_ref(), errno),
    }
}

fn copy_error(action: &str, path: &str, source: io::Error) -> EngineError {
    let kind = match io_kind(&source) {
        ErrorKind::Internal => ErrorKind::InvalidArgument,
        kind => kind,
    };
    EngineError::Below {
        context: format!("failed to {action} \"{path}\""),
        kind,
        source: Box::new(source),
    }
}

fn stat_in(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<PathStat> {
    let whole = path::in_container(path);
    let flags = if path::asserts_directory(&whole) {
        OFlags::PATH | OFlags::DIRECTORY
    } else {
        OFlags::PATH | OFlags::NOFOLLOW
    };
    let found = open_in(root, relative(&whole), Confine::InRoot, flags)?;
    let meta = fstat(&found)?;
    let mut stat = PathStat {
        name: path::base(&whole).to_owned(),
        size: u64::try_from(meta.st_size).unwrap_or(0),
        mode: meta.st_mode,
        mtime: (
            meta.st_mtime,
            u32::try_from(meta.st_mtime_nsec).unwrap_or(0),
        ),
        link_target: String::new(),
    };
    if stat.is_link() {
        stat.link_target = follow(root, &whole)?;
    }
    Ok(stat)
}

/// Follows the symbolic links of a path as far as they lead, by name: the answer is a path from
/// the root, also when there is nothing there. Whoever uses it has it resolved again.
fn follow(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<String> {
    let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => done.push(part),
        }
        let here = done.join("/");
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let Ok(found) = open_in(root, here.as_bytes(), Confine::InRoot, flags) else {
            continue;
        };
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = readlinkat(&found, "", Vec::new())?;
        let target = target.to_string_lossy().into_owned();
        done.pop();
        if target.starts_with('/') {
            done.clear();
        }
        left.extend(target.split('/').rev().map(str::to_owned));
    }
    Ok(format!("/{}", done.join("/")))
}

/// Docker's words for a directory on a read-only mount.
fn refuse_read_only(root: BorrowedFd<'_>, dir: &OwnedFd, config: &ContainerConfig) -> Result<()> {
    let failed = |e: Errno| EngineError::io("failed to look at the container's mounts")(e);
    let mount = |fd: BorrowedFd<'_>| {
        statx(fd, "", AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::MNT_ID)
            .map(|found| found.stx_mnt_id)
            .map_err(failed)
    };
    let on_root = mount(root)? == mount(dir.as_fd())?;
    if on_root && config.host.read_only {
        let text = "container rootfs is marked read-only";
        return Err(EngineError::Invalid(text.to_owned()));
    }
    let flags = fstatvfs(dir).map_err(failed)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        let text = "mounted volume is marked read-only";
        return Err(EngineError::Invalid(text.to_owned()));
    }
    Ok(())
}
