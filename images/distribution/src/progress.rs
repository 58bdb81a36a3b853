//! What a pull reports while it runs.

use amphora_spec::Reference;

use crate::{PullStatus, Pulled};

/// State of one layer, in Docker's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullEvent {
    /// The layer is needed.
    PullingFsLayer,
    /// It waits for others to finish.
    Waiting,
    /// Bytes arrive.
    Downloading {
        /// Bytes so far, those of an earlier attempt included.
        current: u64,
        /// Size of the layer.
        total: u64,
    },
    /// All bytes are here; their digest is compared.
    VerifyingChecksum,
    /// The blob is verified.
    DownloadComplete,
    /// The rest of the layer is unpacked; much of it happened during the download.
    Extracting {
        /// Compressed bytes unpacked so far.
        current: u64,
        /// Size of the layer.
        total: u64,
    },
    /// The layer is ready to be used.
    PullComplete,
    /// The layer was here before.
    AlreadyExists,
}

impl PullEvent {
    /// Returns Docker's text for the state.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        match self {
            Self::PullingFsLayer => "Pulling fs layer",
            Self::Waiting => "Waiting",
            Self::Downloading { .. } => "Downloading",
            Self::VerifyingChecksum => "Verifying Checksum",
            Self::DownloadComplete => "Download complete",
            Self::Extracting { .. } => "Extracting",
            Self::PullComplete => "Pull complete",
            Self::AlreadyExists => "Already exists",
        }
    }

    /// Returns current and total bytes, for the states that have them.
    #[must_use]
    pub const fn bytes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Downloading { current, total } | Self::Extracting { current, total } => {
                Some((*current, *total))
            }
            _ => None,
        }
    }
}

/// Hears how a pull goes on. Called from several threads.
pub trait Progress: Sync {
    /// The manifest is found; the pull proper begins.
    fn started(&self, reference: &Reference) {
        let _ = reference;
    }

    /// A layer, named by the first 12 digits of its digest, changed its state.
    fn event(&self, layer: &str, event: PullEvent);

    /// The pull ended well.
    fn finished(&self, reference: &Reference, pulled: &Pulled) {
        let _ = (reference, pulled);
    }
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _layer: &str, _event: PullEvent) {}
}

/// Returns the tag or digest of a reference, as the first line of a pull names it.
fn tag_or_digest(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

/// Returns the first line of a pull.
pub(crate) fn headline(reference: &Reference) -> String {
    format!(
        "{}: Pulling from {}",
        tag_or_digest(reference),
        reference.path()
    )
}

/// Returns the last lines of a pull.
pub(crate) fn closing(reference: &Reference, pulled: &Pulled) -> [String; 3] {
    let status = match pulled.status {
        PullStatus::Downloaded => "Downloaded newer image for",
        PullStatus::UpToDate => "Image is up to date for",
    };
    [
        format!("Digest: {}", pulled.target.digest),
        format!("Status: {status} {}", reference.familiar()),
        reference.to_string(),
    ]
}
