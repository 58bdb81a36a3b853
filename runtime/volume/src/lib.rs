//! Volumes: named directories of the engine, and binds of the host's, given as detached mounts.
//!
//! Invariants: nothing is mounted in the host's namespace; a volume and a copy of an image's
//! directory appear whole or not at all; a path that comes from an image or a user is resolved
//! beneath a descriptor and never leaves it.
//!
//! This crate knows nothing of containers beyond the names a caller gives it.

mod copy_up;
mod error;
mod mounts;
mod spec;
mod volumes;

pub use copy_up::CopyUp;
pub use error::VolumeError;
pub use mounts::{BindOptions, mount_bind, mount_bind_with};
pub use spec::{Propagation, Source, VolumeSpec, VolumeSpecError, parse_volume_spec};
pub use volumes::{Found, Volume, Volumes};
