//! What a supervisor undoes the moment its container has exited, before it answers anybody.
//!
//! Plain data made by the crates that claimed the thing, carried out by a supervisor that knows
//! nothing of networks or names. Every action is idempotent: done twice, or done after
//! `reconcile` did it, it changes nothing and reports nothing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One inverse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Unlink a file; a missing file is fine.
    Unlink(PathBuf),
    /// Remove a directory tree; a missing one is fine.
    RemoveTree(PathBuf),
    /// Unlink the symbolic link by which a container has its name. It is the one at `path` that
    /// points at `target`; or, when the container was renamed meanwhile, another one beside it.
    /// One that points elsewhere belongs to another container and stays.
    Claim {
        /// The link as it was when the container started.
        path: PathBuf,
        /// What a link of this container points at.
        target: String,
    },
    /// Send one netlink datagram (a whole nftables batch) in the supervisor's own network
    /// namespace; `ENOENT` in the answer is fine.
    Netlink {
        /// Netlink protocol, for example 12 for netfilter, 0 for route.
        protocol: u32,
        /// The encoded messages.
        bytes: Vec<u8>,
    },
}
