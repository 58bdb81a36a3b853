//! `run` and `create`.

use std::io::{IsTerminal, Write};

use amphora_engine::logging::LogSettings;
use amphora_engine::{
    Attach, AttachStreams, CreateOptions, Engine, EngineError, HostConfig, MountPoint,
};
use amphora_spec::Reference;
use amphora_supervisor::RestartPolicy;
use clap::Args;

use crate::errors::{Failure, Outcome, daemon_text, run_code};
use crate::{parse, ui};

use super::foreground::Foreground;

// Flags that `run` and `create` share.
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
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long)]
    attach: Vec<String>,
    /// Memory limit
    #[arg(short, long, allow_hyphen_values = true)]
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
    #[arg(long, allow_hyphen_values = true)]
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
    #[arg(long, default_value = "missing")]
    pull: String,
    /// Suppress the pull output
    #[arg(short, long)]
    quiet: bool,
    /// Signal to stop the container
    #[arg(long)]
    stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long)]
    stop_timeout: Option<u64>,
    /// Logging driver for the container: json-file, local, none, journald or syslog
    #[arg(long, default_value = "")]
    log_driver: String,
    /// Log driver options
    #[arg(long)]
    log_opt: Vec<String>,
    /// Restart policy to apply when a container exits: no, always, unless-stopped
    /// or on-failure[:N]
    #[arg(long, default_value = "no")]
    restart: String,
    /// Write the container ID to the file
    #[arg(long)]
    cidfile: Option<std::path::PathBuf>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    init: Option<bool>,
    #[command(flatten)]
    health: super::health_flags::HealthFlags,
    #[command(flatten)]
    networks: super::network_flags::NetworkFlags,
    #[command(flatten)]
    limits: super::run_flags::LimitFlags,
    #[command(flatten)]
    shares: super::run_flags::ShareFlags,
    /// Image to run; its command and arguments
    // One list: flags end with its first word.
    #[arg(required = true, value_name = "IMAGE")]
    words: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pull {
    Always,
    Missing,
    Never,
}

// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Proxy received signals to the process
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sig_proxy: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    #[command(flatten)]
    create: CreateArgs,
}

/// `run`.
pub(crate) fn run(engine: impl FnOnce() -> Outcome<Engine>, args: RunArgs) -> u8 {
    match try_run(engine, args) {
        Ok(code) => code,
        Err(failure) => fail("run", &failure),
    }
}

/// `create`.
pub(crate) fn create(engine: impl FnOnce() -> Outcome<Engine>, args: CreateArgs) -> u8 {
    let made = || -> Outcome {
        let engine = engine()?;
        let (pull, quiet, cidfile) = (pull_policy(&args.pull)?, args.quiet, args.cidfile.clone());
        check_cidfile(cidfile.as_deref())?;
        attach_streams(&args, false)?;
        let options = options(args)?;
        let image = ensure(&engine, &options, pull, quiet)?;
        let id = retry(
            image,
            || Ok(engine.create(options.clone())?),
            || fetch(&engine, &options, quiet, true),
        )?;
        write_cidfile(cidfile.as_deref(), &id.hex())?;
        super::network_flags::warn(&options.host);
        ui::line(&id.hex());
        Ok(())
    };
    match made() {
        Ok(()) => 0,
        // Docker's `create` says what the engine said, and no more.
        Err(failure @ (Failure::Engine(_) | Failure::Daemon(_))) => crate::errors::report(&failure),
        Err(failure) => fail("create", &failure),
    }
}

fn fail(verb: &str, failure: &Failure) -> u8 {
    let hint = format!("\n\nRun 'amphora {verb} --help' for more information");
    match failure {
        Failure::Engine(error) => {
            ui::error(&format!("amphora: {}{hint}", daemon_text(error)));
            run_code(error)
        }
        Failure::Usage(text) if super::usage::is_about_a_flag(text) => {
            crate::errors::report(failure)
        }
        Failure::Usage(text) | Failure::Local(text) => {
            ui::error(&format!("amphora: {text}{hint}"));
            125
        }
        Failure::Daemon(text) => {
            ui::error(&format!(
                "amphora: Error response from daemon: {text}{hint}"
            ));
            125
        }
        Failure::Status(code, text) => {
            ui::error(text);
            *code
        }
        Failure::Code(code) => *code,
    }
}

