//! The health clock: starts a short-lived program for each check and hears its verdict.
//!
//! At most one check runs at a time. Its program holds a connection that this supervisor gave it;
//! when that goes, the session it started is killed with all of its process group. So nothing of a
//! check outlives its program, and no program its supervisor.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::channel;
use amphora_sys::pidfd::{self, Exit};
use amphora_sys::process::{Spawn, spawn_self};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::config::Config;
use crate::health::{HealthAction, HealthConfig, HealthRecord, HealthStatus};
use crate::server::{Parts, Server, TOKEN_PROBE};
use crate::session::MAIN;
use crate::start::{HANDOVER_FD, KILL};
use crate::{SupervisorError, again, clock};

/// How much longer than its timeout a check's program may take: it opens and compiles.
const EXTRA_NS: u64 = 60 * clock::NANOS;

/// What the clock waits for.
#[derive(Debug)]
enum Phase {
    /// The next check.
    Pause,
    /// The end of one, whose program is this.
    Check(OwnedFd),
    /// The end of the container, which is stopped because it is unhealthy.
    End,
}

/// When what is to be done.
#[derive(Debug)]
pub(crate) struct HealthClock {
    phase: Phase,
    status: HealthStatus,
    /// When the next check begins, or what takes too long is killed; monotonic.
    due: u64,
}

impl HealthClock {
    /// A clock for the container of these parts; `None` when nothing is checked.
    pub(crate) fn new(parts: &Parts) -> Option<Box<Self>> {
        let config = parts.config.health.as_ref()?;
        let record = HealthRecord::read(parts.run_dir.as_fd()).ok().flatten();
        let status = record.map(|r| r.status).unwrap_or_default();
        let pause = config.pause_ns(status, ran_ns(parts));
        Some(Box::new(Self {
            phase: Phase::Pause,
            status,
            due: clock::monotonic().saturating_add(pause),
        }))
    }
}

fn ran_ns(parts: &Parts) -> u64 {
    clock::now().saturating_sub(parts.state.started_at)
}

