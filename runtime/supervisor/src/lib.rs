//! One small process per container: the parent of its init, the keeper of its stdio and logs, the
//! one who answers attach and wait, writes the exit record and frees what the container held.
//!
//! Invariants: a supervisor is a fresh exec of the one binary, single-threaded, with one epoll
//! loop, bounded buffers and no allocation while it copies. It lives as long as it holds the lock
//! of its container's run directory. Everything it must know arrives by value: a [`Config`], a
//! launch plan, descriptors.
//!
//! Must not know: the engine, networks, volumes, images. What needs them is done by the `finish`
//! program that the supervisor becomes at its end.

mod again;
mod clock;
mod config;
mod error;
mod events;
mod files;
mod go_on;

mod client;
mod exec;
mod exit;
mod frame;
mod handover;
mod held;
mod keys;
mod lock;
mod pump;
mod spawn;
mod state;

mod adopted;
mod clients;
mod compress;
mod exec_events;
mod execs;
mod finish;
mod health;
mod jsonlog;
mod name_server;
mod overlay;
mod ports;
mod probes;
mod relay;
mod release;
mod remote;
mod restart;
mod server;
mod session;
mod shared_base;
mod splice;
mod start;
mod stdio;
mod waiting;

mod early;

/// What a container's name server is told, and where it listens.
pub mod names {
    pub use amphora_names::{ADDRESS, Place, Settings};
}

pub use again::{Inherited, change_policy, inherited_start, is_wanted, note_wanted};
pub use client::{AttachMode, Client, ClientEvent, ExitStatus, wait};
pub use compress::{COMPRESS_ENTRY, compress_main};
pub use config::{Config, Listener, LogConfig, LogDriver, LogRemote, SyslogAddress};
pub use error::SupervisorError;
pub use events::{
    Event, EventLog, LIMIT as EVENTS_LIMIT, append_events, attributes as event_attributes,
    change_attributes, events_path, older_events_path,
};
pub use exec::{ExecConfig, ExecRecord, ExecRequest};
pub use exit::ExitRecord;
pub use go_on::{GoOnRequest, go_on};
pub use health::{
    HealthAction, HealthConfig, HealthPhase, HealthRecord, HealthResult, HealthStatus, health_time,
};
pub use held::held;
pub use keys::DetachKeys;
pub use lock::{inherited_lock, is_alive, lock, open_lock, try_lock};
pub use overlay::PEERS_ENTRY;
pub use ports::{PortsChange, Reserved};
pub use pump::{ProxySignals, PumpEnd, PumpStreams, pump};
pub use restart::{RestartKind, RestartPolicy};
pub use shared_base::sweep as sweep_base;
pub use spawn::{AdoptRequest, Adopted, SpawnRequest, Spawned, adopt, spawn};
pub use start::supervise_main;
pub use state::{State, Status};
pub use waiting::{Ahead, Charge, Launching, Waiting};
