//! Taking over from a supervisor that was killed.

use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::pidfd;

use crate::config::Config;
use crate::exit::ExitRecord;
use crate::handover::Handover;
use crate::server::{Init, Server};
use crate::start::{KILL, greet, open_parts, serve};
use crate::state::{State, Status};
use crate::stdio::Stdio;
use crate::{SupervisorError, clock, finish, stdio};

const NEVER_RAN: &str = "the supervisor was killed while it started the container";
const UNSEEN: &str = "the supervisor was killed and nobody saw the container end";

/// Opens what the killed supervisor left.
pub(crate) fn adopt(mut handover: Handover, socket: &OwnedFd) -> Result<Server, SupervisorError> {
    let config = Config::decode(&handover.config)?;
    let run_dir = crate::files::open_dir(&config.run_dir)?;
    let old = State::read(run_dir.as_fd())?.unwrap_or_default();
    let init = find_init(&old)?;
    let mut parts = open_parts(config, &mut handover, |run_dir, config| {
        if config.tty {
            // The terminal went with the killed supervisor.
            return Ok(Stdio::default());
        }
        // A FIFO that is gone is gone with its writers, or was never made.
        match stdio::reopen(run_dir) {
            Ok(out) => Ok(Stdio {
                out,
                ..Stdio::default()
            }),
            Err(e) if init.is_some() => Err(e),
            Err(_) => Ok(stdio::create(run_dir, false)?.0),
        }
    })?;
    parts.state = State {
        status: old.status,
        adopted: true,
        init_pid: old.init_pid,
        init_start: old.init_start,
        started_at: old.started_at,
        restarts: old.restarts,
        pause_ns: old.pause_ns,
        ..parts.state
    };
    let pid = init.as_ref().map_or(0, |_| old.init_pid);
    if let (true, Some(init)) = (parts.config.tty, &init) {
        // Nobody can sit at its terminal any more. The hang-up has told all of its processes but
        // the first, to which the kernel does not deliver what it does not ask for.
        let _ = pidfd::signal(init.pidfd.as_fd(), KILL);
    }
    parts.init = init;
    parts.names = crate::name_server::reopen(&parts);
    if parts.init.is_some() {
        parts.state.status = Status::Running;
        parts.state.write(parts.run_dir.as_fd())?;
    }
    let mut server = serve(parts, std::mem::take(&mut handover.listeners))?;
    greet(&mut server, socket, handover.attach, pid);
    server.look_at_overlays();
    Ok(server)
}

/// The init that runs, or has ended and still waits for its parent. One that was in the middle
/// of its launch has no one to tell it is done: it is killed.
fn find_init(old: &State) -> Result<Option<Init>, SupervisorError> {
    if old.init_pid <= 0 {
        return Ok(None);
    }
    let pidfd = pidfd::open(old.init_pid, old.init_start)
        .map_err(|e| SupervisorError::Kernel("open the container's process", e))?;
    let Some(pidfd) = pidfd else { return Ok(None) };
    if old.status == Status::Starting {
        let _ = pidfd::signal(pidfd.as_fd(), KILL);
        return Ok(None);
    }
    Ok(Some(Init {
        pidfd,
        child: false,
    }))
}

/// Ends a container whose init is gone: what is known is recorded, the rest goes its usual way.
pub(crate) fn conclude(server: Server) -> Result<(), SupervisorError> {
    let parts = &server.parts;
    let known = ExitRecord::find(parts.data_dir.as_fd(), parts.run_dir.as_fd())
        .ok()
        .flatten();
    let now = clock::now();
    let finished_at = if parts.state.finished_at > 0 {
        parts.state.finished_at
    } else {
        now
    };
    let record = known.unwrap_or_else(|| {
        if parts.state.status != Status::Running {
            kill_cgroup(parts.config.cgroup.as_ref());
            return ExitRecord::unknown(NEVER_RAN, now, now);
        }
        ExitRecord::unknown(UNSEEN, parts.state.started_at, now)
    });
    finish::conclude(server, record, finished_at)
}

/// A child that no record names may have got into the container's cgroup.
fn kill_cgroup(cgroup: Option<&amphora_cgroup::Handle>) {
    if let Some(cgroup) = cgroup.and_then(|c| c.open().ok().flatten()) {
        let _ = cgroup.kill();
    }
}
