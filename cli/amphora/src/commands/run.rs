//! `run` and `create`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use amphora_engine::{
    Attach, CreateOptions, Engine, EngineError, HostConfig, MountPoint, NetworkMode,
};
use amphora_spec::Reference;
use clap::{Args, ValueEnum};

use crate::errors::{Failure, Outcome, daemon_text, run_code};
use crate::{parse, ui};

/// Flags that `run` and `create` share.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, trailing_var_arg = true)]
pub(crate) struct CreateArgs {
    /// Print usage
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Assign a name to the container
    #[arg(long)]
    name: Option<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    workdir: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long)]
    user: Option<String>,
    /// Container host name
    #[arg(short, long)]
    hostname: Option<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long)]
    entrypoint: Option<String>,
    /// Set meta data on a container
    #[arg(short, long)]
    label: Vec<String>,
    /// Add an annotation to the container
    #[arg(long)]
    annotation: Vec<String>,
    /// Bind mount a volume
    #[arg(short, long)]
    volume: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long)]
    tmpfs: Vec<String>,
    /// Publish a container's port(s) to the host
    #[arg(short, long)]
    publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Connect a container to a network: bridge, host or none
    #[arg(long, visible_alias = "net", default_value = "bridge")]
    network: String,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long)]
    add_host: Vec<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Memory limit
    #[arg(short, long)]
    memory: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Number of CPUs
    #[arg(long)]
    cpus: Option<String>,
    /// CPU shares (relative weight)
    #[arg(short, long)]
    cpu_shares: Option<u64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Add Linux capabilities
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Security options: no-new-privileges, seccomp=unconfined
    #[arg(long)]
    security_opt: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long)]
    shm_size: Option<String>,
    /// Ulimit options
    #[arg(long)]
    ulimit: Vec<String>,
    /// Automatically remove the container when it exits
    #[arg(long)]
    rm: bool,
    /// Runtime to use for this container: linux or wasm
    #[arg(long)]
    runtime: Option<String>,
    /// Set platform if the image is for several
    #[arg(long)]
    platform: Option<String>,
    /// Pull image before running
    #[arg(long, value_enum, default_value = "missing")]
    pull: Pull,
    /// Suppress the pull output
    #[arg(short, long)]
    quiet: bool,
    /// Signal to stop the container
    #[arg(long)]
    stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long)]
    stop_timeout: Option<u64>,
    /// Logging driver: json-file or none
    #[arg(long, value_enum, default_value = "json-file")]
    log_driver: LogDriver,
    /// Restart policy; only "no" for now
    #[arg(long, value_parser = ["no"], default_value = "no")]
    restart: String,
    /// Write the container ID to the file
    #[arg(long)]
    cidfile: Option<std::path::PathBuf>,
    /// Image to run
    image: String,
    /// Command and its arguments
    #[arg(allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    Always,
    Missing,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogDriver {
    JsonFile,
    None,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Proxy received signals to the process
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sig_proxy: bool,
    #[command(flatten)]
    create: CreateArgs,
}

/// `run`.
pub(crate) fn run(engine: impl FnOnce() -> Outcome<Engine>, args: RunArgs) -> ExitCode {
    match try_run(engine, args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail("run", &failure),
    }
}

/// `create`.
pub(crate) fn create(engine: impl FnOnce() -> Outcome<Engine>, args: CreateArgs) -> ExitCode {
    let made = || -> Outcome {
        let engine = engine()?;
        let (pull, quiet, cidfile) = (args.pull, args.quiet, args.cidfile.clone());
        check_cidfile(cidfile.as_deref())?;
        let options = options(args)?;
        let image = ensure(&engine, &options, pull, quiet)?;
        let id = retry(
            image,
            || engine.create(options.clone()),
            || fetch(&engine, &options, quiet, true),
        )?;
        write_cidfile(cidfile.as_deref(), &id.hex())?;
        ui::line(&id.hex());
        Ok(())
    };
    match made() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail("create", &failure),
    }
}

