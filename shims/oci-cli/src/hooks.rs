//! Hooks: programs of the caller's that run at fixed points of a container's life.

use std::ffi::CString;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use amphora_executor::{enter_cgroup, join_namespaces};
use amphora_spec::runtime::{Hook, Hooks, Spec};
use amphora_sys::launch::launch;
use amphora_sys::pidfd::{self, Exit, Wait};
use amphora_sys::plan::{Exec, FdSlot, LaunchPlan, Op};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, memfd_create};

use crate::error::{Result, RuncError};
use crate::kill::KILL;
use crate::listener::Agent;
use crate::log::Log;
use crate::state::{Container, Status};
use crate::{Context, exec, listener};

/// Runs the hooks of one stage in order where this process is; the first failure ends it.
pub(crate) fn run(stage: &'static str, hooks: &[Hook], state: &serde_json::Value) -> Result {
    each(stage, hooks, state, None, || {
        let (mut plan, streams) = with_own_streams()?;
        // The child begins without one.
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        plan.ops.push(Op::Umask(umask.bits()));
        Ok((plan, streams))
    })
}

/// Runs them all: one that fails is told, and keeps none from its turn.
pub(crate) fn run_all(stage: &'static str, hooks: &[Hook], state: &serde_json::Value, log: &Log) {
    for hook in hooks {
        if let Err(error) = run(stage, std::slice::from_ref(hook), state) {
            log.warning(&error.to_string());
        }
    }
}

/// Those that are run before the root is entered: `prestart`, `createRuntime`, `createContainer`.
pub(crate) fn before_pivot(hooks: &Hooks) -> impl Iterator<Item = &Hook> {
    let of_runtime = hooks.prestart.iter().chain(&hooks.create_runtime);
    of_runtime.chain(&hooks.create_container)
}

/// Where the container's root lies while these run: `root.path`, without links.
pub(crate) fn staged_root(container: &Container) -> Result<CString> {
    let path = &container.record.rootfs;
    let failed = RuncError::file(format!("failed to find root.path {}", path.display()));
    cstr(
        std::fs::canonicalize(path)
            .map_err(failed)?
            .as_os_str()
            .as_encoded_bytes(),
    )
}

/// Runs the hooks `createContainer` in the namespaces of a process that still has the host's tree,
/// as the host's root and from there.
pub(crate) fn create_container(container: &Container, hooks: &[Hook]) -> Result {
    let state = container.oci_state(Status::Creating);
    each("createContainer", hooks, &state, None, || {
        let (mut plan, streams) = with_own_streams()?;
        if let Some(cgroup) = container.cgroup()? {
            enter_cgroup(&cgroup, &mut plan).map_err(RuncError::Executor)?;
        }
        let gone = || RuncError::State("the container's process has ended".to_owned());
        let process = container.process()?.ok_or_else(gone)?;
        let spec = container.config()?;
        join_namespaces(&spec, process, &mut plan).map_err(RuncError::Executor)?;
        plan.ops.extend([
            Op::NewSession,
            Op::Umask(0o022),
            Op::Chdir(staged_root(container)?),
        ]);
        Ok((plan, streams))
    })
}

/// Runs the hooks `startContainer` as `exec` would run them, with what the container's program may
/// and no more.
pub(crate) fn start_container(
    context: &Context<'_>,
    container: &Container,
    spec: &Spec,
    hooks: &[Hook],
) -> Result {
    let state = container.oci_state(Status::Created);
    let agent = Agent::of(spec);
    each("startContainer", hooks, &state, Some(&agent), || {
        let mut spec = spec.clone();
        spec.process.terminal = false;
        let mut plan = exec::plan(context, container, spec)?;
        // What runs in there is to hold nothing of whoever calls us.
        let null = || {
            let file = std::fs::OpenOptions::new().write(true).open("/dev/null");
            file.map_err(RuncError::file("failed to open /dev/null"))
        };
        let streams = [plan.add_fd(null()?.into()), plan.add_fd(null()?.into())];
        Ok((plan, streams))
    })
}

/// An empty plan, and in it the standard output and error of this process.
fn with_own_streams() -> Result<(LaunchPlan, [FdSlot; 2])> {
    let failed = || RuncError::file("failed to hold the standard streams");
    let stdout = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(failed())?;
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(failed())?;
    let mut plan = LaunchPlan::default();
    let streams = [plan.add_fd(stdout), plan.add_fd(stderr)];
    Ok((plan, streams))
}

