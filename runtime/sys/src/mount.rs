//! Detached mounts: made, configured and cloned without touching any mount table
//! (`fsopen`/`fsmount`, `open_tree`, kernel 5.2; `mount_setattr`, kernel 5.12).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub attr_set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub attr_clr: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// User namespace for `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// `MOUNT_ATTR_RDONLY`.
pub const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const NOEXEC: u64 = 0x8;

/// `MOUNT_ATTR_IDMAP`.
pub const IDMAP: u64 = 0x10_0000;

/// Changes the attributes of the mount (recursively: of the whole tree) that `mount` refers to.
///
/// # Errors
/// What `mount_setattr(2)` answers.
pub fn set_attr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string, `attr` outlives the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Clones the mount at `path` below `dir` as a detached, private mount (a bind mount in the
/// making); `recursive` takes the mounts below it along. `path` may be empty for `dir` itself.
///
/// # Errors
/// What `open_tree(2)` and `mount_setattr(2)` answer.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    clone_tree_with(dir, path, recursive, libc::MS_PRIVATE)
}

/// As [`clone_tree`], with another propagation (`MS_SLAVE`, `MS_SHARED`, …) than private.
///
/// # Errors
/// What `open_tree(2)` and `mount_setattr(2)` answer.
pub fn clone_tree_with(
    dir: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
    propagation: u64,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(dir, path, flags)?;
    set_attr(
        tree.as_fd(),
        recursive,
        &MountAttr {
            propagation,
            ..MountAttr::default()
        },
    )?;
    Ok(tree)
}

/// Makes a detached mount of a new file system instance. Options are `key=value` or flags.
///
/// # Errors
/// What `fsopen`, `fsconfig` and `fsmount` answer.
pub fn new_fs(
    fstype: &CStr,
    source: Option<&str>,
    options: &[(&str, Option<&str>)],
    attr: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(mount_new(context.as_fd(), source, options, attr)?)
}

/// As [`new_fs`]; what the kernel has to say beside its error number is part of the error.
///
/// # Errors
/// What `fsopen`, `fsconfig` and `fsmount` answer.
pub fn new_fs_told(
    fstype: &CStr,
    source: Option<&str>,
    options: &[(&str, Option<&str>)],
    attr: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount_new(context.as_fd(), source, options, attr).map_err(|errno| {
        let error = io::Error::from(errno);
        match said(context.as_fd()) {
            Some(said) => io::Error::new(error.kind(), Told { errno, said }),
            None => error,
        }
    })
}

/// Configures and mounts what `context` is about.
fn mount_new(
    context: BorrowedFd<'_>,
    source: Option<&str>,
    options: &[(&str, Option<&str>)],
    attr: u64,
) -> rustix::io::Result<OwnedFd> {
    if let Some(source) = source {
        fsconfig_set_string(context, "source", source)?;
    }
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, *key, *value)?,
            None => fsconfig_set_flag(context, *key)?,
        }
    }
    fsconfig_create(context)?;
    let attr = MountAttrFlags::from_bits_retain(u32::try_from(attr).unwrap_or(0));
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

/// An error with the kernel's own words.
#[derive(Debug)]
struct Told {
    errno: rustix::io::Errno,
    said: String,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.errno.to_string();
        // Its number would part the two.
        let words = text.split(" (os error").next().unwrap_or(&text);
        write!(f, "{words} ({})", self.said)
    }
}

impl std::error::Error for Told {}

/// The last error in the log of a file system context: `e ` and a text.
fn said(context: BorrowedFd<'_>) -> Option<String> {
    let mut line = [0; 512];
    let mut last = None;
    while let Ok(len) = rustix::io::read(context, &mut line[..]) {
        let text = String::from_utf8_lossy(line.get(..len)?).into_owned();
        let text = text.strip_prefix("e ").map(|t| t.trim_end().to_owned());
        last = text.or(last);
    }
    last
}

/// The writable part of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// Upper directory.
    pub upper: &'a Path,
    /// Work directory, on the same file system.
    pub work: &'a Path,
    /// No sync at unmount; for containers whose writable layer is thrown away.
    pub volatile: bool,
}

/// Mounts an overlay, detached. `lowers` are directories, topmost first (`lowerdir+`, kernel 6.7,
/// takes any number up to the kernel's 500).
///
/// # Errors
/// What `fsopen`, `fsconfig` and `fsmount` answer.
pub fn overlay(lowers: &[impl AsRef<Path>], upper: Option<Upper<'_>>) -> io::Result<OwnedFd> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| fsconfig_set_string(context.as_fd(), key, value);
    set("source", Path::new("amphora"))?;
    for lower in lowers {
        set("lowerdir+", lower.as_ref())?;
    }
    if let Some(upper) = upper {
        set("upperdir", upper.upper)?;
        set("workdir", upper.work)?;
        if upper.volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Attaches a detached mount at the place `target` refers to.
///
/// # Errors
/// What `move_mount(2)` answers.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}
