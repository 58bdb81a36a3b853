//! The next run of a container under the same supervisor: the pause before it, then the same
//! process executes itself anew, has `prepare` make everything again, and launches.
//!
//! Whatever happens in between is on record: a status "restarting" with a free lock is a container
//! whose supervisor was killed here.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use amphora_spec::{Classify, ErrorKind};
use amphora_sys::process::{Spawn, spawn_self};
use amphora_sys::supervise::{block_all_signals, exec_in_place, take_inherited};
use amphora_sys::{channel, pidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::config::Config;
use crate::error::kind_number;
use crate::exit::ExitRecord;
use crate::files::{self, open_dir};
use crate::frame::{self, Frame};
use crate::lock::FINISH_LOCK_FD;
use crate::restart::{RestartPolicy, pause_ns};
use crate::start::{HANDOVER_FD, control_socket};
use crate::state::{State, Status};
use crate::{SupervisorError, clock, shared_base};

/// Word of a supervisor's arguments, followed by its run directory: it goes on with that container.
const AGAIN: &str = "again";
/// The last of its arguments when it goes on because the container was unhealthy.
const UNHEALTHY: &str = "unhealthy";
/// The number under which `prepare` inherits the container's lock.
pub(crate) const PREPARE_LOCK_FD: i32 = 4;
/// Whether the container is wanted: written by start and stop, in the data directory.
const WANTED: &str = "wanted";
/// What it holds after a stop by hand.
const STOPPED: &[u8] = b"stopped\n";
/// A changed policy, in the run directory.
const POLICY: &str = "restart";
const SMALL: usize = 64;
/// Code of a run that did not come to be, as Docker's.
const START_FAILED: i32 = 128;
/// Most clients that wait for the next run.
const WAITING_MAX: usize = 64;
/// How long a `prepare` that has done its work may take to end.
const PREPARE_END: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What a supervisor in its pause is made of.
pub(crate) struct Pause<'a> {
    pub(crate) config: &'a Config,
    pub(crate) run_dir: BorrowedFd<'a>,
    pub(crate) data_dir: BorrowedFd<'a>,
    pub(crate) lock: BorrowedFd<'a>,
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) state: State,
    pub(crate) cause: Cause,
}

/// Why a container may run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It has ended with this code; its policy decides.
    Ended(i32),
    /// It was unhealthy, and is to be started again whatever its policy.
    Unhealthy,
}

/// Notes whether a container is wanted, for its supervisor and for the next boot.
///
/// # Errors
/// When the note cannot be written.
pub fn note_wanted(data_dir: BorrowedFd<'_>, wanted: bool) -> Result<(), SupervisorError> {
    let text: &[u8] = if wanted { b"running\n" } else { STOPPED };
    files::replace_lasting(data_dir, WANTED, text)
        .map_err(|e| SupervisorError::file("write", WANTED, e))
}

/// Reads that note; `None` when the container was never started under a policy.
///
/// # Errors
/// When it cannot be read.
pub fn is_wanted(data_dir: BorrowedFd<'_>) -> Result<Option<bool>, SupervisorError> {
    let read = files::read(data_dir, WANTED, SMALL);
    let text = read.map_err(|e| SupervisorError::file("read", WANTED, e))?;
    Ok(text.map(|text| text != STOPPED))
}

/// Tells the supervisor of a run directory of another policy.
///
/// # Errors
/// When it cannot be written.
pub fn change_policy(
    run_dir: BorrowedFd<'_>,
    policy: RestartPolicy,
) -> Result<(), SupervisorError> {
    let bytes = postcard::to_allocvec(&policy).map_err(|e| SupervisorError::Malformed {
        what: "restart policy",
        why: e.to_string(),
    })?;
    files::replace(run_dir, POLICY, &bytes).map_err(|e| SupervisorError::file("write", POLICY, e))
}

