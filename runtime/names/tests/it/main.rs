//! The name server by itself: its protocol, its records, and whom it asks.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's way to fail"
)]

mod home;
mod packets;
mod records;
mod server;
mod wire;
