//! The registry client: pulls images and artifacts into the content store and the layer store.
//!
//! Invariants: nothing that a registry says is believed before its digest is computed here; a
//! layer or blob becomes visible only when its digests are right; the tag is written last. Every
//! answer, retry, wait and buffer is bounded by a named constant. Credentials go to the registry
//! they belong to and to the token service it names, never along a redirect to another host.
//!
//! Must not know: containers, executors, the environment (the binary reads it), terminals beyond
//! the bytes a renderer writes.

mod auth;
mod blob;
mod config;
mod error;
mod http;
mod layers;
mod manifest;
mod pipe;
mod plain;
mod progress;
mod pull;
mod range;
mod tty;
mod url;

pub use config::{ClientConfig, Credentials, RetryPolicy};
pub use error::{DistributionError, RegistryProblem, TransportError};
pub use plain::PlainProgress;
pub use progress::{Progress, PullEvent, Silent};
pub use pull::{Client, Fetched, PullStatus, Pulled};
pub use range::{AddressRange, NoRange};
pub use tty::TtyProgress;
