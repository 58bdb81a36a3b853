//! The one binary: the command line, and the hidden entries of its own helper processes.
//!
//! Hidden entries branch before anything else is touched: a supervisor, a Wasm runner or a
//! finisher never pays for the command line, and the command line never pays for them.

mod commands;
mod errors;
mod parse;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|a| a.to_str()) {
        Some("supervise") => amphora_supervisor::supervise_main(),
        Some(amphora_wasm::RUNNER_ENTRY) => amphora_wasm::runner_main(),
        Some(amphora_wasm::COMPILE_ENTRY) => amphora_wasm::compile_main(),
        Some("finish") if args.len() == 5 => commands::finish(&args),
        _ => commands::dispatch(&args),
    }
}
