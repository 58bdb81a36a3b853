//! The moments at which a start is timed.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// A moment of a start. Marks with `Child` are set in the container's child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Mark {
    Begin,
    Cgroup,
    Overlay,
    Cloned,
    ChildRuns,
    ChildRoot,
    ChildProc,
    ChildDev,
    ChildMasked,
    ChildNet,
    ChildSecured,
    LinkMade,
    Reaped,
    Closed,
    CgroupGone,
    DirsGone,
}

const MARKS: usize = Mark::DirsGone as usize + 1;

/// Nanoseconds of the monotonic clock.
#[must_use]
pub(super) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// The marks of one start; parent and child both write here.
#[derive(Debug, Default)]
pub(super) struct Marks([AtomicU64; MARKS]);

impl Marks {
    pub(super) fn set(&self, mark: Mark) {
        if let Some(slot) = self.0.get(mark as usize) {
            slot.store(now_ns(), Ordering::Relaxed);
        }
    }

    fn get(&self, mark: Mark) -> u64 {
        self.0
            .get(mark as usize)
            .map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    pub(super) fn clear(&self) {
        for slot in &self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn times(&self) -> Times {
        Times(Stage::ALL.map(|stage| {
            let (from, to, _) = stage.span();
            self.get(to).saturating_sub(self.get(from))
        }))
    }
}

/// A span between two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "`Stage::label` says it")]
pub enum Stage {
    Cgroup,
    Overlay,
    Clone,
    ChildRuns,
    Root,
    Proc,
    Dev,
    Masked,
    Network,
    Secure,
    ExecToReap,
    Link,
    Ready,
    Close,
    CgroupRemove,
    DirsRemove,
    Total,
    TotalClean,
}

impl Stage {
    /// Every stage, in the order of a report.
    pub const ALL: [Self; 18] = [
        Self::Cgroup,
        Self::Overlay,
        Self::Clone,
        Self::ChildRuns,
        Self::Root,
        Self::Proc,
        Self::Dev,
        Self::Masked,
        Self::Network,
        Self::Secure,
        Self::ExecToReap,
        Self::Link,
        Self::Ready,
        Self::Close,
        Self::CgroupRemove,
        Self::DirsRemove,
        Self::Total,
        Self::TotalClean,
    ];

    fn span(self) -> (Mark, Mark, &'static str) {
        match self {
            Self::Cgroup => (Mark::Begin, Mark::Cgroup, "cgroup: mkdir, open, tree clone"),
            Self::Overlay => (Mark::Cgroup, Mark::Overlay, "overlay: upper, work, mount"),
            Self::Clone => (Mark::Overlay, Mark::Cloned, "base + clone3, back in parent"),
            Self::ChildRuns => (Mark::Overlay, Mark::ChildRuns, "base + clone3, child runs"),
            Self::Root => (Mark::ChildRuns, Mark::ChildRoot, "root switch"),
            Self::Proc => (Mark::ChildRoot, Mark::ChildProc, "proc, sysfs, cgroup view"),
            Self::Dev => (Mark::ChildProc, Mark::ChildDev, "dev, pts, shm, mqueue"),
            Self::Masked => (
                Mark::ChildDev,
                Mark::ChildMasked,
                "read-only and masked paths",
            ),
            Self::Network => (
                Mark::ChildMasked,
                Mark::ChildNet,
                "network: wait and configure",
            ),
            Self::Secure => (
                Mark::ChildNet,
                Mark::ChildSecured,
                "host name, caps, seccomp",
            ),
            Self::ExecToReap => (Mark::ChildSecured, Mark::Reaped, "exec, run, exit, reap"),
            Self::Link => (Mark::Cloned, Mark::LinkMade, "(beside the child) veth"),
            Self::Ready => (Mark::Begin, Mark::ChildSecured, "=> ready to exec"),
            Self::Close => (Mark::Reaped, Mark::Closed, "close overlay"),
            Self::CgroupRemove => (Mark::Closed, Mark::CgroupGone, "cgroup rmdir"),
            Self::DirsRemove => (Mark::CgroupGone, Mark::DirsGone, "remove upper, work"),
            Self::Total => (Mark::Begin, Mark::Reaped, "TOTAL start to reaped"),
            Self::TotalClean => (Mark::Begin, Mark::DirsGone, "TOTAL with clean-up"),
        }
    }

    /// What the stage covers.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.span().2
    }
}

/// How long each stage took, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times([u64; Stage::ALL.len()]);

impl Times {
    /// Nanoseconds of one stage; 0 when it did not happen.
    #[must_use]
    pub fn get(&self, stage: Stage) -> u64 {
        self.0.get(stage as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_listed_in_the_order_of_their_numbers() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
        }
    }

    #[test]
    fn a_span_is_the_difference_of_its_marks() {
        let marks = Marks::default();
        marks.set(Mark::Begin);
        marks.set(Mark::Reaped);
        assert!(marks.times().get(Stage::Total) < 1_000_000_000);
        marks.clear();
        assert_eq!(marks.times().get(Stage::Total), 0);
    }
}
