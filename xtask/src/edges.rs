//! Which crate may use which: floors, and edges that are forbidden whatever the floor.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// From the bottom up. A crate may use only what lies on a lower floor; the pairs in
/// [`SAME_FLOOR`] excepted.
const FLOORS: &[&[&str]] = &[
    &["amphora-spec", "amphora-template"],
    &["amphora-sys"],
    &["amphora-cgroup", "amphora-content", "amphora-docker-model"],
    &[
        "amphora-executor",
        "amphora-names",
        "amphora-network",
        "amphora-volume",
        "amphora-snapshot",
        "amphora-artifact",
    ],
    &[
        "amphora-linux",
        "amphora-wasm",
        "amphora-supervisor",
        "amphora-distribution",
    ],
    &["amphora-build", "amphora-engine"],
    &[
        "amphora-docker-api",
        "amphora-containerd-shim",
        "amphora-oci-cli",
    ],
    &["amphora-client"],
    &["amphora-compose"],
    &["amphora", "amphora-benches"],
    &["xtask"],
];

/// Edges along one floor that are wanted: (from, to).
const SAME_FLOOR: &[(&str, &str)] = &[];

/// Never, in no kind of dependency: (from, to).
const FORBIDDEN: &[(&str, &str)] = &[
    ("amphora-engine", "amphora-linux"),
    ("amphora-engine", "amphora-wasm"),
    ("amphora-docker-api", "amphora-linux"),
    ("amphora-docker-api", "amphora-wasm"),
    ("amphora-containerd-shim", "amphora-linux"),
    ("amphora-containerd-shim", "amphora-wasm"),
    ("amphora-oci-cli", "amphora-linux"),
    ("amphora-oci-cli", "amphora-wasm"),
    ("amphora-executor", "amphora-network"),
    ("amphora-executor", "amphora-volume"),
    ("amphora-executor", "amphora-content"),
    ("amphora-executor", "amphora-snapshot"),
    ("amphora-executor", "amphora-artifact"),
    ("amphora-executor", "amphora-distribution"),
    ("amphora-build", "amphora-executor"),
    ("amphora-names", "amphora-engine"),
    ("amphora-names", "amphora-network"),
    ("amphora-names", "amphora-supervisor"),
    ("amphora-supervisor", "amphora-engine"),
    ("amphora-supervisor", "amphora-network"),
    ("amphora-supervisor", "amphora-content"),
    ("amphora-supervisor", "amphora-snapshot"),
    ("amphora-supervisor", "amphora-artifact"),
    ("amphora-supervisor", "amphora-distribution"),
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
    kind: Option<String>,
}

/// Crates of the workspace and what each uses of it. Development dependencies are left out of the
/// floors: a test may wire more than its crate.
fn workspace(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let args = [
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ];
    let output = crate::cargo(root, &args)
        .output()
        .context("failed to run cargo metadata")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {error}");
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let uses = |package: &Package| -> Vec<String> {
        let local = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some());
        let shipped = local.filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        shipped.map(|dependency| dependency.name.clone()).collect()
    };
    Ok(metadata
        .packages
        .iter()
        .map(|package| (package.name.clone(), uses(package)))
        .collect())
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

fn edge_problem(from: &str, to: &str) -> Option<String> {
    if FORBIDDEN.contains(&(from, to)) {
        return Some(format!("{from} must not use {to}"));
    }
    let (lower, upper) = (floor(to)?, floor(from)?);
    let allowed = lower < upper || SAME_FLOOR.contains(&(from, to));
    (!allowed).then(|| format!("{from} (floor {upper}) must not use {to} (floor {lower})"))
}

/// Checks every edge, and that each crate has a floor and a place in ARCHITECTURE.md.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let crates = workspace(root)?;
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    let mut problems = Vec::new();
    for (name, uses) in &crates {
        if floor(name).is_none() {
            problems.push(format!("{name} has no floor in xtask/src/edges.rs"));
        }
        if !names_crate(&architecture, name) {
            problems.push(format!("ARCHITECTURE.md does not name {name}"));
        }
        problems.extend(uses.iter().filter_map(|used| edge_problem(name, used)));
    }
    Ok(problems)
}

/// Whether a text holds the name as a word of its own: `amphora-sys` is no mention of `amphora`.
fn names_crate(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(|c: char| !part(c)).any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_downwards_is_allowed() {
        assert_eq!(edge_problem("amphora-engine", "amphora-spec"), None);
    }

    #[test]
    fn an_edge_upwards_or_sideways_is_refused() {
        assert!(edge_problem("amphora-sys", "amphora-engine").is_some());
        assert!(edge_problem("amphora-network", "amphora-volume").is_some());
    }

    #[test]
    fn a_forbidden_edge_is_refused_although_it_goes_down() {
        assert!(edge_problem("amphora-engine", "amphora-wasm").is_some());
    }

    #[test]
    fn forbidden_edges_name_crates_with_a_floor() {
        for (from, to) in FORBIDDEN {
            assert!(floor(from).is_some(), "{from}");
            assert!(floor(to).is_some(), "{to}");
        }
    }

    #[test]
    fn a_longer_name_is_no_mention() {
        assert!(!names_crate("only amphora-sys here", "amphora"));
        assert!(names_crate("`amphora` (bin)", "amphora"));
    }
}
