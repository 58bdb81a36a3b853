//! The command tree. One file a family; every file parses, calls the engine, prints.
//!
//! Every enum of commands is deferred: only the command that is called is built, the others are a
//! name and a line. A doc comment on an `Args` struct would then take the place of its command's
//! line, so these structs have plain comments.

mod change;
mod commit;
mod container;
mod cp;
mod debug;
mod df;
mod diff;
mod events;
mod exec;
mod export;
mod foreground;
mod health_flags;
mod help;
mod history;
mod image;
mod images;
mod import;
mod info;
mod inspect;
mod logs;
mod network;
mod network_create;
mod network_flags;
mod network_ls;
mod pause;
mod port;
mod prune;
mod ps;
mod quick;
mod rename;
mod run;
mod run_flags;
mod save;
mod stats;
mod switches;
mod system;
mod top;
mod unsupported;
mod update;
pub(crate) mod usage;
mod volume;
mod volume_ls;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use amphora_engine::{Engine, EngineError, EngineOptions, Settings};
use amphora_executor::Workload;
use amphora_spec::ContainerId;
use clap::{Args, Parser, Subcommand};

use crate::errors::{Failure, Outcome, report};

const DEFAULT_ROOT: &str = "/var/lib/amphora";
const DEFAULT_RUN_ROOT: &str = "/run/amphora";
const DEFAULT_CONFIG: &str = "/etc/amphora/daemon.json";

/// Run Linux and WebAssembly containers
#[derive(Debug, Parser)]
#[command(
    name = "amphora",
    version,
    disable_help_subcommand = true,
    args_override_self = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Directory of persistent data [default: /var/lib/amphora]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of run-time data, on tmpfs [default: /run/amphora]
    #[arg(long, value_name = "DIR")]
    run_root: Option<PathBuf>,
    /// Registry to speak plain HTTP with; loopback ones need no mention
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// Configuration file [default: /etc/amphora/daemon.json]
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Create and run a new container from an image
    Run(run::RunArgs),
    /// Create a new container
    Create(run::CreateArgs),
    /// Manage containers
    #[command(subcommand)]
    Container(container::Container),
    /// Manage images
    #[command(subcommand)]
    Image(image::Image),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    #[command(flatten)]
    ContainerShort(container::Short),
    #[command(flatten)]
    Change(change::Change),
    #[command(flatten)]
    ImageShort(image::Short),
    #[command(flatten)]
    System(system::System),
    /// Return low-level information on containers, images, networks and volumes
    Inspect(inspect::InspectArgs),
}

