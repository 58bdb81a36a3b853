//! The Linux executor: a plan that ends in the image's entrypoint.
//!
//! Must not know: Wasm, images, networks, volumes.

use amphora_executor::{
    BaseOptions, Bundle, ExecutorError, ExecutorKind, Program, Workload, base_plan, filter,
    validate,
};
use amphora_sys::LaunchPlan;

/// Runs Linux programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxWorkload;

impl Workload for LinuxWorkload {
    fn kind(&self) -> ExecutorKind {
        ExecutorKind::Linux
    }

    fn validate(&self, bundle: &Bundle) -> Result<(), ExecutorError> {
        validate(bundle)?;
        if bundle.spec.process.args.is_empty() {
            return Err(ExecutorError::Invalid(
                "process.args: no command given".into(),
            ));
        }
        Ok(())
    }

    fn prepare(&self, bundle: &Bundle) -> Result<LaunchPlan, ExecutorError> {
        base_plan(
            bundle,
            BaseOptions {
                seccomp: filter(bundle)?,
                program: Program::Entrypoint,
            },
        )
    }
}
