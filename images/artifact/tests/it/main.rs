//! Inspection of generated binaries, and every form of Wasm image from documents to decision.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forms;
mod inspect;
