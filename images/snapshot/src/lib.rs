//! Unpacked layers and the root file systems made of them.
//!
//! A layer is a directory named by its diff-id that holds that layer's changes in overlayfs form:
//! whiteouts are character devices 0:0, opaque directories carry `trusted.overlay.opaque=y`.
//! Invariants: a layer is visible only whole and after its diff-id was verified; whatever a tar
//! says, nothing outside the layer's directory is read, written or linked; a killed unpack leaves
//! only a directory that the next unpack of that layer, or the collector, removes.
//! This crate attaches no mount anywhere and knows nothing of containers or registries.

mod blob;
mod collect;
pub mod error;
mod layers;
mod path;
mod rootfs;
mod tree;
mod unpack;

pub use amphora_content::compress::{decompress, decompress_within};
pub use blob::BlobLayer;
pub use collect::collect;
pub use error::SnapshotError;
pub use layers::Layers;
pub use rootfs::{MAX_IMAGE_LAYERS, MAX_LAYERS};
pub use unpack::{
    Limits, MAX_DIR_BYTES, MAX_LAYER_BYTES, MAX_LAYER_ENTRIES, MAX_PATH_DEPTH, Unpacked,
};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, SnapshotError>;
