//! Network namespaces made and entered by the calling thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open, openat};

use crate::mount::{NODEV, NOEXEC, NOSUID, new_fs};

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

/// A container's network namespace.
#[derive(Debug)]
pub struct ContainerNetns {
    /// The namespace.
    pub netns: OwnedFd,
    /// Through what its settings were made. To close it may take the kernel milliseconds: at best it
    /// is done when nobody waits.
    pub settings: Option<OwnedFd>,
}

/// Makes a network namespace with the settings every container has; the calling thread stays where
/// it is.
///
/// # Errors
/// What `unshare(2)` and `setns(2)` answer, or a setting that the kernel has and refuses.
pub fn container_netns() -> io::Result<ContainerNetns> {
    container_netns_with(|| Ok(())).map(|(made, ())| made)
}

/// As [`container_netns`], and has more made inside on the way.
///
/// # Errors
/// As [`container_netns`], or what `more` returns.
pub fn container_netns_with<T>(
    more: impl FnOnce() -> io::Result<T>,
) -> io::Result<(ContainerNetns, T)> {
    make_netns(|| {
        // In the host's own `/proc` the names below `sys/net` that were looked up stay, of every
        // namespace and all in one chain of the kernel's hash table: with a thousand containers each
        // lookup would go through a thousand of them.
        let settings = new_fs(c"proc", None, &[], NOSUID | NODEV | NOEXEC).ok();
        CONTAINER_SETTINGS
            .iter()
            .try_for_each(|(key, value)| set_if_there(settings.as_ref(), key, value))?;
        Ok((settings, more()?))
    })
    .map(|(netns, (settings, more))| (ContainerNetns { netns, settings }, more))
}

/// Makes a network namespace and returns it; the calling thread stays where it is.
///
/// # Errors
/// What `unshare(2)` and `setns(2)` answer.
pub fn new_netns() -> io::Result<OwnedFd> {
    make_netns(|| Ok(())).map(|(netns, ())| netns)
}

/// Makes a network namespace, and has it set up from inside.
fn make_netns<T>(set_up: impl FnOnce() -> io::Result<T>) -> io::Result<(OwnedFd, T)> {
    let home = current_netns()?;
    // SAFETY: a flag is all that is passed; only the calling thread moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = set_up().and_then(|held| Ok((current_netns()?, held)));
    set_ns(home.as_fd(), libc::CLONE_NEWNET)?;
    made
}

/// Writes a setting through a `/proc` of our own, or the host's.
fn set_if_there(proc: Option<&OwnedFd>, key: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match proc {
        Some(proc) => openat(proc, format!("sys/net/{key}"), flags, Mode::empty()),
        None => openat(CWD, format!("/proc/sys/net/{key}"), flags, Mode::empty()),
    };
    match file {
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
    set_ns(home.as_fd(), libc::CLONE_NEWNET)?;
    result
}
