//! What can go wrong, on both sides of the socket.

use std::io;
use std::path::PathBuf;

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, ErrorKind};

/// Why a supervisor could not be started, reached or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// A file operation failed.
    #[error("failed to {action} \"{}\"", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A kernel call on something without a path failed.
    #[error("failed to {0}")]
    Kernel(&'static str, #[source] io::Error),
    /// A file or message is not what it should be.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// Which record or message.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The container's process could not be launched; nothing of it is left.
    #[error("{message}")]
    Launch {
        /// The failed step, with its cause.
        message: String,
        /// The error number, 0 when there is none.
        errno: i32,
        /// The class, from which the exit codes 125, 126 and 127 follow.
        kind: ErrorKind,
    },
    /// The supervisor ended before it answered.
    #[error("the supervisor (pid {pid}) ended before the container was started")]
    Died {
        /// Its process id.
        pid: i32,
    },
    /// The other side of a connection is gone.
    #[error("lost the connection to the supervisor of \"{}\"", .0.display())]
    Lost(PathBuf),
    /// The supervisor refused a request.
    #[error("the supervisor refused: {0}")]
    Refused(String),
    /// No supervisor runs for this container, and it left no exit record.
    #[error("no supervisor runs in \"{}\"", .0.display())]
    NotRunning(PathBuf),
}

impl SupervisorError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    pub(crate) fn kernel(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |e| Self::Kernel(action, e.into())
    }

    /// Returns the error number at the root, 0 when there is none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::File { source, .. } | Self::Kernel(_, source) => {
                source.raw_os_error().unwrap_or(0)
            }
            Self::Launch { errno, .. } => *errno,
            _ => 0,
        }
    }
}

impl Classify for SupervisorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } | Self::Kernel(_, source) => io_kind(source),
            Self::Malformed { .. } => ErrorKind::DataLoss,
            Self::Launch { kind, .. } => *kind,
            Self::Died { .. } => ErrorKind::Internal,
            Self::Lost(_) => ErrorKind::Unavailable,
            Self::Refused(_) => ErrorKind::FailedPrecondition,
            Self::NotRunning(_) => ErrorKind::NotFound,
        }
    }
}

const KINDS: [ErrorKind; 12] = [
    ErrorKind::Internal,
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::InvalidArgument,
    ErrorKind::FailedPrecondition,
    ErrorKind::Unavailable,
    ErrorKind::PermissionDenied,
    ErrorKind::ResourceExhausted,
    ErrorKind::Unsupported,
    ErrorKind::DataLoss,
    ErrorKind::CommandNotFound,
    ErrorKind::CommandNotExecutable,
];

/// The number of a class on the wire; unknown ones travel as `Internal`.
pub(crate) fn kind_number(kind: ErrorKind) -> u8 {
    KINDS
        .iter()
        .position(|k| *k == kind)
        .and_then(|i| u8::try_from(i).ok())
        .unwrap_or(0)
}

/// The class behind a number on the wire.
pub(crate) fn kind_from(number: u8) -> ErrorKind {
    KINDS
        .get(usize::from(number))
        .copied()
        .unwrap_or(ErrorKind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_the_wire() {
        for kind in KINDS {
            assert_eq!(kind_from(kind_number(kind)), kind);
        }
        assert_eq!(kind_from(200), ErrorKind::Internal);
    }
}
