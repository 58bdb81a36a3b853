//! What a supervisor makes before it knows its container, while the engine prepares the rest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_names::{Place, Sockets};
use amphora_sys::base::Base;
use amphora_sys::{LaunchPlan, channel, ns};
use rustix::fs::{Mode, OFlags, open};

use crate::shared_base;
use crate::waiting::{NAMES, NAMES_ASIDE, NETNS};

/// What is needed for the start alone, and takes time to close: given back in the first quiet moment,
/// or with the process.
#[derive(Debug, Default)]
pub(crate) struct Early {
    /// What the container's mount namespace is cloned from; `None`: the host's is.
    pub(crate) base: Option<Base>,
    /// Whether somebody else holds it.
    borrowed: bool,
    /// Whether others may be using it.
    offered: bool,
    /// Through what the settings of the network namespace were made.
    #[expect(dead_code, reason = "held to be closed in its time")]
    settings: Option<OwnedFd>,
    /// What the container's queries for names arrive at.
    pub(crate) names: Option<Sockets>,
}

/// Makes it all.
pub(crate) fn make(socket: BorrowedFd<'_>) -> Early {
    let (settings, names) = netns(socket).unwrap_or_default();
    reset_oom_score();
    let shared = shared_base::find_asked();
    let borrowed = shared.is_some();
    Early {
        base: shared.or_else(|| Base::new().ok()),
        borrowed,
        offered: false,
        settings,
        names,
    }
}

/// What the arguments ask for.
fn asked(word: &str) -> bool {
    std::env::args().skip(2).any(|arg| arg == word)
}

/// Makes the network namespace that was asked for, with the sockets of its name server, and tells of
/// it.
fn netns(socket: BorrowedFd<'_>) -> Option<(Option<OwnedFd>, Option<Sockets>)> {
    if !asked(NETNS) {
        return None;
    }
    let place = match (asked(NAMES), asked(NAMES_ASIDE)) {
        (_, true) => Some(Place::Aside),
        (here, false) => here.then_some(Place::Here),
    };
    // Whoever does not listen any more hands nothing over either, and that is noticed.
    match ns::container_netns_with(|| place.map(Sockets::open).transpose()) {
        Ok((made, names)) => {
            let _told = channel::send(socket, &[0; 4], &[made.netns.as_fd()]);
            Some((made.settings, names))
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            let _told = channel::send(socket, &errno.to_le_bytes(), &[]);
            None
        }
    }
}

/// Born in an empty mount namespace, the child cannot reach the file that resets what it would inherit.
fn reset_oom_score() {
    if let Ok(file) = open(
        "/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        let _ = rustix::io::write(&file, b"0");
    }
}

impl Early {
    /// Has the plan use the base where that makes sense.
    pub(crate) fn used_by(mut self, plan: &mut LaunchPlan) -> Self {
        self.base = self.base.filter(|_| plan.enters_root());
        if self.base.is_some() {
            plan.cover_root();
        }
        self
    }

    /// What is kept once the start is over: the base, when the other supervisors of this engine have
    /// none.
    pub(crate) fn settled(self, run_dir: &Path) -> Self {
        let own = self.base.filter(|_| !self.borrowed);
        let base = own.filter(|base| self.offered || shared_base::offer(base, run_dir));
        Self {
            offered: base.is_some(),
            base,
            ..Self::default()
        }
    }

    /// Ends what [`Early::settled`] has kept.
    pub(crate) fn end(self, run_dir: &Path) {
        if let Some(base) = self.base.as_ref().filter(|_| self.offered) {
            shared_base::withdraw(base, run_dir);
        }
    }
}