fn policy(config: &Config, run_dir: BorrowedFd<'_>) -> RestartPolicy {
    let changed = files::read(run_dir, POLICY, SMALL).ok().flatten();
    changed
        .and_then(|bytes| postcard::from_bytes(&bytes).ok())
        .unwrap_or(config.restart)
}

/// Keeps the container's policy, if it has one, from starting it again.
pub(crate) fn give_up(
    config: &Config,
    run_dir: BorrowedFd<'_>,
    data_dir: BorrowedFd<'_>,
) -> Result<(), SupervisorError> {
    if policy(config, run_dir).is_some() {
        note_wanted(data_dir, false)?;
    }
    Ok(())
}

/// Decides whether the container runs again, and notes the pause in the state.
pub(crate) fn wanted(
    config: &Config,
    run_dir: BorrowedFd<'_>,
    data_dir: BorrowedFd<'_>,
    cause: Cause,
    state: &mut State,
) -> bool {
    let wants = match cause {
        Cause::Ended(code) => policy(config, run_dir).wants(code, state.restarts),
        Cause::Unhealthy => true,
    };
    if config.prepare.is_empty() || !wants || is_wanted(data_dir).ok().flatten() == Some(false) {
        return false;
    }
    let ran = state.finished_at.saturating_sub(state.started_at);
    state.pause_ns = pause_ns(state.pause_ns, ran);
    state.restarts = state.restarts.saturating_add(1);
    state.status = Status::Restarting;
    true
}

/// Waits, then becomes the supervisor of the next run. Returns when the container is not to run
/// any more, or nothing can be executed.
pub(crate) fn pause(pause: &Pause<'_>) -> Result<(), SupervisorError> {
    let deadline = clock::monotonic().saturating_add(pause.state.pause_ns);
    let mut waiting: Vec<OwnedFd> = Vec::new();
    loop {
        let left = deadline.saturating_sub(clock::monotonic());
        if !still_wanted(pause) {
            let answer = Frame::Exit {
                code: pause.state.exit_code,
                signal: 0,
                oom_killed: false,
            };
            for client in waiting {
                let _ = answer.send(client.as_fd(), SendFlags::DONTWAIT);
            }
            return Ok(());
        }
        if left == 0 {
            return execute_again(pause);
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left / clock::NANOS).unwrap_or(0),
            tv_nsec: i64::try_from(left % clock::NANOS).unwrap_or(0),
        };
        let ready = {
            let mut fds = vec![PollFd::new(&pause.control, PollFlags::IN)];
            fds.extend(waiting.iter().map(|c| PollFd::new(c, PollFlags::IN)));
            let _ = poll(&mut fds, Some(&timeout));
            fds.iter()
                .map(|fd| !fd.revents().is_empty())
                .collect::<Vec<_>>()
        };
        let mut index = ready.len();
        while index > 1 {
            index -= 1;
            if ready[index] && !answer(waiting[index - 1].as_fd(), &pause.config.id) {
                waiting.swap_remove(index - 1);
            }
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if ready[0]
            && let Ok(client) = accept_with(pause.control, flags)
            && waiting.len() < WAITING_MAX
        {
            waiting.push(client);
        }
    }
}

fn still_wanted(pause: &Pause<'_>) -> bool {
    (pause.cause == Cause::Unhealthy || policy(pause.config, pause.run_dir).is_some())
        && is_wanted(pause.data_dir).ok().flatten() != Some(false)
}

/// Answers a client of a container that does not run just now; `false`: close the connection.
fn answer(client: BorrowedFd<'_>, id: &str) -> bool {
    let mut message = [0; SMALL];
    let n = frame::receive(client, &mut message, RecvFlags::DONTWAIT).unwrap_or(0);
    match Frame::decode(message.get(..n).unwrap_or_default()) {
        Some(Frame::Wait) => true,
        Some(Frame::Wake) => false,
        Some(_) => {
            let text = format!("Container {id} is restarting, wait until the container is running");
            let _ = Frame::Error(&text).send(client, SendFlags::DONTWAIT);
            false
        }
        None => false,
    }
}

