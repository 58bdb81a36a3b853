//! `exec` and `attach`.

use std::io::Write;

use amphora_engine::{AttachStreams, Engine, EngineError, ExecOptions, ExecStarted};
use amphora_spec::{Classify, ErrorKind};
use clap::Args;

use super::foreground::{Ended, Foreground, byte, detach_keys};
use crate::errors::{Failure, Outcome};
use crate::{parse, terminal};

// Flags of `exec`.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub(crate) struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    workdir: Option<String>,
    /// Name or id; command and its arguments
    // One list: flags end with its first word.
    #[arg(required = true, num_args = 2.., value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

// Flags of `attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sig_proxy: bool,
    /// Name or id
    container: String,
}

/// `exec`.
pub(crate) fn exec(engine: &Engine, args: ExecArgs) -> Outcome {
    let (container, command) = super::split(args.words);
    let id = engine.find(&container)?;
    // As with Docker, it is the daemon that refuses keys, after the client has read files.
    let env = parse::environment(args.env, &args.env_file).map_err(|failure| match failure {
        Failure::Usage(text) if !super::usage::is_about_a_flag(&text) => Failure::Local(text),
        other => other,
    })?;
    let keys = detach_keys(args.detach_keys.as_deref(), args.tty).map_err(|_| {
        let keys = args.detach_keys.as_deref().unwrap_or_default();
        Failure::Daemon(format!("Invalid escape keys ({keys}) provided"))
    })?;
    let streams = AttachStreams {
        stdin: args.interactive && !args.detach,
        stdout: !args.detach,
        stderr: !args.detach && !args.tty,
        size: None,
    };
    if !args.detach {
        terminal::check(args.interactive, args.tty)?;
    }
    let foreground = Foreground::new(streams, args.tty && !args.detach, keys, false)?;
    let options = ExecOptions {
        args: command,
        env,
        workdir: args.workdir,
        user: args.user,
        privileged: args.privileged,
        tty: args.tty,
        open_stdin: args.interactive,
        attach: foreground.streams(),
    };
    let started = engine.exec(&id, &options);
    if args.detach {
        return started.map(drop).map_err(Failure::from);
    }
    follow(started, &foreground, &container)
}

/// Copies until a session in a container has ended.
fn follow(
    started: Result<ExecStarted, EngineError>,
    foreground: &Foreground,
    container: &str,
) -> Outcome {
    let mut started = started.map_err(not_started)?;
    told(foreground.pump(&mut started.client)?, container)
}

/// What becomes of a session that did not come to be.
pub(crate) fn not_started(error: EngineError) -> Failure {
    match error {
        // Docker has it in the session's output.
        EngineError::Exec(text, kind) => {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "{text}\r\n");
            Failure::Code(exec_code(kind))
        }
        e => e.into(),
    }
}

/// What becomes of a session's end.
pub(crate) fn told(ended: Ended, container: &str) -> Outcome {
    match ended {
        Ended::Code(0) | Ended::Alone => Ok(()),
        Ended::Code(code) => Err(Failure::Code(byte(code))),
        Ended::Detached => Err(escaped()),
        Ended::Lost => Err(Failure::Local(format!(
            "lost the connection to container {container}: its supervisor was killed"
        ))),
    }
}

fn exec_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::CommandNotFound => 127,
        _ => 126,
    }
}

/// What Docker says and answers when the keys that detach were typed.
pub(crate) fn escaped() -> Failure {
    Failure::Local("read escape sequence".to_owned())
}

/// `attach`.
pub(crate) fn attach(engine: &Engine, args: &AttachArgs) -> Outcome {
    let id = engine.find(&args.container)?;
    let view = engine.view(&id)?;
    let tty = view.config.tty;
    let keys = detach_keys(args.detach_keys.as_deref(), tty)?;
    if view.status == amphora_engine::Status::Running {
        terminal::check(!args.no_stdin, tty)?;
    }
    let streams = AttachStreams {
        stdin: !args.no_stdin && view.config.open_stdin,
        stdout: true,
        stderr: !tty,
        size: None,
    };
    let foreground = Foreground::new(streams, tty, keys, args.sig_proxy && !tty)?;
    let mut client = engine.attach(&id, foreground.streams()).map_err(|e| {
        // The command line says this itself, without asking anybody.
        if e.kind() == ErrorKind::FailedPrecondition {
            Failure::Local(e.to_string())
        } else {
            e.into()
        }
    })?;
    foreground.repaint(&mut client);
    let code = match foreground.pump(&mut client)? {
        Ended::Code(code) => byte(code),
        Ended::Lost => byte(engine.wait(&id)?),
        Ended::Alone => 0,
        Ended::Detached => return Err(escaped()),
    };
    match code {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}