fn fail(verb: &str, failure: &Failure) -> ExitCode {
    let hint = format!("\n\nRun 'amphora {verb} --help' for more information");
    match failure {
        Failure::Engine(error) => {
            ui::error(&format!("amphora: {}{hint}", daemon_text(error)));
            ExitCode::from(run_code(error))
        }
        Failure::Usage(text) | Failure::Local(text) => {
            ui::error(&format!("amphora: {text}{hint}"));
            ExitCode::from(125)
        }
        Failure::Code(code) => ExitCode::from(*code),
    }
}

fn try_run(engine: impl FnOnce() -> Outcome<Engine>, args: RunArgs) -> Outcome<u8> {
    let engine = engine()?;
    let RunArgs {
        detach,
        sig_proxy,
        create,
    } = args;
    let (pull, quiet, interactive) = (create.pull, create.quiet, create.interactive);
    let cidfile = create.cidfile.clone();
    check_cidfile(cidfile.as_deref())?;
    let options = options(create)?;
    let attach = match (detach, interactive) {
        (true, _) => Attach::None,
        (false, false) => Attach::Output,
        (false, true) => Attach::OutputAndInput,
    };
    let fresh = ensure(&engine, &options, pull, quiet)?;
    let signals = super::foreground::hold(!detach && sig_proxy)?;
    let started = retry(
        fresh,
        || {
            engine.run(options.clone(), attach, |id| {
                write_cidfile(cidfile.as_deref(), &id.hex()).map_err(|_| {
                    EngineError::Invalid(format!("failed to write container ID of {id}"))
                })
            })
        },
        || fetch(&engine, &options, quiet, true),
    )?;
    for warning in &started.warnings {
        ui::error(&format!("WARNING: {warning}"));
    }
    let Some(client) = started.client else {
        ui::line(&started.id.hex());
        return Ok(0);
    };
    super::foreground::follow(&engine, &started.id, client, interactive, signals.as_ref())
}

