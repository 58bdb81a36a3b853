//! What can go wrong in the engine, in Docker's words where Docker has them.

use std::path::{Path, PathBuf};

use amphora_spec::{Classify, ErrorKind, error::io_kind};

/// An engine failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No container matches.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// No image matches.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// No object of any kind matches.
    #[error("No such object: {0}")]
    NoSuchObject(String),
    /// A container has no such path.
    #[error("Could not find the file {path} in container {container}")]
    NoSuchFile {
        /// The path as it was asked for.
        path: String,
        /// The container as it was asked for.
        container: String,
    },
    /// A prefix fits several containers.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// The name belongs to another container.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The object is in the wrong state.
    #[error("{0}")]
    State(String),
    /// An exec session could not be started; Docker puts this into its output.
    #[error("{0}")]
    Exec(String, ErrorKind),
    /// The request is malformed or out of range.
    #[error("{0}")]
    Invalid(String),
    /// The request is understood and not supported.
    #[error("{0}")]
    Unsupported(String),
    /// An image is in use.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A file operation failed.
    #[error("failed to {action} \"{path}\"")]
    File {
        /// What was done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A record on disk does not parse.
    #[error("failed to parse \"{path}\"")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record on disk was written by another version.
    #[error("\"{path}\" is of version {found}; this amphora knows version {known}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// The version in it.
        found: u64,
        /// The version that can be read.
        known: u32,
    },
    /// An operation below the engine failed.
    #[error("{context}")]
    Below {
        /// What the engine was doing, with the object's name.
        context: String,
        /// Its class.
        kind: ErrorKind,
        /// The failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A crate below failed, and its own words suffice.
    #[error("{source}")]
    Plain {
        /// Its class.
        kind: ErrorKind,
        /// The failure.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EngineError {
    /// Wraps a file operation's failure.
    pub(crate) fn file(
        action: &'static str,
        path: &Path,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Wraps a failure of a crate below whose words suffice.
    pub(crate) fn plain<E: Classify + Send + Sync + 'static>(source: E) -> Self {
        Self::Plain {
            kind: source.kind(),
            source: Box::new(source),
        }
    }

    /// Wraps a kernel call's failure with what the engine was doing.
    pub(crate) fn io<E: Into<std::io::Error>>(
        context: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let context = context.into();
        move |source| {
            let source: std::io::Error = source.into();
            Self::Below {
                context,
                kind: io_kind(&source),
                source: Box::new(source),
            }
        }
    }
}

impl Classify for EngineError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer(_)
            | Self::NoSuchImage(_)
            | Self::NoSuchObject(_)
            | Self::NoSuchFile { .. } => ErrorKind::NotFound,
            Self::Ambiguous(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::NameInUse { .. } | Self::Conflict(_) => ErrorKind::Conflict,
            Self::Exec(_, kind) => *kind,
            Self::State(_) => ErrorKind::FailedPrecondition,
            Self::Unsupported(_) | Self::Version { .. } => ErrorKind::Unsupported,
            Self::File { source, .. } => io_kind(source),
            Self::Record { .. } => ErrorKind::DataLoss,
            Self::Below { kind, .. } | Self::Plain { kind, .. } => *kind,
        }
    }
}
