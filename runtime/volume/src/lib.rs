//! Volumes: named directories of the engine, and binds of the host's, given as detached mounts.
//!
//! Invariants: nothing is mounted in the host's namespace; a volume and a copy of an image's
//! directory appear whole or not at all; a path that comes from an image or a user is resolved
//! beneath a descriptor and never leaves it.
//!
//! This crate knows nothing of containers beyond the names a caller gives it.

mod change;
mod copy_up;
mod device;
mod error;
mod mounts;
mod options;
mod spec;
mod volumes;

pub use copy_up::CopyUp;
pub use device::Content;
pub use error::VolumeError;
pub use mounts::{
    BindOptions, ReadOnly, folder_of, mount_bind, mount_bind_with, protect, unprotect,
};
pub use options::DriverOptions;
pub use spec::{
    Propagation, Source, VolumeSpec, VolumeSpecError, check_donor_mode, check_name,
    parse_volume_spec,
};
pub use volumes::{Found, NewVolume, Users, Volume, Volumes};