/// Runs `make`; when the image is missing, pulls it and tries once more.
fn retry<T>(
    fresh: bool,
    make: impl Fn() -> Result<T, EngineError>,
    pull: impl FnOnce() -> Outcome,
) -> Outcome<T> {
    match make() {
        Err(EngineError::NoSuchImage(_)) if !fresh => {
            pull()?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

/// Pulls ahead when the policy says so. Says that pulling again is out of the question.
fn ensure(engine: &Engine, options: &CreateOptions, pull: Pull, quiet: bool) -> Outcome<bool> {
    match pull {
        Pull::Missing => Ok(false),
        Pull::Never => Ok(true),
        Pull::Always => fetch(engine, options, quiet, false).map(|()| true),
    }
}

fn fetch(engine: &Engine, options: &CreateOptions, quiet: bool, announce: bool) -> Outcome {
    let missing = || Failure::Engine(EngineError::NoSuchImage(options.image.clone()));
    if options.image.starts_with("sha256:") {
        return Err(missing());
    }
    let reference: Reference = options
        .image
        .parse()
        .map_err(|e: amphora_spec::reference::ReferenceError| Failure::Usage(e.to_string()))?;
    let reference = reference.with_default_tag();
    if announce {
        ui::error(&format!(
            "Unable to find image '{}' locally",
            reference.familiar()
        ));
    }
    super::image::pull_into(engine, &reference, options.platform.as_deref(), quiet, true)
}

fn check_cidfile(path: Option<&std::path::Path>) -> Outcome {
    match path {
        Some(path) if path.exists() => Err(Failure::Usage(format!(
            "container ID file found, make sure the other container isn't running or delete {}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn write_cidfile(path: Option<&std::path::Path>, id: &str) -> Outcome {
    let Some(path) = path else { return Ok(()) };
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut f| f.write_all(id.as_bytes()))
        .map_err(|e| Failure::Local(format!("failed to write {}: {e}", path.display())))
}

fn options(args: CreateArgs) -> Outcome<CreateOptions> {
    let mut host = HostConfig {
        auto_remove: args.rm,
        publish_all: args.publish_all,
        network: network(&args.network)?,
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus.clone(),
        pids_limit: args.pids_limit,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        read_only: args.read_only,
        extra_hosts: args.add_host.clone(),
        log_none: args.log_driver == LogDriver::None,
        ..HostConfig::default()
    };
    limits(&mut host, &args)?;
    mounts(&mut host, &args.volume, &args.tmpfs)?;
    ports(&mut host, &args.publish)?;
    Ok(CreateOptions {
        image: args.image,
        name: args.name,
        platform: args.platform.or_else(default_platform),
        runtime: args.runtime,
        cmd: args.command,
        entrypoint: args.entrypoint,
        env: parse::environment(args.env, &args.env_file)?,
        workdir: args.workdir,
        user: args.user,
        hostname: args.hostname,
        labels: parse::pairs(&args.label),
        annotations: parse::pairs(&args.annotation),
        open_stdin: args.interactive,
        stop_signal: args.stop_signal,
        stop_timeout: args.stop_timeout,
        host,
    })
}

/// Reads the flags that limit or confine.
fn limits(host: &mut HostConfig, args: &CreateArgs) -> Outcome {
    let bad = |flag: &str, value: &str, why: &str| {
        Failure::Usage(format!(
            "invalid argument \"{value}\" for \"{flag}\" flag: {why}"
        ))
    };
    let size = |flag: &str, value: &Option<String>| -> Outcome<Option<i64>> {
        value
            .as_deref()
            .map(|v| parse::size(v).ok_or_else(|| bad(flag, v, &format!("invalid size: '{v}'"))))
            .transpose()
    };
    host.memory = size("-m, --memory", &args.memory)?;
    host.memory_swap = match args.memory_swap.as_deref() {
        Some("-1") => Some(-1),
        _ => size("--memory-swap", &args.memory_swap)?,
    };
    host.shm_size = size("--shm-size", &args.shm_size)?.and_then(|v| u64::try_from(v).ok());
    if let Some(text) = &args.cpus {
        let nano = parse::cpus(text)
            .ok_or_else(|| bad("--cpus", text, "failed to parse as a number of CPUs"))?;
        host.nano_cpus = Some(nano);
    }
    for text in &args.ulimit {
        host.ulimits.push(
            parse::ulimit(text).ok_or_else(|| bad("--ulimit", text, "invalid ulimit argument"))?,
        );
    }
    for text in &args.security_opt {
        match text.as_str() {
            "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {
                host.no_new_privileges = true;
            }
            "no-new-privileges=false" | "no-new-privileges:false" => {}
            "seccomp=unconfined" | "seccomp:unconfined" => host.seccomp_unconfined = true,
            other => {
                return Err(Failure::Usage(format!(
                    "security option \"{other}\" is not supported"
                )));
            }
        }
    }
    Ok(())
}

fn default_platform() -> Option<String> {
    std::env::var("DOCKER_DEFAULT_PLATFORM")
        .ok()
        .filter(|v| !v.is_empty())
}

fn network(text: &str) -> Outcome<NetworkMode> {
    match text {
        "bridge" | "default" => Ok(NetworkMode::Bridge),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        other => Err(Failure::Usage(format!("network {other} not found"))),
    }
}

fn mounts(host: &mut HostConfig, volumes: &[String], tmpfs: &[String]) -> Outcome {
    for text in volumes {
        let parsed =
            amphora_engine::volume_spec(text).map_err(|e| Failure::Usage(e.to_string()))?;
        host.mounts.push(parsed);
    }
    for text in tmpfs {
        let (destination, options) = text.split_once(':').unwrap_or((text, ""));
        let options = options
            .split(',')
            .filter(|o| !o.is_empty())
            .map(str::to_owned)
            .collect();
        host.mounts.push(MountPoint::Tmpfs {
            destination: destination.to_owned(),
            options,
        });
    }
    Ok(())
}

fn ports(host: &mut HostConfig, publish: &[String]) -> Outcome {
    for text in publish {
        let parsed = amphora_engine::port_specs(text).map_err(|e| Failure::Usage(e.to_string()))?;
        host.ports.extend(parsed);
    }
    Ok(())
}

/// Says whether progress bars may be drawn on stderr.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
