//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, ErrorKind};

use crate::Version;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A file operation failed.
    #[error("failed to {action} \"{}\"", path.display())]
    Io {
        /// What was tried, for example `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a limit.
    #[error("failed to set {field}: writing \"{value}\" to \"{}\"", path.display())]
    Set {
        /// Field of the runtime specification.
        field: String,
        /// What was written.
        value: String,
        /// Where to.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The controller that a limit needs is not there.
    #[error("{field} needs the cgroup controller \"{controller}\", which is not available")]
    MissingController {
        /// Name of the controller.
        controller: String,
        /// Field of the runtime specification.
        field: String,
    },
    /// The kernel has no such limit.
    #[error("{field} is not supported by this kernel, which has no file \"{file}\"")]
    MissingFile {
        /// The file it would be written to.
        file: String,
        /// Field of the runtime specification.
        field: String,
    },
    /// A field that is not honoured on this cgroup version, or at all.
    #[error("{field} is not supported on cgroup {version}")]
    Unsupported {
        /// Field of the runtime specification.
        field: String,
        /// Version in use.
        version: Version,
    },
    /// A malformed field.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// Field of the runtime specification, or the argument.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody manages services here.
    #[error("--systemd-cgroup needs systemd, which does not run on this host")]
    NoSystemd(#[source] io::Error),
    /// The connection to systemd failed.
    #[error("failed to {action} systemd")]
    Bus {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// systemd refused.
    #[error("systemd refused {call}: {answer}")]
    Systemd {
        /// What it was asked for, and about what.
        call: String,
        /// Its answer.
        answer: String,
    },
    /// The cgroup exists already.
    #[error("cgroup \"{}\" exists already", .0.display())]
    Exists(PathBuf),
    /// The cgroup does not exist.
    #[error("cgroup \"{0}\" not found")]
    NotFound(String),
    /// No cgroup file system is mounted where it should be.
    #[error("no cgroup file system found at \"{}\"", .0.display())]
    NoCgroups(PathBuf),
    /// The kernel did not finish in time.
    #[error("timed out: {action} cgroup \"{}\"", path.display())]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
}

impl CgroupError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl Classify for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } | Self::Bus { source, .. } => io_kind(source),
            Self::Systemd { .. } => ErrorKind::FailedPrecondition,
            Self::Set { source, .. } => match source.raw_os_error() {
                Some(errno) if errno == rustix::io::Errno::BUSY.raw_os_error() => {
                    ErrorKind::FailedPrecondition
                }
                Some(errno)
                    if errno == rustix::io::Errno::INVAL.raw_os_error()
                        || errno == rustix::io::Errno::RANGE.raw_os_error() =>
                {
                    ErrorKind::InvalidArgument
                }
                _ => io_kind(source),
            },
            Self::MissingController { .. }
            | Self::MissingFile { .. }
            | Self::Unsupported { .. }
            | Self::NoSystemd(_)
            | Self::NoCgroups(_) => ErrorKind::Unsupported,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Exists(_) => ErrorKind::Conflict,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Timeout { .. } => ErrorKind::Unavailable,
        }
    }
}
