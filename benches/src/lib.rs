//! What amphora is measured with: the kernel's floor for one container start, and a harness that
//! runs amphora and every installed peer in turn on one file system.
//!
//! The crate knows engines as programs with a command line only. It must not use amphora's own
//! crates: a yardstick built from the thing it measures would bend with it.

pub mod fixtures;
pub mod floor;
pub mod harness;
pub mod kernel;
pub mod stats;