/// The arguments of a supervisor that goes on with the container of a run directory.
pub(crate) fn words<'a>(config: &Config, run_dir: &'a str) -> Vec<&'a str> {
    let mut words = vec!["amphora", "supervise", AGAIN, run_dir];
    words.extend(config.ahead().words());
    words
}

fn execute_again(pause: &Pause<'_>) -> Result<(), SupervisorError> {
    let run_dir = pause.config.run_dir.to_string_lossy().into_owned();
    let mut words = words(pause.config, &run_dir);
    let base = shared_base::word(&pause.config.run_dir);
    words.extend(base.as_deref());
    if pause.cause == Cause::Unhealthy {
        words.push(UNHEALTHY);
    }
    let argv = c_strings(&words)?;
    let error = exec_in_place(exe()?.as_fd(), &argv, pause.lock, FINISH_LOCK_FD);
    Err(SupervisorError::Kernel("start the supervisor anew", error))
}

pub(crate) fn exe() -> Result<OwnedFd, SupervisorError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    open("/proc/self/exe", flags, Mode::empty())
        .map_err(|e| SupervisorError::file("open", "/proc/self/exe", e))
}

pub(crate) fn c_strings<S: AsRef<str>>(words: &[S]) -> Result<Vec<CString>, SupervisorError> {
    let malformed = |_| SupervisorError::Malformed {
        what: "arguments",
        why: "a NUL byte".to_owned(),
    };
    words
        .iter()
        .map(|w| CString::new(w.as_ref()).map_err(malformed))
        .collect()
}

/// A supervisor that goes on with its container.
#[derive(Debug)]
pub(crate) struct Again {
    config: Config,
    run_dir: OwnedFd,
    lock: OwnedFd,
    /// What the last run left on record.
    pub(crate) state: State,
    prepare: OwnedFd,
}

/// Whether this process was executed to go on with a container, and its run directory.
fn requested() -> Option<String> {
    let mut args = std::env::args().skip(2);
    (args.next().as_deref() == Some(AGAIN)).then(|| args.next().unwrap_or_default())
}

/// Whether this process was executed because its container was unhealthy.
pub(crate) fn was_unhealthy() -> bool {
    requested().is_some() && std::env::args().next_back().as_deref() == Some(UNHEALTHY)
}

/// The socket that a hand-over comes from: inherited, or that of a `prepare` started here.
pub(crate) fn hand_over_socket() -> Result<(OwnedFd, Option<Again>), SupervisorError> {
    match requested() {
        Some(run_dir) => begin(Path::new(&run_dir)).map(|(socket, again)| (socket, Some(again))),
        None => take_inherited(HANDOVER_FD)
            .map(|socket| (socket, None))
            .map_err(|e| SupervisorError::Kernel("take the hand-over", e)),
    }
}

fn begin(run_dir: &Path) -> Result<(OwnedFd, Again), SupervisorError> {
    let kernel = |what| move |e| SupervisorError::Kernel(what, e);
    let lock = take_inherited(FINISH_LOCK_FD).map_err(kernel("take the lock"))?;
    // Before anything else is started: it must not inherit what would interrupt it.
    block_all_signals().map_err(kernel("block signals"))?;
    let dir = open_dir(run_dir)?;
    let config = Config::read(dir.as_fd())?
        .ok_or_else(|| SupervisorError::NotRunning(run_dir.to_owned()))?;
    let state = State::read(dir.as_fd())?.unwrap_or_default();
    let (ours, theirs) = channel::pair().map_err(kernel("make a socket pair"))?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SupervisorError::file("open", "/dev/null", e))?;
    let null = null.as_fd();
    let launched = spawn_self(&Spawn {
        program: exe()?.as_fd(),
        args: &c_strings(&config.prepare)?,
        env: &[],
        fds: &[
            (null, 0),
            (null, 1),
            (null, 2),
            (theirs.as_fd(), HANDOVER_FD),
            (lock.as_fd(), PREPARE_LOCK_FD),
        ],
        cgroup: None,
        cgroup_tasks: &[],
    })
    .map_err(kernel("start the prepare program"))?;
    Ok((
        ours,
        Again {
            config,
            run_dir: dir,
            lock,
            state,
            prepare: launched.pidfd,
        },
    ))
}

