//! `exec`: another process in a running container.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use amphora_cgroup::Cgroup;
use amphora_executor::cpu_mask;
use amphora_spec::runtime::{Process, Spec, User};
use amphora_sys::plan::LaunchPlan;
use amphora_sys::supervise::take_inherited;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::args::{Flag, Order, Parsed, parse};
use crate::console::{Console, Foreground};
use crate::error::{Result, RuncError};
use crate::listener::Agent;
use crate::state::{Container, Status, write_file};
use crate::{Code, Context, bundle, listener};

const FLAGS: &[Flag] = &[
    Flag::value("console-socket", None),
    Flag::value("cwd", None),
    Flag::value("env", Some('e')),
    Flag::switch("tty", Some('t')),
    Flag::value("user", Some('u')),
    Flag::value("additional-gids", Some('g')),
    Flag::value("process", Some('p')),
    Flag::switch("detach", Some('d')),
    Flag::value("pid-file", None),
    Flag::switch("no-new-privs", None),
    Flag::value("cap", Some('c')),
    Flag::value("preserve-fds", None),
    Flag::switch("ignore-paused", None),
];
/// More descriptors than this are not meant.
const FDS_MAX: u32 = 512;

/// Takes the descriptors of `--preserve-fds` over, from 3 on and after `more` others. To be called
/// before anything else is opened.
pub(crate) fn inherited(parsed: &Parsed, more: u32) -> Result<Vec<(OwnedFd, i32)>> {
    let count: u32 = parsed.parse("preserve-fds")?.unwrap_or(0);
    let count = count.saturating_add(more);
    if count > FDS_MAX {
        return Err(RuncError::usage(format!(
            "--preserve-fds: {count} is too many"
        )));
    }
    let numbers = (3..).take(usize::try_from(count).unwrap_or(0));
    numbers
        .map(|number: i32| {
            let failed = format!("--preserve-fds: descriptor {number}");
            let fd = take_inherited(number).map_err(RuncError::file(failed))?;
            Ok((fd, number))
        })
        .collect()
}

/// The same once more.
pub(crate) fn again(inherited: &[(OwnedFd, i32)]) -> Result<Vec<(OwnedFd, i32)>> {
    let again = |(fd, number): &(OwnedFd, i32)| {
        let failed = format!("--preserve-fds: descriptor {number}");
        Ok((fd.try_clone().map_err(RuncError::file(failed))?, *number))
    };
    inherited.iter().map(again).collect()
}

/// `exec`.
pub(crate) fn exec(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::StopAfterOne)?;
    let inherited = inherited(&parsed, 0)?;
    let Some((id, command)) = parsed.rest().split_first() else {
        return Err(RuncError::usage("exec takes a container id and a command"));
    };
    let container = Container::find(&context.root, id)?;
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused if parsed.on("ignore-paused") => {}
        Status::Paused => {
            return Err(RuncError::State(
                "cannot exec in a paused container (use --ignore-paused to override)".to_owned(),
            ));
        }
        Status::Stopped | Status::Creating => {
            return Err(RuncError::State(
                "cannot exec in a stopped container".to_owned(),
            ));
        }
    }
    let mut spec = container.config()?;
    spec.process = process(&spec, &parsed, command)?;
    let terminal = spec.process.terminal;
    let detach = parsed.on("detach");
    let console = Console::of(&parsed, terminal)?;
    let affinity = spec.process.exec_cpu_affinity.clone().unwrap_or_default();
    let agent = Agent::of(&spec);
    if let Some(mask) = cpu_mask(&affinity.initial).map_err(RuncError::Executor)? {
        let failed = RuncError::file("process.execCPUAffinity.initial");
        amphora_sys::properties::set_affinity(&mask).map_err(failed)?;
    }
    let prepare = |spec| -> Result<LaunchPlan> {
        let mut plan = plan(context, &container, spec)?;
        console.attach(&mut plan)?;
        plan.pass_fds(again(&inherited)?);
        Ok(plan)
    };
    let foreground = if detach {
        None
    } else {
        Some(Foreground::new()?)
    };
    let launch = |spec: Spec| {
        let mut plan = prepare(spec)?;
        let state = || Ok(container.oci_state(container.status()?));
        listener::launch(&mut plan, &agent, state)
    };
    let launched = match launch(spec.clone()) {
        Err(error) if error.is_not_permitted() && amphora_executor::is_inside() => launch(spec)?,
        launched => launched?,
    };
    drop(inherited);
    if let Some(path) = parsed.get("pid-file") {
        write_file(Path::new(path), launched.pid.to_string().as_bytes(), 0o644)?;
    }
    match foreground {
        Some(foreground) => foreground.follow(&launched.pidfd, console, None),
        None => Ok(0),
    }
}

