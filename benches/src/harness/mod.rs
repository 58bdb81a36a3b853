//! Runs amphora and its peers in turn, in one private set of namespaces, with all stores on one
//! ext4, and compares medians.

mod args;
mod bare;
mod engine;
mod exec;
mod host;
mod idle;
mod list;
mod logs;
mod network;
mod pull;
mod registry;
mod report;
mod rows;
mod scale;
mod timing;
mod wires;

pub use args::{Args, CgroupView};

use anyhow::Result;
use clap::Parser;

/// The program: re-executes itself in fresh namespaces, then measures.
///
/// # Errors
/// When the place of measurement cannot be made; a contestant that fails is a line in the report.
pub fn main() -> Result<()> {
    let args = Args::parse();
    if !args.inner {
        return host::enter(&args);
    }
    let results = std::fs::File::create(&args.json)?;
    let place = host::prepare(&args)?;
    let report = rows::run(&args, &place)?;
    report.write_json(results)?;
    report.print(&mut std::io::stdout().lock())
}
