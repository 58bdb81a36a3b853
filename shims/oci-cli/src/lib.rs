//! `amphora-runc`: the command line of runc, for engines that bring their own images, networks and
//! supervisors (containerd's shim, dockerd, podman's conmon).
//!
//! It has no process of its own that stays: `create` leaves the container's first process waiting
//! on a FIFO, as a child of whoever reaps for the caller; everything else is found again through
//! one directory per container below `--root`.
//!
//! Must not know: executors (one is handed in), networks, images.

mod activation;
mod args;
mod bundle;
mod console;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod hooks;
mod kill;
mod list;
mod listener;
mod log;
mod netdev;
mod notify;
mod scope;
mod spec;
mod state;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use amphora_executor::Workload;

use crate::args::{Flag, Parsed};
use crate::error::{Result, RuncError};

/// What every command gets.
pub(crate) struct Context<'a> {
    /// The directory of all containers.
    pub(crate) root: std::path::PathBuf,
    pub(crate) workload: &'a dyn Workload,
    pub(crate) log: log::Log,
    /// Whether a container may do without a cgroup that nobody lets us make; `None`: if the caller's
    /// rights end at a user namespace.
    rootless: Option<bool>,
    /// New containers' cgroups are units of systemd's.
    pub(crate) systemd: bool,
    /// The whole command line.
    args: &'a [OsString],
}

impl Context<'_> {
    /// Whether a container may do without a cgroup, now that none was permitted.
    pub(crate) fn may_lack_a_cgroup(&self) -> bool {
        let limited = || !amphora_executor::is_privileged() || amphora_executor::is_inside();
        self.rootless.unwrap_or_else(limited)
    }

    /// As [`out_of_reach`], for a command that seldom enters a container.
    pub(crate) fn out_of_reach(&self) -> Result {
        out_of_reach(self.args)
    }
}

/// What a command ends with.
pub(crate) type Code = Result<u8>;

/// Memory that `run` takes for a configuration with a seccomp profile.
const ARENA: usize = 176 << 10;
/// The exit code of `exec` when nothing was run.
const EXEC_FAILED: u8 = 255;

const GLOBAL: &[Flag] = &[
    Flag::value("root", None),
    Flag::value("log", None),
    Flag::value("log-format", None),
    Flag::switch("debug", None),
    Flag::switch("systemd-cgroup", None),
    Flag::value("rootless", None),
    Flag::switch("help", Some('h')),
    Flag::switch("version", Some('v')),
];

const HELP: &str = "\
NAME:
   amphora-runc - Open Container Initiative runtime

USAGE:
   amphora-runc [global options] command [command options] [arguments...]

COMMANDS:
   create   create a container
   delete   delete any resources held by the container
   events   display container statistics
   exec     execute new process inside the container
   features show the enabled features
   kill     send a signal to a container's init process
   list     list containers started with the given root
   pause    suspend all processes inside the container
   ps       display the processes running inside a container
   resume   resume all processes that have been paused
   run      create and run a container
   spec     create a new specification file
   start    execute the user defined process in a created container
   state    output the state of a container
   update   update container resource constraints

GLOBAL OPTIONS:
   --debug             log the command line too
   --log FILE          where errors are written too
   --log-format FORMAT of the log: text or json
   --root DIR          directory of container state
   --rootless WHEN     do without a cgroup that may not be made: true, false
                       or auto, for who is not the host's root
   --systemd-cgroup    make cgroups by systemd; cgroupsPath is slice:prefix:name
   --help, -h          show help
   --version, -v       print the version
";

