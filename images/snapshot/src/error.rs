//! What can go wrong with layers.

use std::io;
use std::path::{Path, PathBuf};

use amphora_content::ContentError;
use amphora_content::tarball::TarError;
use amphora_spec::error::io_kind;
use amphora_spec::{Classify, Digest, ErrorKind};

/// A failure of the layer store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
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
    /// An entry of a layer could not be made.
    #[error("failed to {action} \"{entry}\" of the layer")]
    Place {
        /// Verb of the operation.
        action: &'static str,
        /// Path of the entry.
        entry: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An entry of a layer is not acceptable.
    #[error("refused entry \"{entry}\" of the layer: {why}")]
    Refused {
        /// Path of the entry.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The tar stream is malformed or too large.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The tar stream has another digest than the image config says.
    #[error("diff-id mismatch for layer {expected}: expected {expected}, got {actual}")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// The digest of the stream.
        actual: Digest,
    },
    /// A layer is not unpacked.
    #[error("layer {0} not found")]
    NotFound(Digest),
    /// More layers than one overlay takes.
    #[error("image has {count} layers, more than the {limit} that overlayfs stacks")]
    TooManyLayers {
        /// Layers of the image.
        count: usize,
        /// The kernel's bound.
        limit: usize,
    },
    /// The kernel refused the overlay.
    #[error("failed to mount overlay of {layers} layers under \"{}\"", root.display())]
    Overlay {
        /// Number of lower directories.
        layers: usize,
        /// Directory of the layers.
        root: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl SnapshotError {
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
}

impl Classify for SnapshotError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } | Self::Place { source, .. } | Self::Overlay { source, .. } => {
                io_kind(source)
            }
            Self::Refused { .. } | Self::TooManyLayers { .. } => ErrorKind::InvalidArgument,
            Self::DiffId { .. } => ErrorKind::DataLoss,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Tar(error) => error.kind(),
            Self::Content(error) => error.kind(),
        }
    }
}
