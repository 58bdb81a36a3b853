//! The one binary: the command line, and the hidden entries of its own helper processes.
//!
//! Hidden entries branch before anything else is touched: a supervisor, a Wasm runner or a
//! finisher never pays for the command line, and the command line never pays for them.

mod commands;
mod errors;
mod filter;
mod format;
mod parse;
mod pattern;
mod terminal;
mod time;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

/// Commands live for milliseconds; what runs for long never turns it on.
#[global_allocator]
static ALLOCATOR: amphora_sys::arena::Arena = amphora_sys::arena::Arena;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if called(&args) == Some(b"amphora-runc") {
        return amphora_oci_cli::main(&args, &amphora_linux::LinuxWorkload);
    }
    match args.get(1).and_then(|a| a.to_str()) {
        Some("supervise") => amphora_supervisor::supervise_main(),
        Some(amphora_wasm::RUNNER_ENTRY) => amphora_wasm::runner_main(),
        Some(amphora_wasm::COMPILE_ENTRY) => amphora_wasm::compile_main(),
        Some(amphora_supervisor::COMPRESS_ENTRY) => amphora_supervisor::compress_main(),
        Some(amphora_sys::init::INIT_ENTRY) if args.get(2).is_some_and(|a| a == "--") => {
            amphora_sys::init::init_main(args.into_iter().skip(2).collect())
        }
        Some("probe") if args.len() == 5 => {
            amphora_sys::arena::enable();
            commands::probe(&args)
        }
        Some(amphora_supervisor::PEERS_ENTRY) if args.len() == 5 => {
            amphora_sys::arena::enable();
            commands::peers(&args)
        }
        Some("prepare") if args.len() == 5 => {
            amphora_sys::arena::enable();
            commands::prepare(&args)
        }
        Some("finish") if args.len() == 5 => {
            amphora_sys::arena::enable();
            commands::finish(&args)
        }
        _ => {
            amphora_sys::arena::enable();
            commands::dispatch(&args)
        }
    }
}

/// The last part of the name that the program was started by.
fn called(args: &[OsString]) -> Option<&[u8]> {
    args.first()?
        .as_encoded_bytes()
        .rsplit(|byte| *byte == b'/')
        .next()
}
