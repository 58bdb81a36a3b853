//! Records what the real docker says to the steps in `cli/amphora/tests/goldens`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The test that records when it is told where dockerd is.
const RECORDER: &str = "goldens::answers_are_recorded";
const PEERS: &str = "AMPHORA_GOLDENS_PEERS";

pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let [dir] = args else {
        anyhow::bail!("usage: cargo xtask goldens DIR");
    };
    let dir = std::fs::canonicalize(dir).with_context(|| format!("no directory {dir:?}"))?;
    ensure!(
        dir.join("usr/sbin/dockerd").is_file(),
        "{dir:?} holds no dockerd; cargo xtask peers makes such a tree"
    );
    let list = ["test", "--release", "-p", "amphora", "--test", "it", "--"];
    let status = crate::cargo(root, &[&list[..], &["--exact", RECORDER]].concat())
        .env(PEERS, dir)
        .status()
        .context("failed to run cargo")?;
    ensure!(status.success(), "docker's answers were not recorded");
    Ok(())
}
