//! A container's name server: the wire protocol, the lookup over records on disk, and the forwarding
//! of everything else, for somebody's epoll loop.
//!
//! Invariants: nothing is cached that could be wrong a moment later: records are read at each query.
//! Nothing a container sends makes this grow beyond named bounds, wait, or panic. What an upstream
//! server says is passed on only when it answers what was asked. No memory is held while nobody asks.
//!
//! Must not know: the engine, networks, supervisors. It reads the records that `docs/formats.md`
//! describes, and writes none.

mod aside;
mod asking;
mod hosts;
mod overlay;
mod records;
mod server;
mod socket;
mod stream;
mod upstream;
mod wire;

pub use hosts::Hosts;
pub use overlay::Overlay;
pub use records::Records;
pub use server::{Context, NameServer, Settings};
pub use socket::{ADDRESS, Place, Sockets};
pub use wire::{Malformed, Query, Rcode, Record, is_answer, kinds};