fn try_run(engine: impl FnOnce() -> Outcome<Engine>, args: RunArgs) -> Outcome<u8> {
    let engine = engine()?;
    let RunArgs {
        detach,
        sig_proxy,
        detach_keys,
        create,
    } = args;
    let (pull, quiet, tty) = (pull_policy(&create.pull)?, create.quiet, create.tty);
    if detach && !create.attach.is_empty() {
        ui::error("conflicting options: cannot specify both --attach and --detach");
        return Err(Failure::Code(1));
    }
    let streams = attach_streams(&create, detach)?;
    crate::terminal::check(streams.stdin, tty)?;
    let keys = super::foreground::detach_keys(detach_keys.as_deref(), tty && !detach)?;
    let cidfile = create.cidfile.clone();
    check_cidfile(cidfile.as_deref())?;
    let mut options = options(create)?;
    options.stdin_once = options.open_stdin && streams.stdin;
    if detach {
        options.attach_output = [false; 2];
    }
    let fresh = ensure(&engine, &options, pull, quiet)?;
    let (started, foreground) = retry(
        fresh,
        || {
            // Held from here on only: a pull is the caller's to interrupt.
            let foreground =
                Foreground::new(streams, tty && !detach, keys.clone(), !detach && sig_proxy)?;
            let attach = if detach {
                Attach::None
            } else {
                Attach::To(foreground.streams())
            };
            let started = engine.run(options.clone(), attach, |id| {
                write_cidfile(cidfile.as_deref(), &id.hex()).map_err(|_| {
                    EngineError::Invalid(format!("failed to write container ID of {id}"))
                })
            })?;
            Ok((started, foreground))
        },
        || fetch(&engine, &options, quiet, true),
    )?;
    super::network_flags::warn(&options.host);
    ui::warnings(&started.warnings);
    let Some(client) = started.client else {
        ui::line(&started.id.hex());
        return Ok(0);
    };
    if !streams.stdout && !streams.stderr {
        ui::line(&started.id.hex());
    }
    foreground.follow(&engine, &started.id, client)
}

fn pull_policy(text: &str) -> Outcome<Pull> {
    match text {
        "always" => Ok(Pull::Always),
        "" | "missing" => Ok(Pull::Missing),
        "never" => Ok(Pull::Never),
        _ => Err(Failure::Usage(format!(
            "invalid pull option: '{text}': must be one of \"always\", \"missing\" or \"never\""
        ))),
    }
}

