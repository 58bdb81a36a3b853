//! The content store: blobs, references, image records, leases and archives, laid out on disk as
//! an OCI image layout.
//!
//! Invariants: a blob is visible only after its size and SHA-256 digest were verified; the index
//! changes under a lock and by rename, so readers need none; whoever adds content that nothing
//! names yet holds a [`Lease`], and nothing is collected while one is held.
//! The store never runs, mounts or unpacks what it holds, and knows nothing of registries.

pub mod archive;
pub mod compress;
pub mod error;
mod gc;
mod index;
mod ingest;
mod lock;
mod records;
mod store;
pub mod tarball;
mod wasm;

pub use error::ContentError;
pub use gc::{Collected, Live, Partials, Pins};
pub use index::Named;
pub use ingest::{Ingest, Spool, Spooled};
pub use lock::{Exclusive, Lease};
pub use store::{MAX_DOCUMENT_BYTES, Store};
pub use wasm::{WasmImage, add_wasm};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ContentError>;
