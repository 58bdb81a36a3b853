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

/// Settings of every container's network namespace, below `/proc/sys/net`.
const CONTAINER_SETTINGS: [(&str, &str); 3] = [
    // Containers do not believe their neighbours' router advertisements.
    ("ipv6/conf/default/accept_ra", "0"),
    // As Docker has it: any user may ping and listen on any port inside.
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];

/// Makes a network namespace with the settings every container has, and returns it; the calling
/// thread stays where it is.
///
/// # Errors
/// What `unshare(2)` and `setns(2)` answer, or a setting that the kernel has and refuses.
pub fn container_netns() -> io::Result<OwnedFd> {
    make_netns(&CONTAINER_SETTINGS)
}

/// Makes a network namespace and returns it; the calling thread stays where it is.
///
/// # Errors
/// What `unshare(2)` and `setns(2)` answer.
pub fn new_netns() -> io::Result<OwnedFd> {
    make_netns(&[])
}

fn make_netns(settings: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let home = current_netns()?;
    // SAFETY: a flag is all that is passed; only the calling thread moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = settings
        .iter()
        .try_for_each(|(key, value)| set_if_there(key, value))
        .and_then(|()| current_netns());
    set_ns(std::os::fd::AsFd::as_fd(&home), libc::CLONE_NEWNET)?;
    made
}

fn set_if_there(key: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match open(format!("/proc/sys/net/{key}"), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        file => Ok(rustix::io::write(file?, value.as_bytes()).map(drop)?),
    }
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
