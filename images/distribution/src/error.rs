//! The failures of a pull, in Docker's words where Docker has them.

use std::fmt;
use std::io;

use amphora_content::ContentError;
use amphora_snapshot::SnapshotError;
use amphora_spec::{Classify, Digest, ErrorKind, Platform};

/// Result of this crate.
pub(crate) type Result<T, E = DistributionError> = std::result::Result<T, E>;

/// Says why a pull failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistributionError {
    /// The registry knows the repository, not the tag or digest.
    #[error("manifest for {reference} not found")]
    ManifestUnknown {
        /// The reference as a user writes it.
        reference: String,
        /// What the registry said.
        #[source]
        problem: RegistryProblem,
    },
    /// The registry does not know the repository.
    #[error("repository {repository} not found")]
    RepositoryUnknown {
        /// The repository as a user writes it.
        repository: String,
        /// What the registry said.
        #[source]
        problem: RegistryProblem,
    },
    /// The registry wants other credentials, or hides that the repository is missing.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login'"
    )]
    AccessDenied {
        /// The repository as a user writes it.
        repository: String,
        /// What the registry said.
        #[source]
        problem: RegistryProblem,
    },
    /// A manifest names a blob that the registry does not have.
    #[error("blob {digest} not found in {repository}")]
    BlobUnknown {
        /// The blob.
        digest: Digest,
        /// The repository as a user writes it.
        repository: String,
    },
    /// A request got no answer.
    #[error("failed to do request: {method} \"{url}\"")]
    Request {
        /// `Get` or `Head`.
        method: &'static str,
        /// The URL.
        url: String,
        /// What happened.
        #[source]
        source: TransportError,
    },
    /// A request got an answer that has no meaning here.
    #[error("unexpected status {status} from {method} \"{url}\"")]
    Status {
        /// `Get` or `Head`.
        method: &'static str,
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        #[source]
        problem: RegistryProblem,
    },
    /// A challenge names no way to authenticate that is understood.
    #[error("unsupported authentication challenge \"{challenge}\" from \"{url}\"")]
    Challenge {
        /// The URL.
        url: String,
        /// The header, cut.
        challenge: String,
    },
    /// A token service answered with something that is no token.
    #[error("invalid token answer from \"{url}\"")]
    Token {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A redirect is malformed, endless, or leads from HTTPS to plain HTTP.
    #[error("refused redirect from \"{url}\" to \"{location}\"")]
    Redirect {
        /// Where it came from.
        url: String,
        /// Where it leads, cut.
        location: String,
    },
    /// The given root certificates cannot be read.
    #[error("invalid root certificates: {0}")]
    Roots(String),
    /// A document is larger than the limit.
    #[error("{what} {name} is larger than {limit} bytes")]
    TooLarge {
        /// `manifest` or `config`.
        what: &'static str,
        /// Which one.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// A document does not parse.
    #[error("malformed {what} {name}")]
    Malformed {
        /// `manifest`, `index` or `config`.
        what: &'static str,
        /// Which one.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document is an index and a manifest at once, or neither.
    #[error("ambiguous manifest {name}: it must be either an index or an image manifest")]
    Ambiguous {
        /// Which one.
        name: String,
    },
    /// A manifest's media type is not understood.
    #[error("unsupported media type \"{media_type}\" of manifest {name}")]
    ManifestType {
        /// The media type, cut.
        media_type: String,
        /// Which one.
        name: String,
    },
    /// A layer's media type is not understood.
    #[error("unsupported media type \"{media_type}\" of layer {digest}")]
    LayerType {
        /// The media type, cut.
        media_type: String,
        /// The layer.
        digest: Digest,
    },
    /// No entry of an index fits.
    #[error("no matching manifest for {0} in the manifest list entries")]
    NoMatch(Platform),
    /// Indexes are nested too deeply, or in a circle.
    #[error("index {0} is nested too deeply or contains itself")]
    Nesting(Digest),
    /// A manifest has more layers than the limit.
    #[error("manifest {digest} has {layers} layers, more than {limit}")]
    TooManyLayers {
        /// The manifest.
        digest: Digest,
        /// Its layers.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// Manifest and config disagree on the number of layers.
    #[error("manifest {digest} has {layers} layers, its config {diff_ids}")]
    LayerCount {
        /// The manifest.
        digest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the config.
        diff_ids: usize,
    },
    /// Content is not what its digest says.
    #[error("failed to verify {what} {digest}: content has digest {found}")]
    WrongDigest {
        /// `manifest`, `config` or `layer`.
        what: &'static str,
        /// What was asked for.
        digest: Digest,
        /// What came.
        found: Digest,
    },
    /// A blob's content fails the store's check.
    #[error("failed to verify {what} {digest}")]
    Corrupt {
        /// `config` or `layer`.
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// What the store found.
        #[source]
        source: ContentError,
    },
    /// Content is longer or shorter than its descriptor says.
    #[error(
        "failed to verify {what} {digest}: expected {expected} bytes, the registry has {found}"
    )]
    WrongSize {
        /// `manifest`, `config` or `layer`.
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// Size in the descriptor.
        expected: u64,
        /// Size found.
        found: u64,
    },
    /// A layer does not unpack to what the config says.
    #[error("failed to unpack layer {digest}")]
    Unpack {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// A layer's compressed bytes cannot be read.
    #[error("failed to read layer {digest}")]
    ReadLayer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob cannot be written to the store.
    #[error("failed to store blob {digest}")]
    Store {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The layer store failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Neither the mirrors nor the registry could give an image.
    #[error("failed at the mirrors ({mirrors}) and at the registry")]
    Everywhere {
        /// The mirrors, each with its reason.
        mirrors: String,
        /// The registry's reason.
        #[source]
        source: Box<DistributionError>,
    },
    /// A thread could not be started.
    #[error("failed to start a download thread")]
    Thread(#[source] io::Error),
    /// Another layer of the same image failed first.
    #[error("download of layer {0} was stopped")]
    Stopped(Digest),
}

/// What a registry says in the JSON body of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryProblem {
    /// Code, for example `MANIFEST_UNKNOWN`; empty when the registry sent none.
    pub code: String,
    /// Message.
    pub message: String,
}

impl RegistryProblem {
    pub(crate) fn new(code: &str, message: &str) -> Self {
        Self {
            code: code.to_owned(),
            message: message.to_owned(),
        }
    }

    pub(crate) fn denied() -> Self {
        Self::new("DENIED", "requested access to the resource is denied")
    }
}

impl fmt::Display for RegistryProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.to_ascii_lowercase().replace('_', " ");
        match (code.as_str(), self.message.as_str()) {
            ("", "") => f.write_str("no explanation given"),
            ("", message) => f.write_str(message),
            (code, "") => f.write_str(code),
            (code, message) => write!(f, "{code}: {message}"),
        }
    }
}

impl std::error::Error for RegistryProblem {}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection.
    #[error("dial tcp {address}: {reason}")]
    Dial {
        /// `host:port`.
        address: String,
        /// One phrase: `connection refused`, `no such host`.
        reason: String,
    },
    /// The connection ended or stalled in the middle.
    #[error("{0}")]
    Broken(String),
    /// TLS refused the peer.
    #[error("tls: {0}")]
    Tls(String),
}

