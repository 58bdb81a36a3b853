//! A container's tree of mounts while nothing of it runs: a mount namespace that nobody is in.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, OFlags, fstat};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};

use crate::mount::attach;
use crate::plan::Create;
use crate::walk::{Confine, ensure};

/// Attaches `root` at `place` and `mounts` beneath it, each at its path from the root, which is
/// made where it is missing. All of that happens in a mount namespace of its own; the host sees
/// nothing of it. The mounts stay together as long as the returned descriptor is open.
///
/// # Errors
/// What `unshare(2)`, `openat2(2)` and `move_mount(2)` answer.
pub fn assemble(
    root: BorrowedFd<'_>,
    place: BorrowedFd<'_>,
    mounts: &[(&CStr, BorrowedFd<'_>)],
) -> io::Result<OwnedFd> {
    // Only a thread of its own can leave for another namespace.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| in_own_namespace(root, place, mounts));
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    })
}

fn in_own_namespace(
    root: BorrowedFd<'_>,
    place: BorrowedFd<'_>,
    mounts: &[(&CStr, BorrowedFd<'_>)],
) -> io::Result<OwnedFd> {
    // The place, seen from the new namespace: a descriptor stays in the old one's mount.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    let path = std::fs::read_link(path)?;
    // SAFETY: flags are all that is passed, and only this thread, which shares its working
    // directory with nobody afterwards, moves.
    if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let here = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    attach(root, here.as_fd())?;
    for (path, mount) in mounts {
        let kind = FileType::from_raw_mode(fstat(mount)?.st_mode);
        let create = if kind == FileType::Directory {
            Create::Dir
        } else {
            Create::File
        };
        let target = ensure(root, path, Confine::InRoot, create)?;
        attach(*mount, target.as_fd())?;
    }
    crate::ns::own("mnt")
}

/// Clones a mount of another mount namespace as a detached mount: what is at `path` from that
/// namespace's root.
///
/// # Errors
/// What `setns(2)` and `open_tree(2)` answer.
pub fn clone_from(namespace: &OwnedFd, path: &CStr) -> io::Result<OwnedFd> {
    clone_confined(namespace, path, Confine::InRoot)
}

/// As [`clone_from`], of a path that must not leave that root, not even by way of a link.
///
/// # Errors
/// What `setns(2)`, `openat2(2)` and `open_tree(2)` answer.
pub fn clone_beneath(namespace: &OwnedFd, path: &CStr) -> io::Result<OwnedFd> {
    clone_confined(namespace, path, Confine::Beneath)
}

fn clone_confined(namespace: &OwnedFd, path: &CStr, confine: Confine) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: a flag is all that is passed; only this thread moves.
            if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
                return Err(io::Error::last_os_error());
            }
            crate::ns::set_ns(namespace.as_fd(), libc::CLONE_NEWNS)?;
            // After setns(2) the root is that of the namespace.
            let root = rustix::fs::open(
                "/",
                OFlags::PATH | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            let found = crate::walk::open(root.as_fd(), path, confine, OFlags::PATH)?;
            crate::mount::clone_tree(found.as_fd(), std::path::Path::new(""), false)
        });
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    })
}

/// Makes a detached mount the root, and all there is, of a mount namespace that nobody is in. Whoever
/// has the returned descriptor keeps the file system mounted, and can clone what is in it: out of a
/// detached mount only kernel 6.15 and later can.
///
/// # Errors
/// What `unshare(2)`, `move_mount(2)` and `pivot_root(2)` answer.
pub fn keep(mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: flags are all that is passed; only this thread, which shares its working
            // directory with nobody afterwards, moves.
            if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // Before the host's tree is out of reach.
            let own = || crate::ns::own("mnt");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private)?;
            let namespace = own()?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(mount, c"", CWD, c"/", flags)?;
            rustix::process::fchdir(mount)?;
            rustix::process::pivot_root(c".", c".")?;
            unmount(c".", UnmountFlags::DETACH)?;
            Ok(namespace)
        });
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;
    use crate::mount::new_fs;

    fn write(dir: BorrowedFd<'_>, name: &str) {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(dir, name, flags, rustix::fs::Mode::RWXU).unwrap();
    }

    #[test]
    fn a_file_system_is_kept_by_a_namespace_alone() {
        let before = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let made = new_fs(c"tmpfs", None, &[], 0).unwrap();
        rustix::fs::mkdirat(&made, "sub", rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::symlinkat("/", &made, "out").unwrap();
        let kept = keep(made.as_fd()).unwrap();
        drop(made);
        let one = clone_from(&kept, c"/").unwrap();
        write(one.as_fd(), "file");
        write(one.as_fd(), "sub/inner");
        drop(one);
        let sub = clone_beneath(&kept, c"sub").unwrap();
        assert!(rustix::fs::statat(&sub, "inner", rustix::fs::AtFlags::empty()).is_ok());
        for path in ["out", "sub/../..", "/sub", "none"] {
            let path = CString::new(path).unwrap();
            assert!(clone_beneath(&kept, &path).is_err(), "{path:?}");
        }
        let after = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert_eq!(before, after);
    }
}
