//! Hooks: programs of the caller's that run at fixed points of a container's life.

use std::ffi::CString;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use amphora_spec::runtime::{Hook, Hooks, Spec};
use amphora_sys::launch::launch;
use amphora_sys::pidfd::{self, Wait};
use amphora_sys::plan::{Exec, LaunchPlan, Op};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Result, RuncError};
use crate::log::Log;
use crate::state::{Container, Status};
use crate::{Context, exec};

/// What a hook joins beside the pid namespace: mount, cgroup, UTS, IPC and network.
const NAMESPACES: i32 = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000;
/// How often a hook with a timeout is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Runs the hooks of one stage in order, each with the state on its standard input; the first
/// failure ends it.
pub(crate) fn run(stage: &'static str, hooks: &[Hook], state: &serde_json::Value) -> Result {
    hooks.iter().try_for_each(|hook| {
        one(hook, state).map_err(|why| RuncError::Hook {
            stage,
            path: hook.path.clone(),
            why,
        })
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
    each("createContainer", hooks, &state, |_| {
        let mut plan = LaunchPlan::default();
        for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
            let stream = stream.try_clone_to_owned();
            plan.add_fd(stream.map_err(RuncError::file("failed to hold the standard streams"))?);
        }
        if let Some(cgroup) = container.cgroup()? {
            for tasks in cgroup.tasks_fds()? {
                let tasks = plan.add_fd(tasks);
                plan.ops.push(Op::JoinCgroup { tasks });
            }
            if let Some(directory) = cgroup.launch_fd() {
                let directory = directory.try_clone_to_owned();
                let directory = directory.map_err(RuncError::file("failed to hold the cgroup"))?;
                plan.cgroup = Some(plan.add_fd(directory));
            }
        }
        let gone = || RuncError::State("the container's process has ended".to_owned());
        let ns = plan.add_fd(container.process()?.ok_or_else(gone)?);
        plan.pid_namespace = Some(ns);
        let kind = NAMESPACES;
        plan.ops.push(Op::SetNs { ns, kind });
        plan.ops.extend([
            Op::NewSession,
            Op::Umask(0o022),
            Op::Chdir(staged_root(container)?),
        ]);
        Ok(plan)
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
    each("startContainer", hooks, &state, |_| {
        let mut spec = spec.clone();
        spec.process.terminal = false;
        let mut plan = exec::plan(context, container, spec)?;
        // What runs in there is to hold nothing of whoever calls us.
        let null = || {
            let file = std::fs::OpenOptions::new().write(true).open("/dev/null");
            file.map_err(RuncError::file("failed to open /dev/null"))
        };
        let streams = [plan.add_fd(null()?.into()), plan.add_fd(null()?.into())];
        plan.stdio = Some([0, streams[0], streams[1]]);
        Ok(plan)
    })
}

/// Runs hooks by plans of their own.
fn each(
    stage: &'static str,
    hooks: &[Hook],
    state: &serde_json::Value,
    mut make: impl FnMut(&Hook) -> Result<LaunchPlan>,
) -> Result {
    for hook in hooks {
        let mut plan = make(hook)?;
        let [stdout, stderr] = match plan.stdio {
            Some([_, stdout, stderr]) => [stdout, stderr],
            None => [0, 1],
        };
        let stdin = plan.add_fd(on_stdin(state)?);
        plan.stdio = Some([stdin, stdout, stderr]);
        plan.exec = Some(program(hook)?);
        planned(hook, &plan).map_err(|why| RuncError::Hook {
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
    let inside = hooks.create_container.iter().chain(&hooks.start_container);
    inside.map(program).try_for_each(|made| made.map(drop))
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

fn planned(hook: &Hook, plan: &LaunchPlan) -> std::result::Result<(), String> {
    let launched = launch(plan).map_err(|error| amphora_spec::error::chain(&error))?;
    let text = |error: io::Error| error.to_string();
    if let Some(seconds) = hook.timeout {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|error| error.to_string())?;
            let mut fds = [PollFd::new(&launched.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(1..) => break,
                Ok(0) if left.is_zero() => {
                    pidfd::signal(launched.pidfd.as_fd(), 9).map_err(text)?;
                    pidfd::wait(launched.pidfd.as_fd(), Wait::Block).map_err(text)?;
                    return Err("did not end in time".to_owned());
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }
    match pidfd::wait(launched.pidfd.as_fd(), Wait::Block).map_err(text)? {
        Some(exit) if exit.shell_code() == 0 => Ok(()),
        Some(exit) => Err(format!("ended with code {}", exit.shell_code())),
        None => Err("cannot be waited for".to_owned()),
    }
}

fn one(hook: &Hook, state: &serde_json::Value) -> std::result::Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to know closes its end.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let deadline = hook
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        let ended = match deadline {
            None => child.wait().map(Some),
            Some(_) => child.try_wait(),
        };
        match ended.map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if deadline.is_some_and(|end| Instant::now() >= end) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("did not end in time".to_owned());
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() {
        Ok(())
    } else {
        Err(format!("ended with {status}"))
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
