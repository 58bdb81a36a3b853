//! The engine in Docker's nouns: images, containers, volumes, the default network.
//!
//! Holds no state of its own: every fact is a file under the data root or the run root, every
//! running thing is held by its supervisor. Decisions ([`spec_builder`], selection) are pure; each
//! effect pushes its inverse on [`undo::Undo`].
//!
//! Must not know: the Linux and Wasm executors (they arrive as `Workload` values), terminals,
//! the command line.

pub mod archive;
mod boot;
mod changes;
mod commit;
pub mod config;
mod container;
mod create;
mod debug;
pub mod devices;
mod engine;
mod error;
mod event_reader;
mod events;
mod exec;
mod files;
mod finish;
mod health;
mod hosts_file;
mod id_map;
mod image;
mod image_facts;
mod index;
mod inspect;
mod inspect_host;
mod inspect_network;
mod instructions;
mod kept;
mod lifecycle;
pub mod limits;
mod list;
pub mod logging;
mod logs;
mod modes;
mod mount_flag;
mod mount_spec;
mod mounts;
mod names;
mod network_check;
mod network_view;
mod networks;
mod pause;
mod ports;
mod prune;
mod ps;
mod reconcile;
mod rename;
mod resolving;
pub mod restart;
mod save;
mod settings;
mod sizes;
pub mod spec_builder;
mod start;
mod summary;
mod undo;
mod update;
mod usage;
mod volumes;

pub use amphora_network::{
    CreateNetwork, IpamConfig, NetworkAttachment, NetworkConfig, PortRequest, Subnet,
};
pub use amphora_volume::NewVolume;
pub use boot::Booted;
pub use changes::{Change, ChangeKind};
pub use commit::{CommitOptions, ImportOptions};
pub use config::{ContainerConfig, CreateOptions, HostConfig, MountPoint, NetworkMode};
pub use container::{ContainerView, Status};
pub use debug::{Debugging, Scratch};
pub use engine::{Engine, EngineOptions};
pub use error::EngineError;
pub use event_reader::EventReader;
pub use exec::{ExecOptions, ExecStarted};
pub use id_map::{IdMap, IdRange};
pub use image::{ImageRecord, ImageSummary, LayerRecord};
pub use lifecycle::{RemoveOptions, StopOptions};
pub use logs::LogOptions;
pub use mount_flag::mount_spec;
pub use mount_spec::expose;
pub use prune::Pruned;
pub use ps::{Ended, Listed};
pub use settings::Settings;
pub use sizes::ContainerSize;
pub use start::{Attach, AttachStreams, Started};
pub use summary::{MountSummary, Summary};
pub use update::UpdateOptions;
pub use usage::Usage;
pub use volumes::{port_specs, volume_spec};

/// Result of the engine's functions.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
