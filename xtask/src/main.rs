//! `cargo xtask`: the project's own checks and its test runner.
#![expect(
    clippy::print_stdout,
    reason = "a command line program: its output is its purpose"
)]

mod demo;
mod edges;
mod goldens;
mod hot;
mod machine;
mod peers;
mod setup;
mod source;
mod suite;
mod tidy;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "usage: cargo xtask COMMAND

  demo         build amphora and run a Linux and a Wasm container side by side
  tidy         check crate edges, sizes and habits
  test [ARGS]  run all tests (ARGS go to cargo test) and count what was skipped
  lint         fmt, clippy, tidy, and what there is of C-free crates on aarch64
  peers DIR    install the engines that benches compare with into DIR
  goldens DIR  record what docker says: its client here, its daemon of DIR, made by peers
  hot COMMAND  add the functions that a run of amphora passes through to cli/amphora/hot.txt
  upgrade REV  run the upgrade tests with supervisors of a program built from REV
  machine [TEST... | -- COMMAND]
               boot a machine with systemd and pure cgroup v2 (qemu) and run in it the tests that
               need it, those that have TEST in their names, or a command of the shell";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let root = root()?;
    match command.as_deref() {
        Some("demo") => demo::run(&root),
        Some("tidy") => tidy::run(&root),
        Some("test") => {
            setup::run()?;
            suite::run(&root, &rest)
        }
        Some("lint") => {
            setup::targets()?;
            lint(&root)
        }
        Some("peers") => peers::run(&root, &rest),
        Some("goldens") => goldens::run(&root, &rest),
        Some("hot") => hot::run(&root, &rest),
        Some("machine") => machine::run(&root, &rest),
        Some("upgrade") => upgrade::run(&root, &rest),
        _ => bail!("{USAGE}"),
    }
}

/// The workspace's directory, one above this crate's.
fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own
        .parent()
        .context("xtask lies in the workspace")?
        .to_path_buf())
}

/// The cargo that runs us, without what it told us about our own package: build scripts that look at
/// such variables would run again each time somebody calls cargo without us.
fn cargo(root: &Path, args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.args(args).current_dir(root);
    command
}

/// The crates without C, which need no compiler of another machine to be checked for it.
const PORTABLE: [&str; 11] = [
    "amphora-spec",
    "amphora-template",
    "amphora-sys",
    "amphora-cgroup",
    "amphora-executor",
    "amphora-names",
    "amphora-network",
    "amphora-volume",
    "amphora-linux",
    "amphora-supervisor",
    "amphora-oci-cli",
];

fn lint(root: &Path) -> Result<()> {
    let mut portable = vec![
        "check",
        "--release",
        "--target",
        "aarch64-unknown-linux-musl",
    ];
    portable.extend(PORTABLE.iter().flat_map(|name| ["--package", *name]));
    let steps: [&[&str]; 3] = [
        &["fmt", "--all", "--check"],
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        &portable,
    ];
    for step in steps {
        println!("xtask: cargo {}", step.join(" "));
        let status = cargo(root, step).status().context("failed to run cargo")?;
        ensure!(status.success(), "cargo {} failed", step.join(" "));
    }
    tidy::run(root)
}
