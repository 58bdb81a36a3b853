//! Compiling and running real guests, in plain child processes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cache;
mod container;
mod guests;
mod run;
