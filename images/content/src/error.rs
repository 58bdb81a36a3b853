//! What can go wrong in the content store.

use std::io;
use std::path::{Path, PathBuf};

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, Digest, ErrorKind};

/// A failure of the content store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// A file operation failed.
    #[error("failed to {action} \"{}\"", path.display())]
    Io {
        /// Verb of the operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store does not hold a blob.
    #[error("blob {0} not found")]
    BlobNotFound(Digest),
    /// A blob's bytes have another digest than asked for.
    #[error("digest mismatch for blob {expected}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A blob has another length than announced.
    #[error("size mismatch for blob {digest}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// The announced length.
        expected: u64,
        /// The length that came.
        actual: u64,
    },
    /// A bound was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What grew too large, with its name.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A JSON document could not be read or made.
    #[error("failed to parse {what}")]
    Json {
        /// The document.
        what: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A compressed stream or its bytes could not be read.
    #[error("failed to read {what}")]
    Read {
        /// The stream.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What is made could not be written where the caller wants it.
    #[error("failed to write {what}")]
    Write {
        /// What was being written.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tar stream is malformed.
    #[error(transparent)]
    Tar(#[from] crate::tarball::TarError),
    /// An archive is no image archive, or contradicts itself.
    #[error("invalid image archive: {0}")]
    Archive(String),
    /// A name in an archive or in the index is no image reference.
    #[error("invalid image name \"{name}\"")]
    Name {
        /// The name.
        name: String,
        /// The cause.
        #[source]
        source: amphora_spec::reference::ReferenceError,
    },
}

impl ContentError {
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Says whether the disk (or a quota) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.kind() == ErrorKind::ResourceExhausted && matches!(self, Self::Io { .. })
    }
}

impl Classify for ContentError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } | Self::Write { source, .. } => io_kind(source),
            Self::BlobNotFound(_) => ErrorKind::NotFound,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Json { .. } => {
                ErrorKind::DataLoss
            }
            Self::Limit { .. } | Self::Archive(_) | Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Read { source, .. } => crate::tarball::stream_kind(source),
            Self::Tar(error) => error.kind(),
        }
    }
}
