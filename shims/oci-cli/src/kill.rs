//! `kill`, `pause` and `resume`.

use std::os::fd::AsFd;

use amphora_sys::pidfd;

use crate::args::{Flag, Order, parse};
use crate::error::RuncError;
use crate::state::{Container, Status};
use crate::{Code, Context};

pub(crate) const KILL: i32 = 9;
const FLAGS: &[Flag] = &[Flag::switch("all", Some('a'))];

/// `kill ID [SIGNAL]`.
pub(crate) fn kill(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::Any)?;
    let (id, signal) = match parsed.rest() {
        [id] => (id, "SIGTERM"),
        [id, signal] => (id, signal.as_str()),
        _ => return Err(RuncError::usage("kill takes a container id and a signal")),
    };
    let number = amphora_spec::signal::parse(signal)
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| RuncError::usage(format!("unknown signal \"{signal}\"")))?;
    let container = Container::find(&context.root, id)?;
    if parsed.on("all") {
        return kill_all(&container, number);
    }
    let failed = |error| RuncError::file(format!("failed to signal container {id}"))(error);
    let sent = match container.process()? {
        Some(process) => pidfd::signal(process.as_fd(), number).map_err(failed)?,
        None => false,
    };
    if sent {
        // What is frozen does not die.
        if number == KILL
            && let Some(cgroup) = container.cgroup()?
            && cgroup.is_frozen().unwrap_or(false)
        {
            cgroup.thaw()?;
        }
        Ok(0)
    } else {
        Err(RuncError::State("container not running".to_owned()))
    }
}

/// Every process of the cgroup; none is not an error.
fn kill_all(container: &Container, number: i32) -> Code {
    if container.has_no_cgroup() {
        let failed = || RuncError::file("failed to signal a process of the container");
        for pid in container.pids()? {
            let start = pidfd::start_time(pid).unwrap_or_default();
            if let Some(process) = pidfd::open(pid, start).map_err(failed())? {
                pidfd::signal(process.as_fd(), number).map_err(failed())?;
            }
        }
        return Ok(0);
    }
    let Some(cgroup) = container.cgroup()? else {
        return Ok(0);
    };
    match number {
        KILL => cgroup.kill()?,
        number => cgroup.signal(number)?,
    }
    Ok(0)
}

/// `pause`.
pub(crate) fn pause(context: &Context<'_>, words: &[String]) -> Code {
    change(context, words, true)
}

/// `resume`.
pub(crate) fn resume(context: &Context<'_>, words: &[String]) -> Code {
    change(context, words, false)
}

fn change(context: &Context<'_>, words: &[String], pause: bool) -> Code {
    let parsed = parse(&[], words, Order::Any)?;
    let container = Container::hold(&context.root, parsed.container()?)?;
    let status = container.status()?;
    if container.has_no_cgroup() {
        return Err(RuncError::State(
            "the container has no cgroup by which it could be paused".to_owned(),
        ));
    }
    let cgroup = container.cgroup()?;
    match (pause, status, cgroup) {
        (true, Status::Created | Status::Running, Some(cgroup)) => cgroup.freeze()?,
        (false, Status::Paused, Some(cgroup)) => cgroup.thaw()?,
        (true, ..) => {
            return Err(RuncError::State(
                "container not running or created".to_owned(),
            ));
        }
        (false, ..) => return Err(RuncError::State("container not paused".to_owned())),
    }
    Ok(0)
}