impl Again {
    /// Waits for the end of `prepare`, which has nothing more to do.
    pub(crate) fn reap(&self) {
        let mut fds = [PollFd::new(&self.prepare, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut fds, Some(&PREPARE_END)) {}
        let _ = pidfd::wait(self.prepare.as_fd(), pidfd::Wait::Poll);
        // Whatever else ended since: children of the run before.
        while let Ok(Some(_)) = waitpid(None::<Pid>, WaitOptions::NOHANG) {}
    }

    /// A start that failed counts as a run that failed: the next one follows after a pause, or
    /// this process becomes `finish`.
    pub(crate) fn failed(&self, error: &SupervisorError) -> ExitCode {
        let _ = pidfd::wait(self.prepare.as_fd(), pidfd::Wait::Block);
        let ended = self
            .note_failed(error)
            .and_then(|()| crate::finish::become_finish(&self.config.finish, self.lock.as_fd()));
        if ended.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn note_failed(&self, error: &SupervisorError) -> Result<(), SupervisorError> {
        let data_dir = open_dir(&self.config.data_dir)?;
        let (run_dir, data_dir) = (self.run_dir.as_fd(), data_dir.as_fd());
        let mut state = self.state;
        let now = clock::now();
        let code = match error.kind() {
            ErrorKind::CommandNotFound => 127,
            ErrorKind::CommandNotExecutable => 126,
            _ => START_FAILED,
        };
        let text = amphora_spec::error::chain(error);
        let record = ExitRecord {
            code,
            restarts: state.restarts,
            ..ExitRecord::unknown(&text, now, now)
        };
        record.write(data_dir).or_else(|_| record.write(run_dir))?;
        (state.started_at, state.finished_at) = (now, now);
        (state.init_pid, state.exit_code) = (0, code);
        let cause = Cause::Ended(code);
        if wanted(&self.config, run_dir, data_dir, cause, &mut state) {
            state.write(run_dir)?;
            let control = control_socket(run_dir)?;
            pause(&Pause {
                config: &self.config,
                run_dir,
                data_dir,
                lock: self.lock.as_fd(),
                control: control.as_fd(),
                state,
                cause,
            })?;
        }
        state.status = Status::Exited;
        state.write(run_dir)
    }
}

/// What the `prepare` program inherits from the supervisor.
#[derive(Debug)]
pub struct Inherited {
    /// For [`crate::Waiting::inherited`].
    pub socket: OwnedFd,
    /// The container's lock.
    pub lock: OwnedFd,
}

/// Takes what a supervisor gave its `prepare` program. For the start of that program's `main`.
///
/// # Errors
/// When nothing was inherited.
pub fn inherited_start() -> Result<Inherited, SupervisorError> {
    let take = |number| {
        take_inherited(number).map_err(|e| SupervisorError::Kernel("take what was inherited", e))
    };
    Ok(Inherited {
        socket: take(HANDOVER_FD)?,
        lock: take(PREPARE_LOCK_FD)?,
    })
}

impl Inherited {
    /// Tells the supervisor that there is nothing to launch, and why. One that is gone needs no
    /// telling.
    pub fn failed(socket: BorrowedFd<'_>, kind: ErrorKind, text: &str) {
        let frame = Frame::Failed {
            kind: kind_number(kind),
            errno: 0,
            text,
        };
        let _ = frame.send(socket, SendFlags::DONTWAIT);
    }
}
