//! Starting a supervisor, from the engine's process.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use amphora_cgroup::SupervisorCgroup;
use amphora_sys::process::{Spawn, spawn_self};
use amphora_sys::{LaunchPlan, Launched};
use rustix::fs::{Mode, OFlags, open};

use crate::SupervisorError;
use crate::client::{AttachMode, Client};
use crate::config::Config;
use crate::files::open_dir;
use crate::handover::{Mode as StartMode, Outgoing};
use crate::waiting::{Ahead, Charge, Waiting};

/// What a container is started with.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The amphora binary (a detached read-only clone of it, or any descriptor that can be
    /// executed).
    pub exe: &'a OwnedFd,
    /// Arguments of the supervisor, `argv[0]` included: `["amphora", "supervise"]`.
    pub argv: &'a [&'a str],
    /// What it is told; kept in the run directory.
    pub config: Config,
    /// What it launches; [`LaunchPlan::stdio`] is set by the supervisor.
    pub plan: LaunchPlan,
    /// The container's lock. It is the supervisor's from then on; a caller that wants to undo
    /// under the lock when this fails keeps a `try_clone` and drops it on success.
    pub lock: OwnedFd,
    /// Sockets for [`Config::listeners`], in their order.
    pub listeners: Vec<OwnedFd>,
    /// Descriptors held until the container ends, and then closed.
    pub hold: Vec<OwnedFd>,
    /// The supervisors' own cgroup; `None`: the caller's.
    pub cgroup: Option<SupervisorCgroup>,
    /// Streams to be attached to from the first byte on.
    pub attach: Option<AttachMode>,
}

/// A started container.
#[derive(Debug)]
pub struct Spawned {
    /// Process id of the supervisor, a child of the caller: one that lives on reaps it.
    pub supervisor_pid: i32,
    /// Process id of init.
    pub init_pid: i32,
    /// The attachment, when one was asked for.
    pub client: Option<Client>,
}

/// What a container whose supervisor was killed is taken over with.
#[derive(Debug)]
pub struct AdoptRequest<'a> {
    /// As in [`SpawnRequest`].
    pub exe: &'a OwnedFd,
    /// As in [`SpawnRequest`].
    pub argv: &'a [&'a str],
    /// `R/containers/<id>`, with the configuration of the killed supervisor.
    pub run_dir: PathBuf,
    /// The container's lock, just taken.
    pub lock: OwnedFd,
    /// Sockets for [`Config::listeners`], opened again; may be empty.
    pub listeners: Vec<OwnedFd>,
    /// Descriptors held until the container ends.
    pub hold: Vec<OwnedFd>,
    /// The supervisors' own cgroup; `None`: the caller's.
    pub cgroup: Option<SupervisorCgroup>,
    /// Streams to be attached to.
    pub attach: Option<AttachMode>,
}

/// An adopted container.
#[derive(Debug)]
pub struct Adopted {
    /// Process id of the new supervisor, a child of the caller.
    pub supervisor_pid: i32,
    /// Process id of init; `None` when it had ended: the supervisor then records that, releases
    /// and becomes `finish` by itself.
    pub init_pid: Option<i32>,
    /// The attachment, when one was asked for.
    pub client: Option<Client>,
}

/// Starts a supervisor and waits until it has launched the container.
///
/// # Errors
/// [`SupervisorError::Launch`] says why nothing runs; whatever fails, no process is left, and
/// files only in the run directory.
pub fn spawn(request: SpawnRequest<'_>) -> Result<Spawned, SupervisorError> {
    let waiting = Waiting::start(
        request.exe,
        request.argv,
        request.cgroup.as_ref(),
        Ahead::default(),
        &request.config.run_dir,
    )?;
    let charge = Charge {
        config: request.config,
        plan: request.plan,
        lock: request.lock,
        listeners: request.listeners,
        hold: request.hold,
        attach: request.attach,
        gated: false,
    };
    waiting.hand_over(charge)?.answered()
}

/// Starts a supervisor for a container whose own was killed.
///
/// # Errors
/// When the configuration cannot be read or the supervisor cannot be started.
#[expect(
    clippy::needless_pass_by_value,
    reason = "descriptors are handed over: ours end here"
)]
pub fn adopt(request: AdoptRequest<'_>) -> Result<Adopted, SupervisorError> {
    let run_dir = open_dir(&request.run_dir)?;
    let config = Config::read(run_dir.as_fd())?
        .ok_or_else(|| SupervisorError::NotRunning(request.run_dir.clone()))?
        .encode()?;
    let outgoing = Outgoing {
        mode: StartMode::Adopt,
        run_dir: &request.run_dir,
        attach: request.attach.map_or(0, AttachMode::bits),
        config: &config,
        plan: &[],
        lock: request.lock.as_fd(),
        exe: request.exe.as_fd(),
        listeners: &request.listeners,
        hold: &request.hold,
        plan_fds: &[],
    };
    let waiting = Waiting::start(
        request.exe,
        request.argv,
        request.cgroup.as_ref(),
        Ahead::default(),
        &request.run_dir,
    )?;
    let spawned = waiting.send(&outgoing, None)?.answered()?;
    Ok(Adopted {
        supervisor_pid: spawned.supervisor_pid,
        init_pid: (spawned.init_pid != 0).then_some(spawned.init_pid),
        client: spawned.client,
    })
}

/// Starts the program, with one descriptor and nothing else of ours.
pub(crate) fn execute(
    exe: &OwnedFd,
    argv: &[&str],
    cgroup: Option<&SupervisorCgroup>,
    given: (BorrowedFd<'_>, i32),
) -> Result<Launched, SupervisorError> {
    let malformed = |_| SupervisorError::Malformed {
        what: "supervisor arguments",
        why: "a NUL byte".to_owned(),
    };
    let args: Vec<CString> = argv
        .iter()
        .map(|a| CString::new(*a))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SupervisorError::file("open", "/dev/null", e))?;
    let null = null.as_fd();
    let tasks: Vec<BorrowedFd<'_>> = cgroup
        .iter()
        .flat_map(|c| &c.tasks)
        .map(AsFd::as_fd)
        .collect();
    spawn_self(&Spawn {
        program: exe.as_fd(),
        args: &args,
        env: &[],
        fds: &[(null, 0), (null, 1), (null, 2), given],
        cgroup: cgroup.and_then(|c| c.launch.as_ref()).map(AsFd::as_fd),
        cgroup_tasks: &tasks,
    })
    .map_err(|e| SupervisorError::Kernel("start the supervisor", e))
}
