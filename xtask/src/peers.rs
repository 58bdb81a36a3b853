//! Installs the engines that benches compare with.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    ensure!(args.len() == 1, "usage: cargo xtask peers DIR");
    let script = root.join("benches/peers.sh");
    let status = Command::new(&script).args(args).status();
    let status = status.with_context(|| format!("failed to run {script:?}"))?;
    ensure!(status.success(), "{script:?} ended with {status}");
    Ok(())
}