/// Runs hooks, each by a plan that is made for it and tells its standard output and error, with the
/// state on its standard input; the first failure ends it. `agent` answers for the filter they have, if
/// they have one.
fn each(
    stage: &'static str,
    hooks: &[Hook],
    state: &serde_json::Value,
    agent: Option<&Agent>,
    mut make: impl FnMut() -> Result<(LaunchPlan, [FdSlot; 2])>,
) -> Result {
    for hook in hooks {
        let (mut plan, [stdout, stderr]) = make()?;
        let stdin = plan.add_fd(on_stdin(state)?);
        plan.stdio = Some([stdin, stdout, stderr]);
        plan.exec = Some(program(hook)?);
        planned(hook, &mut plan, agent, state).map_err(|why| RuncError::Hook {
            stage,
            path: hook.path.clone(),
            why,
        })?;
    }
    Ok(())
}

/// The state as a file: a program that does not read it keeps nobody waiting.
fn on_stdin(state: &serde_json::Value) -> Result<OwnedFd> {
    let failed = || RuncError::file("failed to write the state for a hook");
    let file = memfd_create(c"state", MemfdFlags::CLOEXEC)
        .map_err(|errno| failed()(io::Error::from(errno)))?;
    let mut file = std::fs::File::from(file);
    file.write_all(state.to_string().as_bytes())
        .and_then(|()| file.rewind())
        .map_err(failed())?;
    Ok(file.into())
}

fn cstr(text: &[u8]) -> Result<CString> {
    CString::new(text).map_err(|_| RuncError::usage("hooks: a null byte in a text"))
}

/// Refuses what cannot be run later.
pub(crate) fn check(hooks: &Hooks) -> Result {
    let stages = [
        &hooks.prestart,
        &hooks.create_runtime,
        &hooks.create_container,
        &hooks.start_container,
        &hooks.poststart,
        &hooks.poststop,
    ];
    let all = stages.into_iter().flatten();
    all.map(checked).try_for_each(|made| made.map(drop))
}

fn checked(hook: &Hook) -> Result<Exec> {
    if hook.timeout == Some(0) {
        let text = format!("hooks: the timeout of \"{}\" is not above 0", hook.path);
        return Err(RuncError::usage(text));
    }
    program(hook)
}

fn program(hook: &Hook) -> Result<Exec> {
    if !hook.path.starts_with('/') {
        let text = format!("hooks: \"{}\" is not an absolute path", hook.path);
        return Err(RuncError::usage(text));
    }
    let list = |texts: &[String]| -> Result<Vec<CString>> {
        texts.iter().map(|text| cstr(text.as_bytes())).collect()
    };
    let path = cstr(hook.path.as_bytes())?;
    let argv = if hook.args.is_empty() {
        vec![path.clone()]
    } else {
        list(&hook.args)?
    };
    Ok(Exec::Path {
        name: hook.path.clone(),
        candidates: vec![path],
        argv,
        envp: list(&hook.env)?,
    })
}

fn planned(
    hook: &Hook,
    plan: &mut LaunchPlan,
    agent: Option<&Agent>,
    state: &serde_json::Value,
) -> std::result::Result<(), String> {
    let launched = match agent {
        Some(agent) => listener::launch(plan, agent, || Ok(state.clone()))
            .map_err(|error| amphora_spec::error::chain(&error))?,
        None => launch(plan).map_err(|error| amphora_spec::error::chain(&error))?,
    };
    let text = |error: io::Error| error.to_string();
    let end = hook.timeout.and_then(|seconds| {
        let seconds = Duration::from_secs(seconds);
        Instant::now().checked_add(seconds)
    });
    if let Some(end) = end {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|error| error.to_string())?;
            let mut fds = [PollFd::new(&launched.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(1..) => break,
                Ok(0) if left.is_zero() => {
                    pidfd::signal(launched.pidfd.as_fd(), KILL).map_err(text)?;
                    pidfd::wait(launched.pidfd.as_fd(), Wait::Block).map_err(text)?;
                    return Err("did not end in time".to_owned());
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }
    match pidfd::wait(launched.pidfd.as_fd(), Wait::Block).map_err(text)? {
        Some(Exit::Code(0)) => Ok(()),
        Some(Exit::Code(code)) => Err(format!("ended with exit status: {code}")),
        Some(Exit::Signal(number)) => Err(format!("ended with signal: {number}")),
        None => Err("cannot be waited for".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".to_owned(),
            args: ["name", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["A=b".to_owned()],
            timeout,
        }
    }

    #[test]
    fn a_hook_hears_the_state_and_its_failure_is_told() {
        let state = serde_json::json!({"id": "x"});
        let checks = r#"test "$(cat)" = '{"id":"x"}' && test "$A$HOME" = b && test "$0" = name"#;
        run("prestart", &[hook(checks, None)], &state).unwrap();
        let failed = [hook("exit 3", Some(5)), hook("touch /nowhere/x", None)];
        let text = run("prestart", &failed, &state).unwrap_err().to_string();
        assert_eq!(text, "prestart hook /bin/sh: ended with exit status: 3");
        let text = run("poststop", &[hook("sleep 60", Some(0))], &state).unwrap_err();
        assert!(text.to_string().ends_with("did not end in time"));
    }
}
