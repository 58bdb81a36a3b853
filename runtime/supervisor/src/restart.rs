//! Restart policies: when a container runs again, and after how long. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::NANOS;

/// First pause before a restart.
const PAUSE_FIRST_NS: u64 = NANOS / 10;
/// Longest pause.
const PAUSE_MAX_NS: u64 = 60 * NANOS;
/// A run of this length begins with the first pause again.
const LONG_RUN_NS: u64 = 10 * NANOS;

/// When a container that has ended runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartKind {
    /// Never.
    #[default]
    No,
    /// Whatever its code.
    Always,
    /// Whatever its code, but not at boot when it was stopped by hand.
    UnlessStopped,
    /// When it failed.
    OnFailure,
}

impl RestartKind {
    /// All kinds with their names.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::No, "no"),
        (Self::Always, "always"),
        (Self::UnlessStopped, "unless-stopped"),
        (Self::OnFailure, "on-failure"),
    ];

    /// Returns Docker's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.map_or("no", |(_, name)| name)
    }
}

/// A restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub kind: RestartKind,
    /// Most restarts in a row; 0: no limit.
    pub max: u32,
}

impl RestartPolicy {
    /// Says whether there is a policy at all.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.kind != RestartKind::No
    }

    /// Says whether a container that ended with `code` after `restarts` restarts runs again.
    #[must_use]
    pub fn wants(&self, code: i32, restarts: u32) -> bool {
        let left = self.max == 0 || restarts < self.max;
        match self.kind {
            RestartKind::No => false,
            RestartKind::Always | RestartKind::UnlessStopped => true,
            RestartKind::OnFailure => code != 0 && left,
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.max > 0 {
            write!(f, ":{}", self.max)?;
        }
        Ok(())
    }
}

/// The pause before the next restart: 100 ms, doubled each time, at most a minute; the first one
/// again after a run of ten seconds.
#[must_use]
pub(crate) fn pause_ns(previous_ns: u64, ran_ns: u64) -> u64 {
    if previous_ns == 0 || ran_ns >= LONG_RUN_NS {
        PAUSE_FIRST_NS
    } else {
        previous_ns.saturating_mul(2).min(PAUSE_MAX_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_docker_s() {
        let policy = |kind, max| RestartPolicy { kind, max };
        assert!(!policy(RestartKind::No, 0).wants(1, 0));
        assert!(policy(RestartKind::Always, 0).wants(0, 1000));
        assert!(policy(RestartKind::UnlessStopped, 0).wants(0, 0));
        let failing = policy(RestartKind::OnFailure, 3);
        assert!(!failing.wants(0, 0));
        assert!(failing.wants(1, 2));
        assert!(!failing.wants(1, 3));
        assert!(policy(RestartKind::OnFailure, 0).wants(1, 99));
        assert_eq!(failing.to_string(), "on-failure:3");
        assert_eq!(
            policy(RestartKind::UnlessStopped, 0).to_string(),
            "unless-stopped"
        );
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_again() {
        let mut pause = 0;
        let mut all = Vec::new();
        for _ in 0..12 {
            pause = pause_ns(pause, NANOS);
            all.push(pause / 1_000_000);
        }
        assert_eq!(all[..5], [100, 200, 400, 800, 1600]);
        assert_eq!(all[9..], [51_200, 60_000, 60_000]);
        assert_eq!(pause_ns(pause, 10 * NANOS), PAUSE_FIRST_NS);
    }
}
