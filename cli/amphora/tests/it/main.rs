//! End-to-end tests: the built binary, as root, each test in its own mount and network namespace
//! over its own roots, compared before and after by a leak counter.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's way to fail"
)]

mod fixtures;
mod leak;
mod sandbox;

mod both;
mod errors;
mod forms;
mod linux;
mod registry;
mod supervisor;
mod v2;
