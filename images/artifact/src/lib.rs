//! What an image holds: Wasm binaries and entrypoints inspected, facts for the choice of the
//! executor collected.
//!
//! Invariants: pure functions of bytes and documents; nothing is opened, compiled or executed.
//! Everything here comes from an image, so every size and count is bounded.
//! Must not know: wasmtime, the store, file systems.

mod error;
mod facts;
mod imports;
mod inspect;
mod magic;

pub use amphora_spec::select::{
    Facts, Magic, ModuleFacts, ModuleKind, ModuleLocation, WasmFacts, World,
};
pub use error::ArtifactError;
pub use facts::{
    Entry, FactsInput, entrypoint, facts, module_layer, program_facts, split_function,
};
pub use inspect::inspect_wasm;
pub use magic::{MAGIC_LEN, classify, is_precompiled};

/// Largest module that is inspected and compiled.
pub const MAX_MODULE_BYTES: u64 = 256 * 1024 * 1024;
/// Most imports or exports that are recorded.
pub const MAX_NAMES: usize = 4096;
/// Longest name that is recorded whole, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
