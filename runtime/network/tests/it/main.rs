//! Networks against a real kernel: needs root, each test in network namespaces of its own.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's way to fail"
)]

mod attach;
mod firewalls;
mod more_bridges;
mod networks;
mod ports;
mod starts;
mod traffic;
mod world;
