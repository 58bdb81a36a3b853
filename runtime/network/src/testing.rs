//! Faults for tests: feature `testing`, never in the shipped program.

use std::sync::atomic::Ordering;

use crate::error::{NetworkError, Result};
use crate::networks::Networks;

impl Networks {
    /// Makes the n-th effect from now on (from 0) fail.
    pub fn fail_at(&self, step: usize) {
        self.steps.store(0, Ordering::Relaxed);
        self.fail_at.store(step, Ordering::Relaxed);
    }

    pub(crate) fn step(&self) -> Result<()> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        if step == self.fail_at.load(Ordering::Relaxed) {
            return Err(NetworkError::Injected(step));
        }
        Ok(())
    }
}
