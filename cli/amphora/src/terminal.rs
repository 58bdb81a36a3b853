//! The caller's terminal: raw while a container has it, put right whatever happens.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::errors::{Failure, Outcome};
use crate::ui;

/// Standard input in raw mode, until this goes: by return, by failure, by panic. Signals that would
/// end the process meanwhile are held back by whoever has one (`ProxySignals`).
#[derive(Debug)]
pub(crate) struct RawMode {
    saved: Termios,
}

impl RawMode {
    /// Makes the terminal on standard input raw; `None` when there is none.
    pub(crate) fn enter() -> Option<Self> {
        let saved = tcgetattr(io::stdin()).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { saved })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that went away needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.saved);
    }
}

/// Rows and columns of the caller's terminal, when there is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout())
        .or_else(|_| tcgetwinsize(io::stdin()))
        .ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Docker's check: a container's terminal is not fed from something that is none.
pub(crate) fn check(feeds: bool, tty: bool) -> Outcome {
    if feeds && tty && !io::stdin().is_terminal() {
        ui::error("the input device is not a TTY");
        return Err(Failure::Code(1));
    }
    Ok(())
}
