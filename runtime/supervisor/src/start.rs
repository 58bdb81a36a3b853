//! The `amphora supervise` entry: receives the hand-over, launches or adopts, serves, ends.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use amphora_spec::Classify;
use amphora_sys::supervise::block_all_signals;
use amphora_sys::{LaunchError, LaunchPlan, pidfd};
use rustix::fs::{AtFlags, Mode, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::{Resource, Rlimit, getpid, getrlimit, setrlimit};

use crate::config::Config;
use crate::early::Early;
use crate::error::kind_number;
use crate::exit::ExitRecord;
use crate::files::open_dir;
use crate::frame::Frame;
use crate::handover::{Handover, Mode as StartMode};
use crate::health::HealthRecord;
use crate::server::{Init, Parts, Server};
use crate::session::MAIN;
use crate::state::{State, Status, proc_stat};
use crate::{SupervisorError, adopted, again, clock, early, finish, stdio};

/// The number of the socket a supervisor is born with.
pub(crate) const HANDOVER_FD: i32 = 3;
/// The control socket in the run directory.
pub(crate) const SOCKET: &str = "supervisor.sock";
const BACKLOG: i32 = 128;
/// SIGKILL.
pub(crate) const KILL: i32 = 9;

/// Runs a supervisor; the whole of the `supervise` entry. To be called at the very start of
/// `main`, before any thread is made and before anything has opened descriptor 3.
#[must_use]
pub fn supervise_main() -> ExitCode {
    let Ok((socket, again)) = again::hand_over_socket() else {
        return ExitCode::FAILURE;
    };
    let _ = rustix::thread::set_name(c"amphora-super");
    let blocked = block_all_signals().map_err(|e| SupervisorError::Kernel("block signals", e));
    let early = early::make(socket.as_fd());
    let prepared = blocked.and_then(|()| Handover::receive(socket.as_fd()));
    let last = again.as_ref().map(|again| again.state);
    let started = prepared.and_then(|handover| match handover.mode {
        StartMode::Launch => launch(handover, &socket, early, last.as_ref()),
        StartMode::Adopt => adopted::adopt(handover, &socket),
    });
    let mut server = match started {
        Ok(server) => server,
        Err(error) => {
            let code = refuse(socket.as_fd(), &error);
            drop(socket);
            return again.map_or(code, |again| again.failed(&error));
        }
    };
    drop(socket);
    if let Some(again) = again {
        again.reap();
    }
    let served = match server.parts.init {
        Some(_) => server.run().and_then(|()| finish::finish(server)),
        None => adopted::conclude(server),
    };
    if served.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn refuse(socket: BorrowedFd<'_>, error: &SupervisorError) -> ExitCode {
    let text = amphora_spec::error::chain(error);
    let frame = Frame::Failed {
        kind: kind_number(error.kind()),
        errno: error.errno(),
        text: &text,
    };
    let _ = frame.send(socket, SendFlags::empty());
    ExitCode::FAILURE
}

/// The directories and the socket of a container.
pub(crate) fn open_parts(
    config: Config,
    handover: &mut Handover,
    stdio: impl FnOnce(BorrowedFd<'_>, &Config) -> Result<stdio::Stdio, SupervisorError>,
) -> Result<Parts, SupervisorError> {
    let run_dir = open_dir(&config.run_dir)?;
    let data_dir = open_dir(&config.data_dir)?;
    let stdio = stdio(run_dir.as_fd(), &config)?;
    let control = control_socket(run_dir.as_fd())?;
    let pid = getpid().as_raw_nonzero().get();
    let start = proc_stat(pid)?.map_or(0, |s| s.start);
    let state = State {
        status: Status::Starting,
        supervisor_pid: pid,
        supervisor_start: start,
        ..State::default()
    };
    let lock = handover
        .lock
        .try_clone()
        .map_err(|e| SupervisorError::Kernel("keep the lock", e))?;
    let exe = handover.exe.try_clone();
    let hold = std::mem::take(&mut handover.hold);
    Ok(Parts {
        config,
        run_dir,
        data_dir,
        lock,
        hold,
        late: exe.into_iter().collect(),
        early: Early::default(),
        names: None,
        control,
        init: None,
        stdio,
        state,
    })
}

fn launch(
    mut handover: Handover,
    socket: &OwnedFd,
    early: Early,
    last: Option<&State>,
) -> Result<Server, SupervisorError> {
    let config = Config::decode(&handover.config)?;
    let plan_fds = std::mem::take(&mut handover.plan_fds);
    let mut plan = LaunchPlan::decode(&handover.plan, plan_fds)
        .map_err(|e| launch_error(&LaunchError::from(e)))?;
    let mut console = None;
    let mut parts = open_parts(config, &mut handover, |run_dir, config| {
        let (ours, theirs) = if config.tty {
            let (socket, theirs) = stdio::console()?;
            console = Some(socket);
            (stdio::Stdio::default(), theirs)
        } else {
            stdio::create(run_dir, config.open_stdin)?
        };
        theirs.give(&mut plan);
        Ok(ours)
    })?;
    if let Some(last) = last {
        parts.state.restarts = last.restarts;
        parts.state.pause_ns = last.pause_ns;
    }
    for dir in [&parts.data_dir, &parts.run_dir] {
        ExitRecord::remove(dir.as_fd())?;
    }
    if parts.config.health.is_some() {
        HealthRecord::default().write(parts.run_dir.as_fd())?;
    }
    parts.state.write(parts.run_dir.as_fd())?;
    // The record holds the child's pid while the child still works its plan off: whoever finds
    // this process killed here knows whom to look for.
    parts.early = early.used_by(&mut plan);
    parts.names = parts.early.names.take();
    let pending = amphora_sys::launch::start_from(&plan, parts.early.base.as_ref())
        .map_err(|e| launch_error(&e))?;
    parts
        .late
        .extend(pidfd::mount_namespace(pending.launched().pidfd.as_fd()));
    parts.state.init_pid = pending.launched().pid;
    parts.state.init_start = proc_stat(parts.state.init_pid)?.map_or(0, |s| s.start);
    parts.state.started_at = clock::now();
    let noted = parts.state.write(parts.run_dir.as_fd());
    let launched = pending.finish().map_err(|e| launch_error(&e))?;
    drop(plan);
    parts.init = Some(Init {
        pidfd: launched.pidfd,
        child: true,
    });
    parts.state.status = Status::Running;
    let init = parts.init.as_ref().and_then(|i| i.pidfd.try_clone().ok());
    let noted = noted.and_then(|()| match console {
        Some(socket) => parts.stdio.take_terminal(&socket, parts.config.open_stdin),
        None => Ok(()),
    });
    let noted = noted.and_then(|()| parts.state.write(parts.run_dir.as_fd()));
    let served = noted.and_then(|()| serve(parts, handover.listeners));
    if let (Err(_), Some(init)) = (&served, init) {
        let _ = pidfd::signal(init.as_fd(), KILL);
        let _ = pidfd::wait(init.as_fd(), pidfd::Wait::Block);
    }
    let mut server = served?;
    greet(&mut server, socket, handover.attach, launched.pid);
    note_start(&server);
    server.begin_overlays();
    Ok(server)
}

/// Sets the loop up.
pub(crate) fn serve(parts: Parts, listeners: Vec<OwnedFd>) -> Result<Server, SupervisorError> {
    if !listeners.is_empty() {
        raise_file_limit();
    }
    let mut server = Server::new(parts)?;
    server.add_listeners(listeners)?;
    Ok(server)
}

/// Tells the starting process, and keeps its connection when it wants to be attached.
pub(crate) fn greet(server: &mut Server, socket: &OwnedFd, attach: u8, pid: i32) {
    let told = Frame::Started(pid).send(socket.as_fd(), SendFlags::empty());
    if attach != 0 && told.is_ok() {
        if let Ok(socket) = socket.try_clone() {
            server.add_client(socket, attach);
        }
    } else if attach != 0 && server.parts.config.stdin_once {
        // Whoever wanted to feed it is gone.
        server.end_stdin(MAIN);
    }
    after_start();
}

/// Writes what led to the start and the start itself, once nobody waits for it.
fn note_start(server: &Server) {
    let config = &server.parts.config;
    let log = &config.events;
    let mut lines = format!("{}{}", log.before, config.event("start", &[]));
    if again::was_unhealthy() {
        // As behind a restart by hand.
        lines.push_str(&config.event("restart", &[]));
    }
    log.write(&lines);
}

/// What need not be done before the container runs. Its child must not inherit either.
fn after_start() {
    let file = rustix::fs::open(
        "/proc/self/oom_score_adj",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    );
    // Needs CAP_SYS_RESOURCE to go down; without it the kernel's own choice stays.
    let _ = file.and_then(|file| rustix::io::write(&file, b"-999"));
}

pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

pub(crate) fn launch_error(error: &LaunchError) -> SupervisorError {
    SupervisorError::Launch {
        message: amphora_spec::error::chain(error),
        errno: error.errno().unwrap_or(0),
        kind: error.kind(),
    }
}

/// The path of the socket by way of the directory's descriptor: whatever the length of the
/// directory's own path, it fits into an address.
pub(crate) fn socket_address(run_dir: BorrowedFd<'_>) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", run_dir.as_raw_fd()))
}

pub(crate) fn control_socket(run_dir: BorrowedFd<'_>) -> Result<OwnedFd, SupervisorError> {
    match unlinkat(run_dir, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(SupervisorError::file("remove", SOCKET, e)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &socket_address(run_dir)?)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    make().map_err(|e: Errno| SupervisorError::file("listen on", SOCKET, e))
}
