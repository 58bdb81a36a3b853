//! An empty mount namespace to be cloned from: a child born out of it copies one mount instead of
//! the host's whole table, and has nothing to detach before it runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};

use crate::mount::{NODEV, NOEXEC, NOSUID, RDONLY, new_fs};
use crate::ns::set_ns;
use crate::raw;

/// An empty mount namespace and the way back out of it, for a process of one thread.
#[derive(Debug)]
pub struct Base {
    empty: OwnedFd,
    home: OwnedFd,
    /// Root and working directory of the caller: joining a namespace forgets both.
    root: OwnedFd,
    cwd: OwnedFd,
}

impl Base {
    /// Makes one. The caller is back in its own namespace in the end, also on failure.
    ///
    /// # Errors
    /// What `unshare(2)`, the mount calls and `setns(2)` answer.
    pub fn new() -> io::Result<Self> {
        let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(c"/", dir, Mode::empty())?;
        let cwd = open(c".", dir, Mode::empty())?;
        let proc = open(c"/proc/thread-self", dir, Mode::empty())?;
        let namespace = || {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(&proc, c"ns/mnt", flags, Mode::empty())
        };
        let home = namespace()?;
        raw::unshare(libc::CLONE_NEWNS as u64)?;
        let emptied = empty_root().and_then(|()| Ok(namespace()?));
        let way = Way {
            home: &home,
            root: &root,
            cwd: &cwd,
        };
        way.back()?;
        Ok(Self {
            empty: emptied?,
            home,
            root,
            cwd,
        })
    }

    /// Runs `f` inside the empty namespace; beside its result stands whether the caller came back.
    ///
    /// # Errors
    /// What `setns(2)` answers on the way there.
    pub(crate) fn inside<T>(&self, f: impl FnOnce() -> T) -> io::Result<(T, io::Result<()>)> {
        set_ns(self.empty.as_fd(), libc::CLONE_NEWNS)?;
        let result = f();
        let way = Way {
            home: &self.home,
            root: &self.root,
            cwd: &self.cwd,
        };
        Ok((result, way.back()))
    }
}

struct Way<'a> {
    home: &'a OwnedFd,
    root: &'a OwnedFd,
    cwd: &'a OwnedFd,
}

impl Way<'_> {
    fn back(&self) -> io::Result<()> {
        set_ns(self.home.as_fd(), libc::CLONE_NEWNS)?;
        rustix::process::fchdir(self.root)?;
        rustix::process::chroot(c".")?;
        Ok(rustix::process::fchdir(self.cwd)?)
    }
}

/// Leaves nothing but one read-only empty directory in the caller's mount namespace.
fn empty_root() -> io::Result<()> {
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let attr = RDONLY | NOSUID | NODEV | NOEXEC;
    let root = new_fs(c"tmpfs", Some("base"), &[], attr)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, c"", CWD, c"/", flags)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(c".", c".")?;
    Ok(unmount(c".", UnmountFlags::DETACH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_holds_one_mount_and_the_caller_comes_back() {
        // Namespaces belong to a thread only once it shares neither root nor directory.
        std::thread::spawn(|| {
            raw::unshare(libc::CLONE_FS as u64).unwrap();
            std::env::set_current_dir("/proc").unwrap();
            let before = std::fs::read_to_string("thread-self/mountinfo").unwrap();
            let proc = open(c"/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let base = Base::new().unwrap();
            let read = |file| {
                let fd = openat(&proc, file, OFlags::RDONLY, Mode::empty()).unwrap();
                std::io::read_to_string(std::fs::File::from(fd)).unwrap()
            };
            let inside = base.inside(|| {
                (
                    read("thread-self/mountinfo"),
                    open(c"/proc", OFlags::PATH, Mode::empty()).is_err(),
                )
            });
            let ((table, gone), back) = inside.unwrap();
            back.unwrap();
            assert_eq!(table.lines().count(), 1, "{table}");
            assert!(gone, "the host's directories are out of reach");
            assert_eq!(
                std::fs::read_to_string("thread-self/mountinfo").unwrap(),
                before
            );
            assert_eq!(
                std::env::current_dir().unwrap(),
                std::path::Path::new("/proc")
            );
        })
        .join()
        .unwrap();
    }
}
