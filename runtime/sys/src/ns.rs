//! Network namespaces made and entered by the calling thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

pub(crate) fn own(kind: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the network namespace of the calling thread.
///
/// # Errors
/// When `/proc` is not there.
pub fn current_netns() -> io::Result<OwnedFd> {
    own("net")
}

/// Moves the calling thread into a namespace (`CLONE_NEW*` names the kind the caller expects).
///
/// # Errors
/// What `setns(2)` answers.
pub fn set_ns(ns: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers; the descriptor is borrowed for the call.
    let result = unsafe { libc::setns(ns.as_raw_fd(), kind) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes a network namespace and returns it; the calling thread stays where it is.
///
/// # Errors
/// What `unshare(2)` and `setns(2)` answer.
pub fn new_netns() -> io::Result<OwnedFd> {
    let home = current_netns()?;
    // SAFETY: a flag is all that is passed; only the calling thread moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = current_netns();
    set_ns(std::os::fd::AsFd::as_fd(&home), libc::CLONE_NEWNET)?;
    made
}

/// Runs `f` inside a network namespace and comes back.
///
/// # Errors
/// What `setns(2)` answers, or what `f` returns.
pub fn in_netns<T>(ns: BorrowedFd<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = current_netns()?;
    set_ns(ns, libc::CLONE_NEWNET)?;
    let result = f();
    set_ns(std::os::fd::AsFd::as_fd(&home), libc::CLONE_NEWNET)?;
    result
}
