//! End-to-end tests: the built binary, as root, each test in its own mount and network namespace
//! over its own roots, compared before and after by a leak counter.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's way to fail"
)]

/// Makes `linux` and `wasm` tests of one function, which is given the image, or other words.
macro_rules! both {
    ($linux:literal, $wasm:literal: $($name:ident),* $(,)?) => {
        mod linux { $( #[test] fn $name() { super::$name($linux); } )* }
        mod wasm { $( #[test] fn $name() { super::$name($wasm); } )* }
    };
    ($($name:ident),* $(,)?) => { both!("probe-linux", "probe-wasm": $($name),*); };
}

mod dockerd;
mod fixtures;
mod leak;
mod notify;
mod numbers;
mod plain_spec;
mod sandbox;
mod turn;

mod at_rest;
mod beside;
mod boot;
mod both;
mod change;
mod clones;
mod commit;
mod copy;
mod crash;
mod cve;
mod debug;
mod engines;
mod errors;
mod events;
mod exec;
mod faults;
mod flags;
mod flags_run;
mod foreground;
mod format;
mod forms;
mod go_on;
mod goldens;
mod health;
mod hosts;
mod images;
mod init;
mod limits;
mod linux;
mod listener;
mod logging;
mod machine;
mod model;
mod mounting;
mod names;
mod networks;
mod options;
mod overlay;
mod parallel;
mod ports;
mod power;
mod process;

mod prune;
mod ps;
mod registry;
mod restart;
mod runc;
mod settings;
mod sockets;
mod stats;
mod supervisor;
mod terminal;
mod upgrade;
mod userns;
mod v2;
mod volumes;
