//! The Linux executor: a plan that ends in the image's entrypoint.
//!
//! Must not know: Wasm, images, networks, volumes.

use amphora_executor::{
    BaseOptions, Bundle, ExecutorError, ExecutorKind, Program, Workload, base_plan, filter,
    validate,
};
use amphora_sys::LaunchPlan;
use amphora_sys::init::INIT_ENTRY;

/// Our own init, which starts the program of the spec; not to be found, let alone written, inside.
fn behind_init(bundle: &Bundle) -> Result<Program, ExecutorError> {
    let process = &bundle.spec.process;
    let program = amphora_sys::process::self_exe_readonly()
        .map_err(ExecutorError::kernel("open the init"))?;
    let words = ["amphora", INIT_ENTRY, "--"].map(str::to_owned);
    Ok(Program::Fd {
        program,
        args: words.into_iter().chain(process.args.clone()).collect(),
        env: process.env.clone(),
        fds: Vec::new(),
    })
}

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
                program: if bundle.init && bundle.join.is_none() {
                    behind_init(bundle)?
                } else {
                    Program::Entrypoint
                },
            },
        )
    }
}
