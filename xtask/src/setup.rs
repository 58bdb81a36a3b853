//! Installs what the tests need on a Debian machine: servers and observers that stand beside the
//! engine. The engine itself runs none of them.

use std::process::Command;

use anyhow::{Context, Result, ensure};

const PACKAGES: [&str; 13] = [
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
    "util-linux",
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
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|p| !installed(p)).collect();
    if !missing.is_empty() {
        shell("apt-get update -q || true")?;
        install(&missing)?;
    }
    let (program, package) = CLIENT;
    if !in_path(program) {
        install(&[package])?;
    }
    targets()
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

fn shell(script: &str) -> Result<()> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout.starts_with(b"0"));
    let words: &[&str] = if root {
        &["sh", "-c"]
    } else {
        &["sudo", "sh", "-c"]
    };
    let (program, args) = words.split_first().context("a command")?;
    let status = Command::new(program).args(args).arg(script).status()?;
    ensure!(status.success(), "failed: {script}");
    Ok(())
}
