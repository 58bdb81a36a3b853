//! Why a bundle cannot become a plan.

use std::io;

use amphora_spec::{Classify, ErrorKind};

/// Why a bundle cannot be validated, prepared or launched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The bundle is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The bundle asks for something that is not implemented.
    #[error("\"{field}\" is not supported{detail}")]
    Unsupported {
        /// The field of `config.json`.
        field: String,
        /// More about it, or nothing.
        detail: String,
    },
    /// A user or group is not in the image.
    #[error("{0}")]
    User(String),
    /// The kernel refused something.
    #[error("failed to {action}")]
    Kernel {
        /// What was tried, with its object.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The cgroup could not be used.
    #[error(transparent)]
    Cgroup(#[from] amphora_cgroup::CgroupError),
    /// The seccomp profile could not be compiled.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
    /// The module cannot be run; the text says which one and why.
    #[error("{0}")]
    Module(String),
}

impl ExecutorError {
    /// A field that is not supported.
    #[must_use]
    pub fn unsupported(field: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            detail: String::new(),
        }
    }

    /// Wraps the kernel's answer to an action, worded as it reads after "failed to".
    pub fn kernel<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Kernel {
            action,
            source: source.into(),
        }
    }
}

impl Classify for ExecutorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::User(_) | Self::Module(_) => ErrorKind::InvalidArgument,
            Self::Cgroup(error) => error.kind(),
            Self::Seccomp(error) => error.kind(),
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Kernel { source, .. } => amphora_spec::error::io_kind(source),
        }
    }
}