/// The plan of a process that joins the container.
pub(crate) fn plan(context: &Context<'_>, container: &Container, spec: Spec) -> Result<LaunchPlan> {
    let stopped = || RuncError::State("cannot exec in a stopped container".to_owned());
    let init = container.process()?.ok_or_else(stopped)?;
    let cgroup = if container.has_no_cgroup() {
        Cgroup::none()
    } else {
        container.cgroup()?.ok_or_else(stopped)?
    };
    let path = format!("/proc/{}/root", container.record.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &path, flags, Mode::empty())
        .map_err(RuncError::file("failed to open the container's root"))?;
    let mut bundle = bundle::bundle(&container.record.id, spec, root, cgroup);
    bundle.join = Some(init);
    let executor = context.workload;
    executor.validate(&bundle).map_err(RuncError::Executor)?;
    let mut plan = executor.prepare(&bundle).map_err(RuncError::Executor)?;
    if container.record.no_new_keyring {
        plan.keep_keyring();
    }
    bundle::inherit(&mut plan, &bundle.spec.process);
    Ok(plan)
}

/// The process: that of `--process`, else the container's own with another command.
fn process(spec: &Spec, parsed: &Parsed, command: &[String]) -> Result<Process> {
    if let Some(path) = parsed.get("process") {
        let bytes = fs::read(path).map_err(RuncError::file(format!("failed to read {path}")))?;
        return serde_json::from_slice(&bytes).map_err(|source| RuncError::Malformed {
            what: path.to_owned(),
            source,
        });
    }
    if command.is_empty() {
        return Err(RuncError::usage("process args cannot be empty"));
    }
    let mut process = spec.process.clone();
    process.args = command.to_vec();
    process.terminal = parsed.on("tty");
    process.console_size = None;
    process.env.extend(parsed.all("env").map(str::to_owned));
    if let Some(cwd) = parsed.get("cwd") {
        process.cwd = cwd.to_owned();
    }
    if let Some(user) = parsed.get("user") {
        process.user = numbers(user, process.user)?;
    }
    for gid in parsed.all("additional-gids") {
        process
            .user
            .additional_gids
            .push(number("--additional-gids", gid)?);
    }
    process.no_new_privileges |= parsed.on("no-new-privs");
    for cap in parsed.all("cap") {
        let caps = process.capabilities.get_or_insert_default();
        let sets = [&mut caps.bounding, &mut caps.effective, &mut caps.permitted];
        for set in sets {
            set.push(cap.to_owned());
        }
    }
    Ok(process)
}

fn number(flag: &str, text: &str) -> Result<u32> {
    text.parse()
        .map_err(|_| RuncError::usage(format!("invalid value \"{text}\" for flag {flag}")))
}

/// `--user`: numbers, as a runtime knows no names.
fn numbers(text: &str, old: User) -> Result<User> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let gid = gid.map(|gid| number("--user", gid)).transpose()?;
    Ok(User {
        uid: number("--user", uid)?,
        gid: gid.unwrap_or(old.gid),
        ..old
    })
}
