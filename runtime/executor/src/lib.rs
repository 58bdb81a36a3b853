//! The seam between the engine and its executors, and the lifecycle both share.
//!
//! Must not know: networks, volumes, images. They arrive as values: descriptors and mounts.

pub mod base;
pub mod bundle;
mod caps;
mod cgroup;
mod devices;
mod error;
mod ids;
mod kinds;
pub mod lsm;
mod mounts;
mod new_fs;
mod options;
mod properties;
pub mod seccomp;
pub mod user;
mod userns;
mod validate;

pub use base::{BaseOptions, Program, base_plan, filter};
pub use bundle::{Bundle, BundleMount, ExecutorKind, Module, SeccompChoice};
pub use caps::capabilities;
pub use cgroup::enter as enter_cgroup;
pub use error::ExecutorError;
pub use options::mount_options;
pub use properties::cpu_mask;
pub use user::{ResolvedUser, resolve_groups, resolve_user};
pub use userns::{is_inside, is_privileged, join as join_namespaces};
pub use validate::validate;

use amphora_sys::LaunchPlan;

/// What differs between executors.
pub trait Workload: Send + Sync {
    /// Says which executor this is.
    fn kind(&self) -> ExecutorKind;

    /// Refuses a bundle before anything exists, naming the field it cannot honour.
    ///
    /// # Errors
    /// Whatever is malformed or unsupported.
    fn validate(&self, bundle: &Bundle) -> Result<(), ExecutorError>;

    /// Resolves, opens and compiles everything and writes it down as a plan.
    ///
    /// # Errors
    /// Whatever cannot be resolved.
    fn prepare(&self, bundle: &Bundle) -> Result<LaunchPlan, ExecutorError>;

    /// Says what of the bundle does not hold for this workload, and does no harm: a line each,
    /// for the user to read.
    fn notes(&self, bundle: &Bundle) -> Vec<String> {
        let _ = bundle;
        Vec::new()
    }

    /// Does ahead of time what `prepare` would otherwise do at the first start (Wasm: compile).
    ///
    /// # Errors
    /// What the module is refused for.
    fn warm(&self, module: &Module) -> Result<(), ExecutorError> {
        let _ = module;
        Ok(())
    }
}
