//! The engine in Docker's nouns: images, containers, volumes, the default network.
//!
//! Holds no state of its own: every fact is a file under the data root or the run root, every
//! running thing is held by its supervisor. Decisions ([`spec_builder`], selection) are pure; each
//! effect pushes its inverse on [`undo::Undo`].
//!
//! Must not know: the Linux and Wasm executors (they arrive as `Workload` values), terminals,
//! the command line.

pub mod config;
mod container;
mod create;
mod engine;
mod error;
mod files;
mod finish;
mod image;
mod image_facts;
mod inspect;
mod lifecycle;
mod list;
mod logs;
mod names;
mod reconcile;
pub mod spec_builder;
mod start;
mod undo;
mod volumes;

pub use config::{ContainerConfig, CreateOptions, HostConfig, MountPoint, NetworkMode};
pub use container::{ContainerView, Status};
pub use engine::{Engine, EngineOptions};
pub use error::EngineError;
pub use image::{ImageRecord, ImageSummary, LayerRecord};
pub use lifecycle::{RemoveOptions, StopOptions};
pub use logs::LogOptions;
pub use start::{Attach, Started};
pub use volumes::{port_specs, volume_spec};

/// Result of the engine's functions.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
