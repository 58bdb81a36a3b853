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

mod clock;
mod config;
mod error;
mod files;

mod client;
mod exit;
mod frame;
mod handover;
mod lock;
mod pump;
mod spawn;
mod state;

mod adopted;
mod clients;
mod finish;
mod jsonlog;
mod release;
mod server;
mod splice;
mod start;
mod stdio;

pub use client::{AttachMode, Client, ClientEvent, ExitStatus, wait};
pub use config::{Config, Listener, LogConfig, LogDriver};
pub use error::SupervisorError;
pub use exit::ExitRecord;
pub use lock::{inherited_lock, is_alive, lock, open_lock, try_lock};
pub use pump::{ProxySignals, PumpEnd, PumpStreams, pump};
pub use spawn::{AdoptRequest, Adopted, SpawnRequest, Spawned, adopt, spawn};
pub use start::supervise_main;
pub use state::{State, Status};
