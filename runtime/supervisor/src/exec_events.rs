//! What is told of exec sessions.

use crate::config::Config;
use crate::exec::ExecConfig;

/// The records of a session that was made and started.
pub(crate) fn started(config: &Config, exec: &ExecConfig) -> String {
    let command = exec.args.join(" ");
    let line = |action: &str| {
        let action = format!("{action}: {command}");
        config.event(&action, &[("execID", &exec.id)])
    };
    line("exec_create") + &line("exec_start")
}

/// The record of a session that has ended.
pub(crate) fn ended(config: &Config, id: &str, code: i32) -> String {
    let code = code.to_string();
    let more = [("execID", id), ("exitCode", code.as_str())];
    config.event("exec_die", &more)
}
