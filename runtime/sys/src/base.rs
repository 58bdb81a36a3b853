//! An empty mount namespace to be cloned from: a child born out of it copies one mount instead of
//! the host's whole table, and has nothing to detach before it runs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

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
    way: Way,
}

/// The way back to the caller's namespace.
#[derive(Debug)]
struct Way {
    home: OwnedFd,
    /// Root and working directory of the caller: joining a namespace forgets both.
    root: OwnedFd,
    cwd: OwnedFd,
}

const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Where another process holds a [`Base`] of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasePlace {
    /// The process.
    pub pid: u32,
    /// Its descriptor of the namespace.
    pub fd: i32,
    /// The namespace's number, which the kernel never gives again while it runs.
    pub id: u64,
}

impl Base {
    /// Makes one. The caller is back in its own namespace in the end, also on failure.
    ///
    /// # Errors
    /// What `unshare(2)`, the mount calls and `setns(2)` answer.
    pub fn new() -> io::Result<Self> {
        // Inside there is no `/proc` to ask.
        let proc = open(c"/proc/thread-self", DIR, Mode::empty())?;
        let way = Way::from(&proc)?;
        raw::unshare(libc::CLONE_NEWNS as u64)?;
        let emptied = empty_root().and_then(|()| namespace_of(&proc));
        way.back()?;
        Ok(Self {
            empty: emptied?,
            way,
        })
    }

    /// Takes the one of another process: to make one of its own, the kernel has to go through all
    /// processes of the host.
    ///
    /// # Errors
    /// When it is not there, or is another namespace.
    pub fn shared(place: &BasePlace) -> io::Result<Self> {
        let path = format!("/proc/{}/fd/{}", place.pid, place.fd);
        let target = rustix::fs::readlink(&path, Vec::new())?;
        if !target.as_bytes().starts_with(b"mnt:[") {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let empty = open(path, flags, Mode::empty())?;
        if raw::mount_namespace_id(empty.as_fd())? != place.id {
            return Err(io::ErrorKind::NotFound.into());
        }
        let proc = open(c"/proc/thread-self", DIR, Mode::empty())?;
        Ok(Self {
            empty,
            way: Way::from(&proc)?,
        })
    }

    /// Where others find it while the calling process holds it.
    ///
    /// # Errors
    /// When the kernel has no numbers for mount namespaces (before 6.11).
    pub fn place(&self) -> io::Result<BasePlace> {
        Ok(BasePlace {
            pid: std::process::id(),
            fd: self.empty.as_raw_fd(),
            id: raw::mount_namespace_id(self.empty.as_fd())?,
        })
    }

    /// Runs `f` inside the empty namespace; beside its result stands whether the caller came back.
    ///
    /// # Errors
    /// What `setns(2)` answers on the way there.
    pub(crate) fn inside<T>(&self, f: impl FnOnce() -> T) -> io::Result<(T, io::Result<()>)> {
        set_ns(self.empty.as_fd(), libc::CLONE_NEWNS)?;
        let result = f();
        Ok((result, self.way.back()))
    }
}

impl Way {
    fn from(process: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            home: namespace_of(process)?,
            root: open(c"/", DIR, Mode::empty())?,
            cwd: open(c".", DIR, Mode::empty())?,
        })
    }

    fn back(&self) -> io::Result<()> {
        set_ns(self.home.as_fd(), libc::CLONE_NEWNS)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(c".")?;
        Ok(rustix::process::fchdir(&self.cwd)?)
    }
}

fn namespace_of(process: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(process, c"ns/mnt", flags, Mode::empty())?)
}

/// Leaves nothing but one read-only empty directory in the caller's mount namespace.
fn empty_root() -> io::Result<()> {
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let attr = RDONLY | NOSUID | NODEV | NOEXEC;
    // Nothing can be made in it, whoever finds a way to make it writable.
    let options = [("nr_inodes", Some("1"))];
    let root = new_fs(c"tmpfs", Some("base"), &options, attr)?;
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
            let place = base.place().unwrap();
            let shared = Base::shared(&place).unwrap();
            assert_eq!(shared.place().unwrap().id, place.id);
            let other = BasePlace { id: 1, ..place };
            assert!(Base::shared(&other).is_err(), "another namespace");
            let fd = proc.as_raw_fd();
            assert!(
                Base::shared(&BasePlace { fd, ..place }).is_err(),
                "no namespace"
            );
            drop(base);
            assert!(Base::shared(&place).is_err(), "nobody holds it there");
            let ((table, _), back) = shared
                .inside(|| (read("thread-self/mountinfo"), ()))
                .unwrap();
            back.unwrap();
            assert_eq!(table.lines().count(), 1, "{table}");
        })
        .join()
        .unwrap();
    }
}
