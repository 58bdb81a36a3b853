//! User namespaces: made with their maps, and asked for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::pidfd::{Wait, wait};
use crate::raw::{self, CloneArgs, fork_with_pidfd};

/// The contents of a namespace's files of maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maps {
    /// `uid_map`: lines of first id inside, first id outside, number of ids.
    pub uids: String,
    /// `gid_map`.
    pub gids: String,
    /// Whether supplementary groups may be changed inside.
    pub groups: bool,
}

/// Whether this program was started as root of the namespace that it runs in. Asks nobody: the kernel
/// has told it.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: reads what the kernel has passed to the program.
    unsafe { libc::getauxval(libc::AT_EUID) == 0 }
}

/// A process that lends its namespace as long as this lives.
struct Lender {
    pid: i32,
    pidfd: OwnedFd,
    /// Its end of file ends the process.
    release: Option<OwnedFd>,
}

impl Lender {
    /// Makes one in a new user namespace, or in that of `join`.
    fn new(join: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, told) = pipe_with(PipeFlags::CLOEXEC)?;
        let new = if join.is_none() {
            libc::CLONE_NEWUSER as u64
        } else {
            0
        };
        let args = CloneArgs {
            flags: new,
            ..CloneArgs::default()
        };
        let inside = || {
            drop_raw(&write);
            let joined = join.is_none_or(|ns| {
                // Somebody may be in there already.
                crate::child::hide();
                let joined = crate::child::set_ns(ns, libc::CLONE_NEWUSER).is_ok();
                crate::child::hide();
                joined
            });
            if joined {
                let _ = rustix::io::write(&told, &[1]);
                let _ = rustix::io::read(&read, &mut [0u8; 1]);
            }
            raw::exit_now(0)
        };
        // SAFETY: no memory is shared; the child only makes system calls and ends in an exit.
        let (pid, pidfd) = unsafe { fork_with_pidfd(&args, inside) }?;
        drop(told);
        let lender = Self {
            pid,
            pidfd,
            release: Some(write),
        };
        loop {
            match rustix::io::read(&ready, &mut [0u8; 1]) {
                Ok(1) => return Ok(lender),
                Err(Errno::INTR) => {}
                Ok(_) => return Err(Errno::PERM.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(self.file(name), flags, Mode::empty())?;
        // The kernel takes a map in one piece.
        if rustix::io::write(&file, text.as_bytes())? == text.len() {
            Ok(())
        } else {
            Err(Errno::IO.into())
        }
    }

    fn namespace(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(open(self.file("ns/user"), flags, Mode::empty())?)
    }
}

/// In a forked child: the parent's object stays as it is.
fn drop_raw(fd: &OwnedFd) {
    let number = std::os::fd::AsRawFd::as_raw_fd(fd).unsigned_abs();
    let _ = raw::close_between(number, number);
}

impl Drop for Lender {
    fn drop(&mut self) {
        self.release = None;
        let _ = wait(self.pidfd.as_fd(), Wait::Block);
    }
}

/// Makes a user namespace. `write_maps` may leave writing its maps to somebody else, who is told its
/// process.
///
/// # Errors
/// What `clone3(2)` and the files of maps answer.
pub fn make(
    maps: &Maps,
    write_maps: Option<&mut dyn FnMut(i32) -> io::Result<()>>,
) -> io::Result<OwnedFd> {
    let lender = Lender::new(None)?;
    match write_maps {
        Some(write) => write(lender.pid)?,
        None => {
            if !maps.groups {
                lender.write("setgroups", "deny")?;
            }
            lender.write("uid_map", &maps.uids)?;
            lender.write("gid_map", &maps.gids)?;
        }
    }
    lender.namespace()
}

/// Reads the maps of a user namespace, as the caller sees the ids outside.
///
/// # Errors
/// When it cannot be joined.
pub fn maps(namespace: BorrowedFd<'_>) -> io::Result<Maps> {
    let lender = Lender::new(Some(namespace))?;
    let read = |name| std::fs::read_to_string(lender.file(name));
    Ok(Maps {
        uids: read("uid_map")?,
        gids: read("gid_map")?,
        groups: read("setgroups")?.trim() == "allow",
    })
}
