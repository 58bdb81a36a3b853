//! Container commands beside `run` and `create`.

use std::io;

use amphora_engine::{
    Attach, ContainerView, Engine, LogOptions, RemoveOptions, Status, StopOptions,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::each;
use crate::errors::{Failure, Outcome};
use crate::ui;

/// `container …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Container {
    /// Create and run a new container from an image
    Run(super::run::RunArgs),
    /// Create a new container
    Create(super::run::CreateArgs),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(PsArgs),
    /// Display detailed information on one or more containers
    Inspect(InspectArgs),
    #[command(flatten)]
    Short(Short),
}

/// Container commands that stand at the top level too.
#[derive(Debug, Subcommand)]
pub(crate) enum Short {
    /// List containers
    #[command(name = "ps")]
    Ps(PsArgs),
    /// Start one or more stopped containers
    Start(StartArgs),
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
    Logs(LogsArgs),
    /// Block until one or more containers stop, then print their exit codes
    Wait(Names),
    /// List port mappings of a container
    Port(PortArgs),
    /// Return low-level information on containers, images and volumes
    #[command(name = "inspect")]
    InspectAny(InspectArgs),
}

/// Names of containers.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show the latest created container
    #[arg(short, long)]
    latest: bool,
    /// Show n last created containers
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Format output: table or json
    #[arg(long, value_parser = ["table", "json"])]
    format: Option<String>,
}

/// Flags of `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Flags of `stop` and `restart`.
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

/// Flags of `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "SIGKILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Flags of `rm`.
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

/// Flags of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all")]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

/// Arguments of `port`.
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// Name or id
    container: String,
    /// Only this port
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Only objects of this type
    #[arg(long = "type", value_parser = ["container", "image", "volume"])]
    kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

/// Carries out `container …`.
pub(crate) fn container(engine: impl FnOnce() -> Outcome<Engine>, command: Container) -> Outcome {
    match command {
        Container::Run(args) => exit(super::run::run(engine, args)),
        Container::Create(args) => exit(super::run::create(engine, args)),
        Container::Ls(args) => ps(&engine()?, &args),
        Container::Inspect(args) => {
            let engine = engine()?;
            inspect(&args.names, |name| engine.inspect_container(name))
        }
        Container::Short(command) => short(engine, command),
    }
}

fn exit(code: std::process::ExitCode) -> Outcome {
    // An exit code can only be compared; 0 to 255 are tried.
    let found = (0..=u8::MAX).find(|c| std::process::ExitCode::from(*c) == code);
    match found {
        Some(0) => Ok(()),
        other => Err(Failure::Code(other.unwrap_or(1))),
    }
}

/// Carries out a container command.
pub(crate) fn short(engine: impl FnOnce() -> Outcome<Engine>, command: Short) -> Outcome {
    let engine = engine()?;
    let engine = &engine;
    match command {
        Short::Ps(args) => ps(engine, &args),
        Short::Start(args) => start(engine, &args),
        Short::Stop(args) => each(&args.names, |name| {
            stop(engine, name, &args)?;
            ui::line(name);
            Ok(())
        }),
        Short::Restart(args) => each(&args.names, |name| {
            stop(engine, name, &args)?;
            engine.start(&engine.find(name)?, Attach::None)?;
            ui::line(name);
            Ok(())
        }),
        Short::Kill(args) => each(&args.names, |name| {
            engine.kill(&engine.find(name)?, &args.signal)?;
            ui::line(name);
            Ok(())
        }),
        Short::Rm(args) => {
            let options = RemoveOptions {
                force: args.force,
                volumes: args.volumes,
            };
            each(&args.names, |name| match engine.find(name) {
                Err(amphora_engine::EngineError::NoSuchContainer(_)) if args.force => Ok(()),
                Err(e) => Err(e.into()),
                Ok(id) => {
                    engine.remove(&id, options)?;
                    ui::line(name);
                    Ok(())
                }
            })
        }
        Short::Logs(args) => logs(engine, &args),
        Short::Wait(args) => each(&args.names, |name| {
            let code = engine.wait(&engine.find(name)?)?;
            ui::line(&code.to_string());
            Ok(())
        }),
        Short::Port(args) => port(engine, &args),
        Short::InspectAny(args) => inspect(&args.names, |name| match args.kind.as_deref() {
            Some("container") => engine.inspect_container(name),
            Some("image") => engine.inspect_image(name),
            Some("volume") => engine.inspect_volume(name),
            _ => engine.inspect(name),
        }),
    }
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
        return each(&args.names, |name| {
            engine.start(&engine.find(name)?, Attach::None)?;
            ui::line(name);
            Ok(())
        });
    }
    let [name] = args.names.as_slice() else {
        return Err(Failure::Local(
            "you cannot start and attach multiple containers at once".into(),
        ));
    };
    let attach = if args.interactive {
        Attach::OutputAndInput
    } else {
        Attach::Output
    };
    let signals = super::foreground::hold(true)?;
    let id = engine.find(name)?;
    let started = engine.start(&id, attach)?;
    let Some(client) = started.and_then(|s| s.client) else {
        return Ok(());
    };
    match super::foreground::follow(engine, &id, client, args.interactive, signals.as_ref())? {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}

