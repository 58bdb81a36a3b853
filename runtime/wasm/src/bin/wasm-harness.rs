//! The hidden entries alone, for this crate's tests. Not shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(amphora_wasm::COMPILE_ENTRY) => amphora_wasm::compile_main(),
        Some(amphora_wasm::RUNNER_ENTRY) => amphora_wasm::runner_main(),
        _ => ExitCode::from(125),
    }
}
