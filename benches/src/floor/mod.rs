//! The kernel's floor: everything the kernel must do for one container, done once in the cheapest
//! known way, by a program that does nothing else. No image, no state, no log, no supervisor: what
//! an engine takes beyond this is its own.
//!
//! One start makes a cgroup (no limits set), an overlay with a fresh upper and work directory, six
//! namespaces, proc, sysfs, the cgroup view, `/dev` with pts, shm and mqueue, five read-only and
//! up to ten masked paths, optionally a veth pair on a bridge with address and route, drops
//! capabilities, loads a seccomp search tree, executes a static program and reaps it; then it
//! cleans up. [`Floor::start`] returns the time of each [`Stage`].

mod child;
mod filter;
mod netlink;
mod place;
mod stages;
mod wires;

pub use place::{Floor, Network, Options};
pub use stages::{Stage, Times};
pub use wires::Wires;

/// Brings the loopback device of the calling process's network namespace up.
///
/// # Errors
/// What the kernel answers.
pub fn loopback_up() -> std::io::Result<()> {
    netlink::Socket::open()?.loopback_up()
}
