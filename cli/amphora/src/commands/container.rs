//! Container commands beside `run` and `create`.

use amphora_engine::{Attach, AttachStreams, Engine, RemoveOptions, StopOptions};
use clap::{Args, Subcommand};

use super::each;
use super::exec::{AttachArgs, ExecArgs};
use super::foreground::{Foreground, detach_keys};
use crate::errors::{Failure, Outcome};
use crate::ui;

/// `container …`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Container {
    /// Create and run a new container from an image
    Run(super::run::RunArgs),
    /// Create a new container
    Create(super::run::CreateArgs),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(super::ps::PsArgs),
    /// Display detailed information on one or more containers
    Inspect(super::inspect::ContainerArgs),
    /// Remove all stopped containers
    Prune(super::prune::ContainerArgs),
    #[command(flatten)]
    Short(Short),
    #[command(flatten)]
    Change(super::change::Change),
}

/// Container commands that stand at the top level too.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Short {
    /// List containers
    #[command(name = "ps")]
    Ps(super::ps::PsArgs),
    /// Start one or more stopped containers
    Start(StartArgs),
    /// Execute a command in a running container
    Exec(ExecArgs),
    /// Run tools of another image beside a running container
    Debug(super::debug::DebugArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(AttachArgs),
    /// Stop one or more running containers
    Stop(StopArgs),
    /// Restart one or more containers
    Restart(StopArgs),
    /// Kill one or more running containers
    Kill(KillArgs),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Fetch the logs of a container
    Logs(super::logs::LogsArgs),
    /// Block until one or more containers stop, then print their exit codes
    Wait(Names),
    /// Display a live stream of container(s) resource usage statistics
    Stats(super::stats::StatsArgs),
    /// Display the running processes of a container
    Top(super::top::TopArgs),
    /// List port mappings of a container
    Port(super::port::PortArgs),
}

// Names of containers.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

// Flags of `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

// Flags of `stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to send to the container
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(short, long, visible_alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

// Flags of `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "SIGKILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

// Flags of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Carries out `container …`.
pub(crate) fn container(engine: impl FnOnce() -> Outcome<Engine>, command: Container) -> Outcome {
    match command {
        Container::Run(args) => exit(super::run::run(engine, args)),
        Container::Create(args) => exit(super::run::create(engine, args)),
        Container::Ls(args) => super::ps::ps(&engine()?, &args),
        Container::Inspect(args) => super::inspect::container(&engine()?, &args),
        Container::Prune(args) => super::prune::containers(&engine()?, &args),
        Container::Short(command) => short(engine, command),
        Container::Change(command) => super::change::change(engine, command),
    }
}

fn exit(code: u8) -> Outcome {
    match code {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}

/// Carries out a container command.
pub(crate) fn short(engine: impl FnOnce() -> Outcome<Engine>, command: Short) -> Outcome {
    let engine = engine()?;
    let engine = &engine;
    match command {
        Short::Ps(args) => super::ps::ps(engine, &args),
        Short::Start(args) => start(engine, &args),
        Short::Exec(args) => super::exec::exec(engine, args),
        Short::Debug(args) => super::debug::debug(engine, args),
        Short::Attach(args) => super::exec::attach(engine, &args),
        Short::Stop(args) => each(&args.names, |name| {
            stop(engine, name, &args)?;
            ui::line(name);
            Ok(())
        }),
        Short::Restart(args) => each(&args.names, |name| {
            stop(engine, name, &args)?;
            let id = engine.find(name)?;
            let started = engine.start(&id, Attach::None)?;
            ui::warnings(started.iter().flat_map(|s| &s.warnings));
            engine.note_action(&id, "restart", &[])?;
            ui::line(name);
            Ok(())
        }),
        Short::Kill(args) => each(&args.names, |name| {
            engine
                .find(name)
                .and_then(|id| engine.kill(&id, &args.signal))
                .map_err(|e| kill_failed(name, &e))?;
            ui::line(name);
            Ok(())
        }),
        Short::Rm(args) => {
            let options = RemoveOptions {
                force: args.force,
                volumes: args.volumes,
            };
            each(&args.names, |name| match engine.find(name) {
                Err(e @ amphora_engine::EngineError::NoSuchContainer(_)) if args.force => {
                    ui::error(&crate::errors::daemon_text(&e));
                    Ok(())
                }
                Err(e) => Err(e.into()),
                Ok(id) => {
                    engine.remove(&id, options)?;
                    ui::line(name);
                    Ok(())
                }
            })
        }
        Short::Logs(args) => super::logs::logs(engine, &args),
        Short::Wait(args) => each(&args.names, |name| {
            let code = engine.wait(&engine.find(name)?)?;
            ui::line(&code.to_string());
            Ok(())
        }),
        Short::Stats(args) => super::stats::stats(engine, &args),
        Short::Top(args) => super::top::top(engine, &args),
        Short::Port(args) => super::port::port(engine, &args),
    }
}

/// Docker names the container before what is wrong, but where that is said of it already.
fn kill_failed(name: &str, error: &amphora_engine::EngineError) -> Failure {
    let text = amphora_spec::error::chain(error);
    if text.starts_with("cannot kill container") {
        return Failure::Daemon(text);
    }
    Failure::Daemon(format!("cannot kill container: {name}: {text}"))
}

fn stop(engine: &Engine, name: &str, args: &StopArgs) -> Outcome {
    let options = StopOptions {
        signal: args.signal.clone(),
        timeout: args.timeout,
    };
    Ok(engine.stop(&engine.find(name)?, &options)?)
}

fn start(engine: &Engine, args: &StartArgs) -> Outcome {
    if !args.attach && !args.interactive {
        let mut failed = Vec::new();
        return each(&args.names, |name| {
            let started = engine
                .find(name)
                .and_then(|id| engine.start(&id, Attach::None))
                .inspect_err(|_| failed.push(name.to_owned()))?;
            ui::warnings(started.iter().flat_map(|s| &s.warnings));
            ui::line(name);
            Ok(())
        })
        .inspect_err(|_| {
            let names = failed.join(", ");
            ui::error(&format!("Error: failed to start containers: {names}"));
        });
    }
    let [name] = args.names.as_slice() else {
        return Err(Failure::Local(
            "you cannot start and attach multiple containers at once".into(),
        ));
    };
    let id = engine.find(name)?;
    let config = engine.view(&id)?.config;
    let streams = AttachStreams {
        stdin: args.interactive && config.open_stdin,
        stdout: true,
        stderr: !config.tty,
        size: None,
    };
    let keys = detach_keys(args.detach_keys.as_deref(), config.tty)?;
    crate::terminal::check(streams.stdin, config.tty)?;
    let foreground = Foreground::new(streams, config.tty, keys, !config.tty)?;
    let started = engine.start(&id, Attach::To(foreground.streams()))?;
    ui::warnings(started.iter().flat_map(|s| &s.warnings));
    let client = match started.and_then(|s| s.client) {
        Some(client) => client,
        // It ran already: then this is `attach`.
        None => {
            let mut client = engine.attach(&id, foreground.streams())?;
            foreground.repaint(&mut client);
            client
        }
    };
    match foreground.follow(engine, &id, client)? {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}
