//! Installs what the tests need on a Debian machine: servers and observers that stand beside the
//! engine. The engine itself runs none of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

const PACKAGES: [&str; 16] = [
    "btrfs-progs",
    "busybox-static",
    "crun",
    "docker-registry",
    "docker.io",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "nftables",
    "podman",
    "procps",
    "runc",
    "strace",
    "uidmap",
    "util-linux",
    "xfsprogs",
];
/// Debian 13 has the client of `docker.io` in a package of its own.
const CLIENT: (&str, &str) = ("docker", "docker-cli");
const TARGETS: [&str; 4] = [
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-musl",
    "wasm32-wasip1",
    "wasm32-wasip2",
];
/// While it answers 101, a package's service is not started (Debian policy, section 9.3.3.2).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the packages and targets that are missing.
pub(crate) fn run() -> Result<()> {
    packages(&PACKAGES)?;
    let (program, package) = CLIENT;
    if !in_path(program) {
        install(&[package])?;
    }
    targets()
}

/// Installs those packages that are missing.
pub(crate) fn packages(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    shell("apt-get update -q || true")?;
    install(&missing)
}

/// Installs packages without starting their services.
fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    println!("xtask: installing {list}");
    let own_policy = !std::path::Path::new(POLICY).exists();
    if own_policy {
        shell(&format!(
            "printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"
        ))?;
    }
    let outcome = shell(&format!(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends {list}"
    ));
    if own_policy {
        shell(&format!("rm -f {POLICY}"))?;
    }
    outcome
}

/// Adds the compilation targets that are missing.
pub(crate) fn targets() -> Result<()> {
    let listed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output();
    let Ok(listed) = listed else { return Ok(()) };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for target in TARGETS
        .into_iter()
        .filter(|t| !listed.lines().any(|l| l == *t))
    {
        let status = Command::new("rustup")
            .args(["target", "add", target])
            .status();
        ensure!(
            status.is_ok_and(|s| s.success()),
            "failed to add the target {target}"
        );
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", package])
        .output();
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("ok installed"))
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A program that is run as root.
pub(crate) fn as_root(program: &Path) -> Command {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout.starts_with(b"0"));
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

fn shell(script: &str) -> Result<()> {
    let mut command = as_root(Path::new("sh"));
    let status = command.args(["-c", script]).status()?;
    ensure!(status.success(), "failed: {script}");
    Ok(())
}
