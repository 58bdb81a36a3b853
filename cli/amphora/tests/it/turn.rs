//! Cgroups are the machine's, so tests take turns, also those of several test programs.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());
/// The same between several programs: locked while a test runs.
const TURN_FILE: &str = "amphora-it.lock";

/// Held while a test runs.
#[derive(Debug)]
pub(crate) struct Turn {
    // The order matters: the file's lock goes first.
    _machine: File,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits until no other test runs.
    pub(crate) fn take() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = File::create(std::env::temp_dir().join(TURN_FILE)).expect("lock file");
        machine.lock().expect("lock");
        Self {
            _machine: machine,
            _turn: turn,
        }
    }
}
