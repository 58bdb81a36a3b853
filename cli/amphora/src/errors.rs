//! Errors as Docker prints them, and exit codes as Docker returns them.

use amphora_engine::EngineError;
use amphora_spec::{Classify, ErrorKind, error::chain};

/// What a command ends with when it fails.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine said no.
    Engine(EngineError),
    /// The command line is wrong: text and usage hint.
    Usage(String),
    /// Already reported; only the code is left.
    Code(u8),
    /// What Docker's daemon would find wrong, not its client.
    Daemon(String),
    /// Reading or writing on the caller's side failed.
    Local(String),
    /// A text with an exit code of its own.
    Status(u8, String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Renders an engine error the way a Docker client shows a daemon's.
pub(crate) fn daemon_text(error: &EngineError) -> String {
    match error {
        EngineError::NoSuchObject(_) => format!("Error: {}", chain(error)),
        _ => format!("Error response from daemon: {}", chain(error)),
    }
}

/// Exit code of `run`, `create` and `start` for an engine error.
pub(crate) fn run_code(error: &EngineError) -> u8 {
    match error.kind() {
        ErrorKind::CommandNotFound => 127,
        ErrorKind::CommandNotExecutable => 126,
        _ => 125,
    }
}

/// Reports what is wrong with a command line; with a flag, with how the command is called.
fn usage_error(text: &str) {
    if crate::commands::usage::is_about_a_flag(text) {
        let args: Vec<_> = std::env::args_os().collect();
        crate::commands::usage::flag_error(text, &args);
    } else {
        crate::ui::error(text);
    }
}

/// Reports a failure of a plain command and returns its exit code.
pub(crate) fn report(failure: &Failure) -> u8 {
    match failure {
        Failure::Engine(error) => {
            crate::ui::error(&daemon_text(error));
            1
        }
        Failure::Usage(text) => {
            usage_error(text);
            125
        }
        Failure::Daemon(text) => {
            crate::ui::error(&format!("Error response from daemon: {text}"));
            1
        }
        Failure::Local(text) => {
            crate::ui::error(text);
            1
        }
        Failure::Status(code, text) => {
            crate::ui::error(text);
            *code
        }
        Failure::Code(code) => *code,
    }
}