fn logs(engine: &Engine, args: &LogsArgs) -> Outcome {
    let tail = match args.tail.as_str() {
        "all" => None,
        number => Some(number.parse().map_err(|_| {
            Failure::Local(format!("invalid argument \"{number}\" for \"--tail\" flag"))
        })?),
    };
    let options = LogOptions {
        follow: args.follow,
        tail,
        timestamps: args.timestamps,
    };
    let id = engine.find(&args.container)?;
    Ok(engine.logs(
        &id,
        options,
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    )?)
}

/// Prints the JSON array of what is found; reports the rest and fails.
pub(crate) fn inspect(
    names: &[String],
    mut f: impl FnMut(&str) -> amphora_engine::Result<Value>,
) -> Outcome {
    let mut found = Vec::new();
    let outcome = each(names, |name| {
        found.push(f(name)?);
        Ok(())
    });
    let text = serde_json::to_string_pretty(&found)
        .map_err(|e| Failure::Local(format!("failed to render: {e}")))?;
    ui::line(&text);
    outcome
}

fn port(engine: &Engine, args: &PortArgs) -> Outcome {
    let view = engine.view(&engine.find(&args.container)?)?;
    let wanted = args.port.as_deref().map(|p| {
        if p.contains('/') {
            p.to_owned()
        } else {
            format!("{p}/tcp")
        }
    });
    let mut shown = 0;
    for port in &view.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
        match &wanted {
            Some(want) if *want != key => continue,
            Some(_) => ui::line(&host.to_string()),
            None => ui::line(&format!("{key} -> {host}")),
        }
        shown += 1;
    }
    match wanted {
        Some(want) if shown == 0 => Err(Failure::Local(format!(
            "Error: No public port '{want}' published for {}",
            args.container
        ))),
        _ => Ok(()),
    }
}

fn ps(engine: &Engine, args: &PsArgs) -> Outcome {
    let count = args.last.or(args.latest.then_some(1));
    let mut views = engine.list(args.all || count.is_some())?;
    views.truncate(count.unwrap_or(usize::MAX));
    if args.quiet {
        for view in &views {
            ui::line(&id_text(view, args.no_trunc));
        }
        return Ok(());
    }
    if args.format.as_deref() == Some("json") {
        for view in &views {
            ui::line(&row_json(view).to_string());
        }
        return Ok(());
    }
    let header = [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
    ];
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|view| {
            vec![
                id_text(view, args.no_trunc),
                view.config.image.clone(),
                command_text(view, args.no_trunc),
                ui::ago(&view.config.created),
                status_text(view),
                ports_text(view),
                view.config.name.clone(),
            ]
        })
        .collect();
    ui::table(&header, &rows);
    Ok(())
}

fn row_json(view: &ContainerView) -> Value {
    json!({
        "ID": view.config.id.short(),
        "Image": view.config.image,
        "Command": command_text(view, false),
        "CreatedAt": view.config.created,
        "RunningFor": ui::ago(&view.config.created),
        "State": view.status.as_str(),
        "Status": status_text(view),
        "Ports": ports_text(view),
        "Names": view.config.name,
        "Labels": view.config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
        "Networks": view.config.host.network.name(),
        "Executor": view.config.executor.to_string(),
    })
}

fn id_text(view: &ContainerView, whole: bool) -> String {
    if whole {
        view.config.id.hex()
    } else {
        view.config.id.short()
    }
}

fn command_text(view: &ContainerView, whole: bool) -> String {
    let text = view.config.args().join(" ");
    if whole || text.chars().count() <= 20 {
        return format!("\"{text}\"");
    }
    let cut: String = text.chars().take(19).collect();
    format!("\"{cut}…\"")
}

fn status_text(view: &ContainerView) -> String {
    match view.status {
        Status::Created => "Created".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Running => {
            let since = view.started_at().unwrap_or_default();
            format!("Up {}", ui::human_duration(ui::age(&since).unwrap_or(0)))
        }
        Status::Exited => {
            let (code, when) = view
                .exit
                .as_ref()
                .map(|e| (e.code, e.finished_at.clone()))
                .unwrap_or_default();
            format!("Exited ({code}) {}", ui::ago(&when))
        }
    }
}

fn ports_text(view: &ContainerView) -> String {
    let mut parts: Vec<String> = view
        .ports
        .iter()
        .map(|p| {
            let host = std::net::SocketAddr::new(p.host_ip, p.host_port);
            format!("{host}->{}/{}", p.container_port, p.protocol)
        })
        .collect();
    if view.status == Status::Running {
        for exposed in &view.config.exposed {
            let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
            let published = view.ports.iter().any(|p| {
                p.container_port.to_string() == port && p.protocol.to_string() == protocol
            });
            if !published {
                parts.push(exposed.clone());
            }
        }
    }
    parts.join(", ")
}
