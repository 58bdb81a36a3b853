//! The Wasm executor: modules are compiled once into a cache and run by a process of our own
//! inside the container's namespaces, cgroup and root, exactly where a Linux container would run
//! its entrypoint.
//!
//! Invariants: native code is only ever loaded from our own cache; hostile bytes are parsed and
//! compiled in a confined child; compiler and runner share one engine configuration; the runner
//! never starts wasmtime-wasi's hidden multi-threaded runtime.
//! Must not know: networks, volumes, images.

mod cache;
mod compile;
mod confine;
mod engine;
mod error;
mod filter;
mod plan;
mod runner;
mod workload;

pub use cache::{AotCache, Artefact};
pub use compile::{
    COMPILE_CPU_SECONDS, COMPILE_ENTRY, COMPILE_MEMORY_BYTES, COMPILE_OUTPUT_BYTES,
    COMPILE_TIMEOUT, Compiler, compile_main,
};
pub use engine::{Profile, fingerprint};
pub use error::WasmError;
pub use runner::{
    ARTEFACT_FD, CONFIG_FD, EXIT_REFUSED, EXIT_TRAP, RUNNER_ENTRY, RunnerConfig, runner_main,
};
pub use workload::{DEFAULT_STAMPS, MIN_GUEST_BYTES, RUNNER_OVERHEAD_BYTES, WasmWorkload, notes};
