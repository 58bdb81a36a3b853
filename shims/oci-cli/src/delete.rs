//! `delete`: what is left of a container goes.

use std::time::{Duration, Instant};

use amphora_spec::runtime::Hooks;
use amphora_sys::pidfd;
use std::os::fd::AsFd;

use crate::args::{Flag, Order, parse};
use crate::error::{Result, RuncError};
use crate::kill::KILL;
use crate::state::{Container, Status};
use crate::{Code, Context, hooks, scope};

const FLAGS: &[Flag] = &[Flag::switch("force", Some('f'))];
/// How long a killed process may take to go.
const GONE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// `delete`.
pub(crate) fn delete(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::Any)?;
    let id = parsed.container()?;
    let force = parsed.on("force");
    let container = match Container::hold(&context.root, id) {
        Ok(container) => container,
        Err(RuncError::NoSuchContainer) if force => {
            if Container::remove_leftover(&context.root, id)? {
                return Ok(0);
            }
            // It was just being made.
            Container::hold(&context.root, id)?
        }
        Err(error) => return Err(error),
    };
    let status = container.status()?;
    match status {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        _ => {
            return Err(RuncError::State(format!(
                "cannot delete container {id} that is not stopped: {}",
                status.word()
            )));
        }
    }
    // A configuration that cannot be read any more keeps nothing from going.
    let hooks = container.config().ok().and_then(|spec| spec.hooks);
    destroy(context, container, &hooks.unwrap_or_default())?;
    Ok(0)
}

/// Ends whatever still runs and removes everything.
pub(crate) fn destroy(context: &Context<'_>, container: Container, hooks: &Hooks) -> Result {
    // It may have left its cgroup.
    kill_process(&container)?;
    if let Some(cgroup) = container.cgroup()? {
        if cgroup.is_frozen().unwrap_or(false) {
            cgroup.thaw()?;
        }
        cgroup.kill()?;
        wait_gone(&container)?;
        scope::stop(context, &container);
        cgroup.remove()?;
    } else {
        wait_gone(&container)?;
        scope::stop(context, &container);
        container.remove_unclaimed_cgroup();
    }
    let state = container.oci_state(Status::Stopped);
    container.remove();
    hooks::run_all("poststop", &hooks.poststop, &state, &context.log);
    Ok(())
}

/// Kills the container's process, if it lives.
pub(crate) fn end(container: &Container) -> Result {
    kill_process(container)?;
    wait_gone(container)
}

fn kill_process(container: &Container) -> Result {
    if let Some(process) = container.process()? {
        let failed = RuncError::file("failed to kill the container's process");
        pidfd::signal(process.as_fd(), KILL).map_err(failed)?;
    }
    Ok(())
}

fn wait_gone(container: &Container) -> Result {
    let end = Instant::now() + GONE;
    while container.process()?.is_some() {
        if Instant::now() >= end {
            return Err(RuncError::State(
                "the container's process does not end".to_owned(),
            ));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
