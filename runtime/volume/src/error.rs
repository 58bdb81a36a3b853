//! What can go wrong with a volume.

use std::io;
use std::path::{Path, PathBuf};

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, ErrorKind};
use amphora_sys::copy::CopyError;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// No volume of this name.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// A volume of this name exists.
    #[error("volume {0} already exists")]
    Exists(String),
    /// Not a name for a volume.
    #[error("create {name}: {problem}")]
    Name {
        /// The text.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Driver options that make no sense.
    #[error("create {name}: {problem}")]
    Options {
        /// The volume.
        name: String,
        /// What is wrong with them.
        problem: String,
    },
    /// A volume of this name exists, and has other options than are asked for.
    #[error("create {0}: a volume of this name exists with other options")]
    Differs(String),
    /// A volume whose files are not the engine's to copy.
    #[error("clone {0}: the volume has driver options, its files are not the engine's")]
    Foreign(String),
    /// A volume without a device.
    #[error("volume {0} has no device")]
    NoDevice(String),
    /// What its options say cannot be mounted.
    #[error(
        "error while mounting volume '{}': failed to mount local volume: mount {device}",
        .place.display()
    )]
    Mount {
        /// Where its files would be.
        place: PathBuf,
        /// What was to be mounted, and how.
        device: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The name of a server leads to no address.
    #[error(
        "error while mounting volume '{}': error resolving passed in network volume address \
         of {device}",
        .place.display()
    )]
    Address {
        /// Where its files would be.
        place: PathBuf,
        /// What was to be mounted, and how.
        device: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A folder of a volume that is to be mounted.
    #[error("cannot access path {0}: lstat {0}", .path.display())]
    Subpath {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Containers use it.
    #[error("{verb} {name}: volume is in use - [{}]", .users.join(", "))]
    InUse {
        /// What was to be done with it.
        verb: &'static str,
        /// The volume.
        name: String,
        /// Who uses it.
        users: Vec<String>,
    },
    /// The source of a bind is not there.
    #[error("bind source path does not exist: {}", .0.display())]
    SourceMissing(PathBuf),
    /// The source of a bind is not mounted so that mounts could travel.
    #[error(
        "path {} is mounted on {} but it is not a {missing} mount",
        .path.display(),
        .mount.display()
    )]
    Propagation {
        /// The source.
        path: PathBuf,
        /// Where its mount is.
        mount: PathBuf,
        /// What the mount is not.
        missing: &'static str,
    },
    /// A file could not be read, written, mounted or copied.
    #[error("failed to {verb} {path:?}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A volume's record cannot be understood.
    #[error("failed to understand {path:?}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A record was written by another version.
    #[error("{path:?} is of version {found}; this amphora knows version {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// A directory to be copied is nested beyond the limit.
    #[error("failed to copy {0:?}: nested too deeply")]
    TooDeep(PathBuf),
}

impl From<CopyError> for VolumeError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::File { path, source } => Self::File {
                verb: "copy",
                path,
                source,
            },
            CopyError::TooDeep(path) => Self::TooDeep(path),
        }
    }
}

impl Classify for VolumeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) | Self::InUse { .. } | Self::Differs(_) => ErrorKind::Conflict,
            Self::Name { .. }
            | Self::Options { .. }
            | Self::Foreign(_)
            | Self::SourceMissing(_) => ErrorKind::InvalidArgument,
            Self::Propagation { .. } => ErrorKind::InvalidArgument,
            Self::NoDevice(_) => ErrorKind::Internal,
            Self::File { source, .. }
            | Self::Mount { source, .. }
            | Self::Address { source, .. }
            | Self::Subpath { source, .. } => match io_kind(source) {
                ErrorKind::Conflict => ErrorKind::Internal,
                other => other,
            },
            Self::Record { .. } => ErrorKind::DataLoss,
            Self::Version { .. } => ErrorKind::Unsupported,
            Self::TooDeep(_) => ErrorKind::ResourceExhausted,
        }
    }
}

/// Shorthand of this crate.
pub(crate) type Result<T> = std::result::Result<T, VolumeError>;

/// An error in the words that Docker shows of the kernel's: small, without a number.
pub(crate) fn small(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let kind = error.kind();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    let words: String = first.into_iter().chain(letters).collect();
    io::Error::new(kind, words)
}

pub(crate) fn file<E: Into<io::Error>>(
    verb: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> VolumeError {
    let path = path.as_ref().to_owned();
    move |source| VolumeError::File {
        verb,
        path,
        source: source.into(),
    }
}
