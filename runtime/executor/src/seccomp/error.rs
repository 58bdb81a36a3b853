//! Why a profile is refused.

use amphora_spec::{Classify, ErrorKind};

/// Why a seccomp profile cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A field has a value that means nothing.
    #[error("invalid {field}: \"{value}\"")]
    Invalid {
        /// The field.
        field: String,
        /// Its value.
        value: String,
    },
    /// A field or value that is understood and not supported.
    #[error("{field} \"{value}\" is not supported")]
    Unsupported {
        /// The field.
        field: String,
        /// Its value.
        value: String,
    },
    /// The profile is not JSON of the expected shape.
    #[error("failed to parse the seccomp profile")]
    Parse(#[from] serde_json::Error),
    /// The program would be longer than the kernel takes.
    #[error("the seccomp profile needs {0} instructions, more than the kernel takes")]
    TooLong(usize),
}

impl SeccompError {
    pub(super) fn invalid(field: impl Into<String>, value: impl std::fmt::Display) -> Self {
        Self::Invalid {
            field: field.into(),
            value: value.to_string(),
        }
    }

    pub(super) fn unsupported(field: impl Into<String>, value: impl std::fmt::Display) -> Self {
        Self::Unsupported {
            field: field.into(),
            value: value.to_string(),
        }
    }
}

impl Classify for SeccompError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Invalid { .. } | Self::Parse(_) | Self::TooLong(_) => ErrorKind::InvalidArgument,
        }
    }
}
