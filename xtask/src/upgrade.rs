//! Runs the upgrade tests with a program that was really built earlier.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The tests in which an older program's supervisors run.
const TESTS: &str = "upgrade::";
const OLD: &str = "AMPHORA_OLD";
const TARGET: &str = "x86_64-unknown-linux-musl";

pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let old = match args {
        [] => build(root, &newest_tag(root)?)?,
        // What was built before need not be built again.
        [given] if Path::new(given).is_file() => std::fs::canonicalize(given)?,
        [revision] => build(root, revision)?,
        _ => anyhow::bail!("usage: cargo xtask upgrade [REV | PROGRAM]"),
    };
    println!("xtask: the older program is {}", old.display());
    let list = [
        "test",
        "--release",
        "-p",
        "amphora",
        "--test",
        "it",
        "--",
        TESTS,
    ];
    let status = crate::cargo(root, &list)
        .env(OLD, &old)
        .status()
        .context("failed to run cargo")?;
    ensure!(status.success(), "the upgrade tests failed");
    Ok(())
}

fn git(root: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    let output = command.args(args).current_dir(root).output();
    let output = output.context("failed to run git")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "git {}: {}",
        args.join(" "),
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn newest_tag(root: &Path) -> Result<String> {
    git(root, &["describe", "--tags", "--abbrev=0"])
        .context("there is no tag: name a revision, as in cargo xtask upgrade REV")
}

/// Builds the program of a revision, in directories that are kept for the next time.
fn build(root: &Path, revision: &str) -> Result<PathBuf> {
    let commit = git(
        root,
        &["rev-parse", "--verify", &format!("{revision}^{{commit}}")],
    )?;
    let short = commit.get(..12).unwrap_or(&commit);
    let base = root.join("target/upgrade");
    let program = base.join(format!("amphora-{short}"));
    if program.is_file() {
        return Ok(program);
    }
    let tree = base.join("tree");
    std::fs::create_dir_all(&base)?;
    remove_tree(root, &tree)?;
    let place = tree.to_str().context("a path in UTF-8")?;
    git(
        root,
        &["worktree", "add", "--force", "--detach", place, &commit],
    )?;
    println!("xtask: building amphora of {short}");
    let built = crate::cargo(&tree, &["build", "--release", "-p", "amphora"])
        .env("CARGO_TARGET_DIR", base.join("target"))
        .status()
        .context("failed to run cargo");
    remove_tree(root, &tree)?;
    ensure!(built?.success(), "amphora of {short} does not build");
    let made = base.join("target").join(TARGET).join("release/amphora");
    std::fs::copy(&made, &program).with_context(|| format!("failed to copy {made:?}"))?;
    Ok(program)
}

fn remove_tree(root: &Path, tree: &Path) -> Result<()> {
    if tree.exists() {
        let place = tree.to_str().context("a path in UTF-8")?;
        git(root, &["worktree", "remove", "--force", place])?;
    }
    Ok(())
}