impl DistributionError {
    /// Says whether it is this machine that failed, not who was asked.
    pub(crate) fn is_own(&self) -> bool {
        let disk = |error: &SnapshotError| {
            matches!(
                error,
                SnapshotError::Io { .. }
                    | SnapshotError::Place { .. }
                    | SnapshotError::Overlay { .. }
            )
        };
        match self {
            Self::Store { .. } | Self::Content(_) | Self::Thread(_) => true,
            Self::Snapshot(error) => disk(error),
            Self::Unpack { source, .. } => disk(source),
            _ => false,
        }
    }
}

impl Classify for DistributionError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Everywhere { source, .. } => source.kind(),
            Self::ManifestUnknown { .. }
            | Self::RepositoryUnknown { .. }
            | Self::AccessDenied { .. }
            | Self::BlobUnknown { .. }
            | Self::NoMatch(_) => ErrorKind::NotFound,
            Self::Request { .. } | Self::Stopped(_) => ErrorKind::Unavailable,
            Self::Status { status, .. } if *status == 429 || *status >= 500 => {
                ErrorKind::Unavailable
            }
            Self::Status { .. } | Self::Token { .. } | Self::Redirect { .. } => ErrorKind::Internal,
            Self::Challenge { .. } | Self::ManifestType { .. } | Self::LayerType { .. } => {
                ErrorKind::Unsupported
            }
            Self::Roots(_) => ErrorKind::InvalidArgument,
            Self::TooLarge { .. } | Self::TooManyLayers { .. } | Self::Nesting(_) => {
                ErrorKind::InvalidArgument
            }
            Self::Malformed { .. } | Self::Ambiguous { .. } | Self::LayerCount { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::WrongDigest { .. } | Self::Corrupt { .. } | Self::WrongSize { .. } => {
                ErrorKind::DataLoss
            }
            Self::Unpack { source, .. } => source.kind(),
            Self::ReadLayer { source, .. } => match amphora_spec::error::io_kind(source) {
                ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
                _ => ErrorKind::DataLoss,
            },
            Self::Store { source, .. } | Self::Thread(source) => {
                amphora_spec::error::io_kind(source)
            }
            Self::Content(source) => source.kind(),
            Self::Snapshot(source) => source.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphora_spec::error::chain;

    #[test]
    fn unknown_images_speak_dockers_words() {
        let unknown = DistributionError::ManifestUnknown {
            reference: "x:latest".to_owned(),
            problem: RegistryProblem::new("MANIFEST_UNKNOWN", "manifest unknown"),
        };
        assert_eq!(
            chain(&unknown),
            "manifest for x:latest not found: manifest unknown: manifest unknown"
        );
        assert_eq!(unknown.kind(), ErrorKind::NotFound);
        let denied = DistributionError::AccessDenied {
            repository: "x".to_owned(),
            problem: RegistryProblem::denied(),
        };
        assert_eq!(
            chain(&denied),
            "pull access denied for x, repository does not exist or may require 'docker login': \
             denied: requested access to the resource is denied"
        );
    }

    #[test]
    fn a_full_disk_is_nobody_elses() {
        let digest = Digest::from_sha256([1; 32]);
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let disk = SnapshotError::Io {
            action: "create",
            path: "layers".into(),
            source: full(),
        };
        let unpack = |source| DistributionError::Unpack { digest, source };
        let own = DistributionError::Store {
            digest,
            source: full(),
        };
        assert!(own.is_own() && unpack(disk).is_own());
        assert!(!unpack(SnapshotError::NotFound(digest)).is_own());
        assert!(!DistributionError::Stopped(digest).is_own());
    }

    #[test]
    fn an_unreachable_registry_is_one_sentence() {
        let error = DistributionError::Request {
            method: "Get",
            url: "http://localhost:1/v2/x/manifests/latest".to_owned(),
            source: TransportError::Dial {
                address: "localhost:1".to_owned(),
                reason: "connection refused".to_owned(),
            },
        };
        assert_eq!(
            chain(&error),
            "failed to do request: Get \"http://localhost:1/v2/x/manifests/latest\": \
             dial tcp localhost:1: connection refused"
        );
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