/// Carries out a command line of runc (`args[0]` is the program) with the given executor, and
/// returns its exit code.
#[must_use]
pub fn main(args: &[OsString], workload: &dyn Workload) -> ExitCode {
    let mut words = Vec::with_capacity(args.len());
    for arg in args.iter().skip(1) {
        match arg.to_str() {
            Some(word) => words.push(word.to_owned()),
            None => {
                return fail(
                    &log::Log::default(),
                    &RuncError::usage("an argument is not UTF-8"),
                );
            }
        }
    }
    let global = match args::parse(GLOBAL, &words, args::Order::Stop) {
        Ok(parsed) => parsed,
        Err(error) => return fail(&log::Log::default(), &error),
    };
    let log = log::Log::new(&global);
    let command = global.rest().first().map(String::as_str);
    if matches!(command, Some("create" | "run" | "exec"))
        && let Err(error) = out_of_reach(args)
    {
        return fail_as(doing(command), &log, &error);
    }
    // Not before: the program may just have been about to start anew.
    amphora_sys::arena::enable_for(ARENA);
    match dispatch(&global, log.clone(), args, workload) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = fail_as(doing(command), &log, &error);
            match command {
                Some("exec") => ExitCode::from(EXEC_FAILED),
                _ => code,
            }
        }
    }
}

/// Goes on as the same program on a read-only mount that nobody else sees: a process of this one's is
/// to enter a container, and what is in there could open its program through `/proc` and, as the
/// host's root, write to it (CVE-2019-5736). Returns only on failure, or when all is well.
fn out_of_reach(args: &[OsString]) -> Result {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let failed = || RuncError::file("failed to protect the program");
    use amphora_sys::process::{self_exe_is_anothers, self_exe_is_readonly};
    if self_exe_is_readonly().map_err(failed())? || self_exe_is_anothers().map_err(failed())? {
        return Ok(());
    }
    let program = amphora_sys::process::self_exe_readonly().map_err(failed())?;
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    Err(failed()(command.exec()))
}

fn fail(log: &log::Log, error: &RuncError) -> ExitCode {
    fail_as("", log, error)
}

fn fail_as(doing: &str, log: &log::Log, error: &RuncError) -> ExitCode {
    log.error(&format!("{doing}{}", amphora_spec::error::chain(error)));
    ExitCode::FAILURE
}

/// What runc puts before an error of a command; engines pass it on, and people look for it.
fn doing(command: Option<&str>) -> &'static str {
    match command {
        Some("create") => "runc create failed: ",
        Some("run") => "runc run failed: ",
        Some("exec") => "exec failed: ",
        _ => "",
    }
}

fn dispatch(global: &Parsed, log: log::Log, args: &[OsString], workload: &dyn Workload) -> Code {
    if global.on("version") {
        return list::print(concat!(
            "amphora-runc version ",
            env!("CARGO_PKG_VERSION"),
            "\nspec: 1.2.1\n"
        ));
    }
    let Some((command, rest)) = global.rest().split_first() else {
        return list::print(HELP);
    };
    if global.on("help") || command == "help" {
        return list::print(HELP);
    }
    log.check_format()?;
    if global.on("debug") {
        log.debug(&format!("{command} {}", rest.join(" ")));
    }
    let rootless = match global.get("rootless").unwrap_or("auto") {
        "true" => Some(true),
        "false" => Some(false),
        "auto" => None,
        other => {
            return Err(RuncError::usage(format!(
                "invalid value \"{other}\" for flag --rootless"
            )));
        }
    };
    let context = Context {
        root: global
            .get("root")
            .map_or_else(state::default_root, Into::into),
        workload,
        log,
        systemd: global.on("systemd-cgroup"),
        args,
        rootless,
    };
    match command.as_str() {
        "create" => create::create(&context, rest),
        "run" => create::run(&context, rest),
        "start" => create::start(&context, rest),
        "state" => list::state(&context, rest),
        "list" => list::list(&context, rest),
        "ps" => list::ps(&context, rest),
        "kill" => kill::kill(&context, rest),
        "pause" => kill::pause(&context, rest),
        "resume" => kill::resume(&context, rest),
        "delete" => delete::delete(&context, rest),
        "exec" => exec::exec(&context, rest),
        "update" => update::update(&context, rest),
        "events" => events::events(&context, rest),
        "spec" => spec::spec(rest),
        "features" => spec::features(rest),
        "checkpoint" | "restore" => Err(RuncError::Unsupported(command.clone())),
        other => Err(RuncError::usage(format!("no such command: {other}"))),
    }
}