/// Whether `-a` names a stream of output, or is not given.
fn attaches(given: &[String], name: &str) -> bool {
    given.is_empty() || given.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// What `-a`, or else `-i` and `-d`, attach to.
fn attach_streams(args: &CreateArgs, detach: bool) -> Outcome<AttachStreams> {
    let mut streams = AttachStreams::default();
    for name in &args.attach {
        match name.to_ascii_lowercase().as_str() {
            "stdin" => streams.stdin = true,
            "stdout" => streams.stdout = true,
            "stderr" => streams.stderr = true,
            _ => {
                return Err(Failure::Usage(format!(
                    "invalid argument \"{name}\" for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
                )));
            }
        }
    }
    if args.attach.is_empty() && !detach {
        streams.stdin = args.interactive;
        streams.stdout = true;
        streams.stderr = true;
    }
    // With a terminal there is one stream of output.
    if args.tty {
        streams.stdout |= streams.stderr;
        streams.stderr = false;
    }
    Ok(streams)
}

/// Runs `make`; when the image is missing, pulls it and tries once more.
fn retry<T>(
    fresh: bool,
    make: impl Fn() -> Outcome<T>,
    pull: impl FnOnce() -> Outcome,
) -> Outcome<T> {
    match make() {
        Err(Failure::Engine(EngineError::NoSuchImage(_))) if !fresh => {
            pull()?;
            make()
        }
        other => other,
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
    if announce && !quiet {
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

/// Reads the flags. What is wrong with one is the command line's fault, whoever finds it.
fn options(args: CreateArgs) -> Outcome<CreateOptions> {
    read_options(args).map_err(|failure| match failure {
        Failure::Engine(e @ EngineError::Invalid(_)) => {
            Failure::Usage(amphora_spec::error::chain(&e))
        }
        other => other,
    })
}

fn read_options(args: CreateArgs) -> Outcome<CreateOptions> {
    amphora_engine::expose(&args.shares.expose, std::iter::empty())?;
    check_names(&args)?;
    let mut host = HostConfig {
        auto_remove: args.rm,
        publish_all: args.publish_all,
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus.clone(),
        pids_limit: args.pids_limit,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        read_only: args.read_only,
        restart: restart(&args.restart, args.rm)?,
        log: log(&args.log_driver, &args.log_opt)?,
        init: args.init,
        ..HostConfig::default()
    };
    super::network_flags::networks(&mut host, &args.networks)?;
    limits(&mut host, &args)?;
    let health = super::health_flags::health(&mut host, &args.health)?;
    super::run_flags::limits(&mut host, &args.limits)?;
    super::run_flags::shares(&mut host, &args.shares)?;
    mounts(&mut host, &args.volume, &args.tmpfs)?;
    ports(&mut host, &args.publish)?;
    let (image, command) = super::split(args.words);
    Ok(CreateOptions {
        image,
        name: args.name,
        platform: args.platform.or_else(default_platform),
        runtime: args.runtime,
        cmd: command,
        entrypoint: args.entrypoint,
        env: parse::environment(args.env, &args.env_file)?,
        workdir: args.workdir,
        user: args.user,
        hostname: args.hostname,
        domainname: args.shares.domainname.unwrap_or_default(),
        expose: args.shares.expose,
        labels: super::run_flags::labels(&args.label, &args.shares.label_file)?,
        annotations: parse::pairs(&args.annotation),
        open_stdin: args.interactive,
        attach_output: ["stdout", "stderr"].map(|name| attaches(&args.attach, name)),
        stdin_once: args.interactive,
        tty: args.tty,
        stop_signal: args.stop_signal,
        stop_timeout: args.stop_timeout,
        health,
        host,
    })
}

/// Checks the names of image and platform as Docker's client does.
fn check_names(args: &CreateArgs) -> Outcome {
    if let Some(platform) = args.platform.as_deref().filter(|p| !p.is_empty()) {
        platform.parse::<amphora_spec::Platform>().map_err(|_| {
            Failure::Usage(format!(
                "error parsing specified platform: \"{platform}\": cannot parse platform specifier: invalid argument"
            ))
        })?;
    }
    let image = args.words.first().map(String::as_str).unwrap_or_default();
    if image.starts_with("sha256:") {
        return Ok(());
    }
    let parsed = image.parse::<Reference>();
    parsed.map(drop).map_err(|e| Failure::Usage(e.to_string()))
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
        let nano = parse::cpus(text).ok_or_else(|| {
            bad(
                "--cpus",
                text,
                &format!("failed to parse {text} as a rational number"),
            )
        })?;
        host.nano_cpus = Some(nano);
    }
    for text in &args.ulimit {
        let limit = parse::ulimit(text).map_err(|why| bad("--ulimit", text, &why))?;
        host.ulimits.push(limit);
    }
    super::run_flags::security(host, &args.security_opt)?;
    Ok(())
}

/// Docker's client looks at the number only, and at `--rm`; the rest is its daemon's.
fn restart(text: &str, remove: bool) -> Outcome<RestartPolicy> {
    let parsed = amphora_engine::restart::parse(text).map_err(|e| e.to_string());
    let asked = !matches!(text, "" | "no");
    match parsed {
        Err(why) if why.starts_with("invalid restart policy format") => Err(Failure::Usage(why)),
        _ if remove && asked => Err(Failure::Usage(
            "conflicting options: cannot specify both --restart and --rm".to_owned(),
        )),
        parsed => parsed.map_err(Failure::Daemon),
    }
}

/// Reads `--log-driver` and `--log-opt`.
fn log(driver: &str, options: &[String]) -> Outcome<LogSettings> {
    if driver == "none" && !options.is_empty() {
        return Err(Failure::Usage(format!(
            "invalid logging opts for driver {driver}"
        )));
    }
    Ok(LogSettings {
        driver: driver.to_owned(),
        options: parse::pairs(options),
    })
}

pub(crate) fn default_platform() -> Option<String> {
    std::env::var("DOCKER_DEFAULT_PLATFORM")
        .ok()
        .filter(|v| !v.is_empty())
}

fn mounts(host: &mut HostConfig, volumes: &[String], tmpfs: &[String]) -> Outcome {
    for text in volumes {
        let parsed = amphora_engine::volume_spec(text).map_err(|e| match e.to_string() {
            // What the client itself finds.
            why if why.starts_with("invalid spec:") || why.starts_with("invalid empty") => {
                Failure::Usage(why)
            }
            why => Failure::Daemon(why),
        })?;
        if let MountPoint::Bind { source, .. } | MountPoint::Volume { name: source, .. } = &parsed {
            // As given, but for a source that was relative.
            let rest = text.split_once(':').map(|(_, rest)| rest);
            let anonymous = matches!(
                parsed,
                MountPoint::Volume {
                    anonymous: true,
                    ..
                }
            );
            let shown = rest.map_or_else(|| source.clone(), |rest| format!("{source}:{rest}"));
            host.binds.extend((!anonymous).then_some(shown));
        }
        host.mounts.push(parsed);
    }
    for text in tmpfs {
        let (destination, options) = super::run_flags::tmpfs(text)?;
        host.mounts.push(MountPoint::Tmpfs {
            destination,
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
