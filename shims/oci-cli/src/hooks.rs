//! Hooks: programs of the caller's that run at fixed points of a container's life.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use amphora_spec::runtime::Hook;

use crate::error::{Result, RuncError};
use crate::log::Log;

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
