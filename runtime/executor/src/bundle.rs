//! A bundle: the OCI runtime spec with its paths already resolved to descriptors.

use std::os::fd::OwnedFd;

pub use amphora_spec::select::Executor as ExecutorKind;
use amphora_spec::{Digest, runtime::Spec};

/// Which seccomp filter a container gets when its spec names none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    /// The spec's own, or none.
    #[default]
    Spec,
    /// Docker's default profile for the container's capabilities.
    Default,
    /// None at all.
    Unconfined,
}

/// Everything a workload needs to make a plan.
#[derive(Debug)]
pub struct Bundle {
    /// Container id (64 hex digits from the engine; any name from a runtime command line).
    pub id: String,
    /// The runtime spec.
    pub spec: Spec,
    /// The root file system: a detached mount, or an opened directory tree clone.
    pub root: OwnedFd,
    /// Detached mounts to attach beside those of the spec (volumes, binds, `/etc/hosts` …);
    /// attributes such as read-only are already set on them.
    pub mounts: Vec<BundleMount>,
    /// The network namespace to join, fully configured; `None`: as the spec says.
    pub netns: Option<OwnedFd>,
    /// The init process of a running container to join, as a pidfd: the plan is then one of an exec
    /// session, takes its namespaces from there, and neither makes nor mounts anything. `root` is
    /// that container's root, and of `mounts` only the places count.
    pub join: Option<OwnedFd>,
    /// The container's cgroup, already made and limited.
    pub cgroup: amphora_cgroup::Cgroup,
    /// The module, for the Wasm executor.
    pub module: Option<Module>,
    /// The seccomp filter.
    pub seccomp: SeccompChoice,
    /// Whether the container's first process is an init that starts the program.
    pub init: bool,
}

/// One detached mount and where it goes.
#[derive(Debug)]
pub struct BundleMount {
    /// Absolute path inside the container; made (as directory or file, by the kind of the
    /// mount's root) when missing.
    pub destination: String,
    /// The detached mount (`open_tree(OPEN_TREE_CLONE)` or `fsmount`).
    pub fd: OwnedFd,
}

/// A Wasm module or component, by its source bytes.
#[derive(Debug)]
pub struct Module {
    /// The `.wasm` file, opened for reading.
    pub file: OwnedFd,
    /// SHA-256 of the file's bytes.
    pub digest: Digest,
    /// `argv[0]` for the guest.
    pub name: String,
    /// Export to call in place of the default, from `path#func`.
    pub function: Option<String>,
}