impl Server {
    /// The shorter of a timeout and the time until the clock has something to do.
    pub(crate) fn health_timeout(&self, timeout: Option<Timespec>) -> Option<Timespec> {
        let Some(health) = &self.health else {
            return timeout;
        };
        if health.due == u64::MAX {
            return timeout;
        }
        let left = health.due.saturating_sub(clock::monotonic());
        let left = Timespec {
            tv_sec: i64::try_from(left / clock::NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % clock::NANOS).unwrap_or(0),
        };
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    /// Does what is due.
    pub(crate) fn health_tick(&mut self) {
        let Some(health) = &mut self.health else {
            return;
        };
        if clock::monotonic() < health.due {
            return;
        }
        match &health.phase {
            Phase::Pause => self.probe_start(),
            Phase::Check(program) => {
                // Its end is heard as any other.
                let _ = pidfd::signal(program.as_fd(), KILL);
                health.due = u64::MAX;
            }
            Phase::End => {
                health.due = u64::MAX;
                self.health_signal(KILL);
            }
        }
    }

    fn probe_start(&mut self) {
        // What was killed may take its time to go.
        let left = self.sessions.iter().flatten();
        let busy = left.filter_map(|s| s.exec.as_ref()).any(|exec| exec.bound);
        let started = if busy { None } else { self.probe_spawn().ok() };
        let (Some(health), Some(config)) = (&mut self.health, &self.parts.config.health) else {
            return;
        };
        let now = clock::monotonic();
        match started {
            Some(program) => {
                health.phase = Phase::Check(program);
                health.due = now.saturating_add(config.timeout_ns.saturating_add(EXTRA_NS));
            }
            None => {
                let pause = config.pause_ns(health.status, ran_ns(&self.parts));
                health.due = now.saturating_add(pause);
            }
        }
    }

    fn probe_spawn(&mut self) -> Result<OwnedFd, SupervisorError> {
        let kernel = |what| move |e| SupervisorError::Kernel(what, e);
        let (ours, theirs) = channel::pair().map_err(kernel("make a socket pair"))?;
        let full = || SupervisorError::Refused("too many connections".to_owned());
        let client = self.clients.add(&self.epoll, ours, 0).ok_or_else(full)?;
        if let Some(client) = self.clients.get(client) {
            client.leash = true;
        }
        let program = spawn(&self.parts.config, &theirs).and_then(|program| {
            let token = EventData::new_u64(TOKEN_PROBE);
            let watched = epoll::add(&self.epoll, &program, token, EventFlags::IN);
            match watched {
                Ok(()) => Ok(program),
                Err(e) => {
                    end(&program);
                    Err(kernel("watch a check")(e.into()))
                }
            }
        });
        if program.is_err() {
            self.drop_client(client);
        }
        program
    }

    /// A check's program has ended: its code says how the container is.
    pub(crate) fn probe_ended(&mut self) {
        let (Some(health), Some(config)) = (&mut self.health, &self.parts.config.health) else {
            return;
        };
        let Phase::Check(program) = std::mem::replace(&mut health.phase, Phase::Pause) else {
            return;
        };
        let _ = epoll::delete(&self.epoll, &program);
        let exit = pidfd::wait(program.as_fd(), pidfd::Wait::Poll);
        let told = match exit {
            Ok(Some(Exit::Code(code))) => HealthStatus::from_exit_code(code),
            _ => None,
        };
        health.status = told.unwrap_or(health.status);
        let pause = config.pause_ns(health.status, ran_ns(&self.parts));
        health.due = clock::monotonic().saturating_add(pause);
        if told == Some(HealthStatus::Unhealthy) && config.on_failure != HealthAction::None {
            self.health_act();
        }
    }

    fn health_act(&mut self) {
        let (Some(health), Some(config)) = (&mut self.health, &self.parts.config.health) else {
            return;
        };
        health.phase = Phase::End;
        let number = match config.on_failure {
            HealthAction::None => return,
            HealthAction::Kill => KILL,
            HealthAction::Restart | HealthAction::Stop => self.parts.config.stop_signal,
        };
        let timeout = config.stop_timeout_s.saturating_mul(clock::NANOS);
        health.due = match number {
            KILL => u64::MAX,
            _ => clock::monotonic().saturating_add(timeout),
        };
        if config.on_failure != HealthAction::Restart {
            // As by hand: no policy starts it again. Without one nobody looks.
            let _ = again::give_up(
                &self.parts.config,
                self.parts.run_dir.as_fd(),
                self.parts.data_dir.as_fd(),
            );
        }
        self.health_signal(number);
    }

    fn health_signal(&mut self, number: i32) {
        let config = &self.parts.config;
        let text = number.to_string();
        config
            .events
            .write(&config.event("kill", &[("signal", &text)]));
        if let Some(init) = &self.parts.init {
            let _ = pidfd::signal(init.pidfd.as_fd(), number);
        }
    }

    /// The container has ended: so does what checks it. Returns what it was ended for.
    pub(crate) fn health_end(&mut self) -> HealthAction {
        let action = self.parts.config.health.as_ref().map(|c| c.on_failure);
        match self.health.take().map(|health| health.phase) {
            Some(Phase::Check(program)) => {
                let _ = epoll::delete(&self.epoll, &program);
                end(&program);
                HealthAction::None
            }
            Some(Phase::End) => action.unwrap_or_default(),
            _ => HealthAction::None,
        }
    }

    /// The connection of a check has gone: what it started goes too.
    pub(crate) fn kill_bound(&mut self, index: usize) {
        if index == MAIN {
            return;
        }
        let Some(exec) = self.session(index).and_then(|s| s.exec.as_ref()) else {
            return;
        };
        // Not yet reaped, so its number is still its own; it leads a session, and so a group.
        let process = exec.process.as_ref().map(|_| exec.record.pid);
        if let Some(pid) = process.and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn end(program: &OwnedFd) {
    let _ = pidfd::signal(program.as_fd(), KILL);
    let _ = pidfd::wait(program.as_fd(), pidfd::Wait::Block);
}

fn spawn(config: &Config, socket: &OwnedFd) -> Result<OwnedFd, SupervisorError> {
    let argv: &[String] = config
        .health
        .as_ref()
        .map_or(&[], |h: &HealthConfig| &h.probe);
    let args: Vec<CString> = again::c_strings(argv)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SupervisorError::file("open", "/dev/null", e))?;
    let null = null.as_fd();
    let launched = spawn_self(&Spawn {
        program: again::exe()?.as_fd(),
        args: &args,
        env: &[],
        fds: &[
            (null, 0),
            (null, 1),
            (null, 2),
            (socket.as_fd(), HANDOVER_FD),
        ],
        cgroup: None,
        cgroup_tasks: &[],
    });
    launched
        .map(|launched| launched.pidfd)
        .map_err(|e| SupervisorError::Kernel("start a check", e))
}
