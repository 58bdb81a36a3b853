//! The Linux executor against the kernel: every test makes containers of its own, as root.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "the whole binary is tests"
)]

mod caller;
mod errors;
mod fixture;
mod isolation;
mod process;
mod speed;
mod tree;
