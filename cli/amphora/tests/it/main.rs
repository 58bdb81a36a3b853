//! End-to-end tests: the built binary, as root, each test in its own mount and network namespace
//! over its own roots, compared before and after by a leak counter.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's way to fail"
)]

mod dockerd;
mod fixtures;
mod leak;
mod sandbox;

mod beside;
mod boot;
mod both;
mod change;
mod commit;
mod copy;
mod crash;
mod debug;
mod errors;
mod events;
mod exec;
mod faults;
mod flags;
mod flags_run;
mod foreground;
mod format;
mod forms;
mod goldens;
mod health;
mod images;
mod init;
mod linux;
mod logging;
mod model;
mod options;
mod parallel;
mod ports;
mod prune;
mod ps;
mod registry;
mod restart;
mod settings;
mod stats;
mod supervisor;
mod terminal;
mod upgrade;
mod v2;
