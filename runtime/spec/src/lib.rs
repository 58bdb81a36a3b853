//! The vocabulary of amphora: identifiers, references, platforms, OCI documents, error classes.
//!
//! Invariants: no I/O, no environment, no clock, no kernel call. Every type that comes from an
//! image or a user is checked when it is parsed, so that the rest of the engine can trust it.

pub mod choose;
pub mod digest;
pub mod duration;
pub mod error;
pub mod health;
pub mod id;
pub mod image;
pub mod media;
mod null;
pub mod platform;
pub mod properties;
pub mod reference;
pub mod release;
pub mod runtime;
pub mod select;
pub mod signal;

pub use digest::Digest;
pub use error::{Classify, ErrorKind};
pub use id::ContainerId;
pub use platform::Platform;
pub use reference::Reference;
