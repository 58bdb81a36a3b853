//! What a supervisor makes before it knows its container, while the engine prepares the rest.

use std::os::fd::{AsFd, BorrowedFd};

use amphora_sys::base::Base;
use amphora_sys::{LaunchPlan, channel, ns};
use rustix::fs::{Mode, OFlags, open};

use crate::waiting::NETNS;

/// Makes the network namespace that was asked for, and tells of it.
pub(crate) fn netns(socket: BorrowedFd<'_>) {
    if !std::env::args().skip(2).any(|arg| arg == NETNS) {
        return;
    }
    // Whoever does not listen any more hands nothing over either, and that is noticed.
    let _told = match ns::container_netns() {
        Ok(netns) => channel::send(socket, &[0; 4], &[netns.as_fd()]),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            channel::send(socket, &errno.to_le_bytes(), &[])
        }
    };
}

/// Makes the empty mount namespace that the container's is cloned from; `None`: the host's is.
pub(crate) fn base() -> Option<Base> {
    // Born there, the child cannot reach the file that resets what it would inherit.
    if let Ok(file) = open(
        "/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        let _ = rustix::io::write(&file, b"0");
    }
    Base::new().ok()
}

/// Has the plan use the base where that makes sense.
pub(crate) fn use_base(plan: &mut LaunchPlan, base: Option<Base>) -> Option<Base> {
    let base = base.filter(|_| plan.enters_root());
    if base.is_some() {
        plan.cover_root();
    }
    base
}