/// Parses and carries out one command.
pub(crate) fn dispatch(args: &[OsString]) -> ExitCode {
    if args.len() == 2 && args[1] == "--version" {
        // As the whole tree says it; asked for by scripts at every step.
        crate::ui::line(concat!("amphora ", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    if let Some(code) = help::asked(args) {
        return code;
    }
    // What is wrong with a command line, the whole tree says best.
    let cli = match quick::parse(args).map_or_else(|| parse(args), Ok) {
        Ok(cli) => cli,
        Err((error, words)) => return unsupported::explain(&error, &words),
    };
    let engine = || open(&cli.global);
    let outcome = match cli.command {
        Command::Run(args) => return ExitCode::from(run::run(engine, args)),
        Command::Create(args) => return ExitCode::from(run::create(engine, args)),
        Command::Container(command) => container::container(engine, command),
        Command::ContainerShort(command) => container::short(engine, command),
        Command::Change(command) => change::change(engine, command),
        Command::Image(command) => image::image(engine, command),
        Command::ImageShort(command) => image::short(engine, command),
        Command::Network(command) => network::network(engine, command),
        Command::Volume(command) => volume::volume(engine, command),
        Command::System(command) => system::system(engine, &command),
        Command::Inspect(args) => engine().and_then(|engine| inspect::any(&engine, &args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(report(&failure)),
    }
}

/// Parses a command line. Switches with a value, as in `--rm=true`, are rare: they are looked for
/// only once it has failed. With the error come the words that it is about.
fn parse(args: &[OsString]) -> Result<Cli, (clap::Error, Vec<OsString>)> {
    Cli::try_parse_from(args).or_else(|error| match switches::settle(args) {
        Some(words) => Cli::try_parse_from(&words).map_err(|error| (error, words)),
        None => Err((error, args.to_vec())),
    })
}

/// Carries a hidden entry `NAME ROOT RUN_ROOT ID` out; `None` when there is no such engine or id.
/// No configuration file is read: what holds for a container was written down when it was made.
fn hidden<T>(
    args: &[OsString],
    open: impl FnOnce(&Global) -> Outcome<Engine>,
    run: impl FnOnce(&Engine, &ContainerId) -> Result<T, EngineError>,
) -> Option<Result<T, EngineError>> {
    let text = |i: usize| args.get(i).and_then(|a| a.to_str()).unwrap_or_default();
    let global = Global {
        root: Some(text(2).into()),
        run_root: Some(text(3).into()),
        insecure_registry: Vec::new(),
        config_file: None,
    };
    let engine = open(&global).ok()?;
    let id = text(4).parse().ok()?;
    Some(run(&engine, &id))
}

/// Hidden entry of the finisher: `finish ROOT RUN_ROOT ID`.
pub(crate) fn finish(args: &[OsString]) -> ExitCode {
    let open = |global: &Global| open_with(global, Settings::default(), Vec::new());
    match hidden(args, open, Engine::finish) {
        Some(Ok(())) => ExitCode::SUCCESS,
        // Nobody listens here; what is left is found by the next command's reconcile.
        _ => ExitCode::FAILURE,
    }
}

/// Hidden entry before a restart: `prepare ROOT RUN_ROOT ID`, started by a supervisor.
pub(crate) fn prepare(args: &[OsString]) -> ExitCode {
    let open = |global: &Global| open_by(global, Settings::default());
    match hidden(args, open, Engine::prepare) {
        Some(Ok(())) => ExitCode::SUCCESS,
        // The supervisor was told, and records it.
        _ => ExitCode::FAILURE,
    }
}

/// Hidden entry for a changed file of hosts: `peers ROOT RUN_ROOT NETWORK`, started by a supervisor.
pub(crate) fn peers(args: &[OsString]) -> ExitCode {
    let global = |at: usize| args.get(at).map(PathBuf::from);
    let Some(network) = args.get(4).and_then(|a| a.to_str()) else {
        return ExitCode::FAILURE;
    };
    let global = Global {
        root: global(2),
        run_root: global(3),
        insecure_registry: Vec::new(),
        config_file: None,
    };
    let engine = open_with(&global, Settings::default(), Vec::new());
    match engine.map(|engine| engine.follow_peers(network)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // What is wrong with the file is in the events; without its network nobody listens.
        _ => ExitCode::FAILURE,
    }
}

/// Hidden entry of a healthcheck: `probe ROOT RUN_ROOT ID`, started by a supervisor.
pub(crate) fn probe(args: &[OsString]) -> ExitCode {
    let open = |global: &Global| open_by(global, Settings::default());
    match hidden(args, open, Engine::probe) {
        Some(Ok(Some(status))) => ExitCode::from(status.exit_code()),
        // Nothing was found out: the supervisor tries again when the next check is due.
        Some(Ok(None)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A path from a flag, else from the environment.
fn given(flag: Option<&PathBuf>, key: &str) -> Option<PathBuf> {
    flag.cloned().or_else(|| {
        std::env::var_os(key)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    })
}

/// Reads the configuration file. One that was named must be there.
fn settings(global: &Global) -> Outcome<Settings> {
    let named = given(global.config_file.as_ref(), "AMPHORA_CONFIG");
    let path = named.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    match Settings::read(path).map_err(|e| Failure::Usage(amphora_spec::error::chain(&e)))? {
        None if named.is_some() => Err(Failure::Usage(format!(
            "configuration file {} does not exist",
            path.display()
        ))),
        found => Ok(found.unwrap_or_default()),
    }
}

fn roots(global: &Global, settings: &Settings) -> (PathBuf, PathBuf) {
    let pick = |flag, key, set: &Option<PathBuf>, default: &str| {
        given(flag, key)
            .or_else(|| set.clone())
            .unwrap_or_else(|| PathBuf::from(default))
    };
    (
        pick(
            global.root.as_ref(),
            "AMPHORA_ROOT",
            &settings.data_root,
            DEFAULT_ROOT,
        ),
        pick(
            global.run_root.as_ref(),
            "AMPHORA_RUN_ROOT",
            &settings.exec_root,
            DEFAULT_RUN_ROOT,
        ),
    )
}

/// Opens the engine as the configuration file says.
fn open(global: &Global) -> Outcome<Engine> {
    open_by(global, settings(global)?)
}

/// Opens the engine with both executors: the one place that knows them.
fn open_by(global: &Global, settings: Settings) -> Outcome<Engine> {
    let (root, run_root) = roots(global, &settings);
    let wasm = amphora_wasm::WasmWorkload::new(root.join("wasm-aot"))
        .with_stamps(run_root.join("wasm-aot"));
    let workloads: Vec<Box<dyn Workload>> =
        vec![Box::new(amphora_linux::LinuxWorkload), Box::new(wasm)];
    open_with(global, settings, workloads)
}

fn open_with(
    global: &Global,
    settings: Settings,
    workloads: Vec<Box<dyn Workload>>,
) -> Outcome<Engine> {
    let (root, run_root) = roots(global, &settings);
    let absolute = |p: PathBuf| {
        std::path::absolute(&p)
            .map_err(|e| Failure::Local(format!("invalid path \"{}\": {e}", p.display())))
    };
    let options = EngineOptions {
        warn: |text| crate::ui::warnings([text]),
        root: absolute(root)?,
        run_root: absolute(run_root)?,
        insecure_registries: global.insecure_registry.clone(),
        settings,
    };
    Ok(Engine::open(options, workloads)?)
}

/// The first of a command's words, which the parser has seen to, and those behind it.
fn split(words: Vec<String>) -> (String, Vec<String>) {
    let mut words = words.into_iter();
    (words.next().unwrap_or_default(), words.collect())
}

/// Runs `f` for each name; prints the failures, goes on, and fails at the end.
fn each(names: &[String], mut f: impl FnMut(&str) -> Outcome) -> Outcome {
    let mut failed = false;
    for name in names {
        if let Err(failure) = f(name) {
            let _ = report(&failure);
            failed = true;
        }
    }
    if failed {
        Err(Failure::Code(1))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Compares the line of each command in the list of its group with the head of its own help.
    fn check(group: &clap::Command) {
        for listed in group.get_subcommands() {
            let about = listed.get_about().map(ToString::to_string);
            let mut built = listed.clone();
            built.build();
            let own = built.get_about().map(ToString::to_string);
            assert!(about.is_some(), "{}", listed.get_name());
            assert_eq!(own, about, "{}", listed.get_name());
            check(&built);
        }
    }

    #[test]
    fn each_command_says_of_itself_what_the_list_says() {
        check(&Cli::command());
    }
}
