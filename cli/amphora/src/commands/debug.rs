//! `debug`.

use std::io::{self, IsTerminal};

use amphora_engine::{AttachStreams, Debugging, Engine, EngineError, ExecOptions};
use amphora_spec::Reference;
use clap::Args;

use super::exec::{not_started, told};
use super::foreground::{Ended, Foreground};
use crate::errors::{Failure, Outcome};
use crate::{parse, terminal, ui};

// Arguments of `debug`.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub(crate) struct DebugArgs {
    /// Image with the tools; pulled when it is missing
    #[arg(long, default_value = "busybox:latest")]
    image: String,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<String>,
    /// Keep STDIN open
    #[arg(short, long)]
    interactive: bool,
    /// Give every capability to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY; with STDIN the default without a command at a terminal
    #[arg(short, long)]
    tty: bool,
    /// Username or UID of the image with the tools (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory in the image with the tools
    #[arg(short, long)]
    workdir: Option<String>,
    /// Name or id, its own files are under $AMPHORA_TARGET, which is /proc/1/root; command and its
    /// arguments [default: the image's]
    // One list: flags end with its first word.
    #[arg(required = true, value_name = "CONTAINER")]
    words: Vec<String>,
}

/// `debug`.
pub(crate) fn debug(engine: &Engine, args: DebugArgs) -> Outcome {
    let (container, command) = super::split(args.words);
    let id = engine.find(&container)?;
    let plain = command.is_empty() && !args.interactive && !args.tty;
    let seated = plain && io::stdin().is_terminal() && ui::stdout_is_terminal();
    let (interactive, tty) = (args.interactive || seated, args.tty || seated);
    terminal::check(interactive, tty)?;
    fetch(engine, &args.image)?;
    let streams = AttachStreams {
        stdin: interactive,
        stdout: true,
        stderr: !tty,
        size: None,
    };
    let foreground = Foreground::new(streams, tty, None, false)?;
    let options = ExecOptions {
        args: command,
        env: parse::environment(args.env, &args.env_file)?,
        workdir: args.workdir,
        user: args.user,
        privileged: args.privileged,
        tty,
        open_stdin: interactive,
        attach: foreground.streams(),
    };
    let Debugging {
        mut session,
        scratch,
    } = engine
        .debug(&id, &args.image, &options)
        .map_err(not_started)?;
    let ended = foreground.pump(&mut session.client);
    if !matches!(ended, Ok(Ended::Code(_))) {
        scratch.keep();
    }
    told(ended?, &container)
}

/// Pulls the tools when they are missing, as `run` does.
fn fetch(engine: &Engine, image: &str) -> Outcome {
    let missing = match engine.image(image) {
        Err(e @ EngineError::NoSuchImage(_)) => e,
        found => return found.map(drop).map_err(Failure::from),
    };
    if image.starts_with("sha256:") {
        return Err(missing.into());
    }
    let reference: Reference = image
        .parse()
        .map_err(|e: amphora_spec::reference::ReferenceError| Failure::Local(e.to_string()))?;
    let reference = reference.with_default_tag();
    ui::error(&format!(
        "Unable to find image '{}' locally",
        reference.familiar()
    ));
    super::image::pull_into(engine, &reference, None, false, true)
}
