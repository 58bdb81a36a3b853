//! Exec sessions in the loop: launched, served, reaped, concluded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_spec::{Classify, ErrorKind};
use amphora_sys::launch::{LaunchError, Launched, Parked};
use amphora_sys::pidfd::{self, Exit};
use amphora_sys::{LaunchPlan, launch};
use rustix::event::epoll::{self, EventFlags};
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::SupervisorError;
use crate::error::kind_number;
use crate::exec::{self, Arrived, ExecRecord};
use crate::exec_events;
use crate::finish::DRAIN_CHUNKS;
use crate::frame::Frame;
use crate::server::Server;
use crate::session::{MAIN, PART_LAUNCH, PART_PROCESS, SESSIONS_MAX, Session, token};
use crate::start::{KILL, launch_error, raise_file_limit};
use crate::stdio::{self, Stdio};

/// How many ended sessions stay on record.
const RECORDS_KEPT: usize = 32;
/// Exit codes of a session that could not be started, as Docker has them.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// How a process ended that nobody saw end.
const KILLED: Exit = Exit::Signal(9);

/// An exec session beside its streams.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) record: ExecRecord,
    /// While the child works its plan off.
    launching: Option<Launching>,
    /// The process, once it runs.
    pub(crate) process: Option<OwnedFd>,
    /// Whether it is killed when the connection that started it goes.
    pub(crate) bound: bool,
    /// How it ended; the session stays until its output is delivered.
    pub(crate) exit: Option<Exit>,
    /// Chunks of each stream that may still be read after the end.
    drain: [usize; 2],
}

#[derive(Debug)]
struct Launching {
    plan: LaunchPlan,
    child: Parked,
    /// Where the terminal comes from.
    console: Option<OwnedFd>,
}

impl Server {
    /// A client hands an exec session over; `false` when it is to be dropped.
    pub(crate) fn exec_arrives(&mut self, client: usize) -> bool {
        let Some(socket) = self.clients.get(client).map(|c| &c.socket) else {
            return true;
        };
        let started = exec::receive(socket.as_fd()).and_then(|it| self.exec_start(client, it));
        match started {
            Ok(()) => true,
            Err(error) => {
                self.exec_refuse(client, &error);
                true
            }
        }
    }

    fn exec_refuse(&mut self, client: usize, error: &SupervisorError) {
        let text = amphora_spec::error::chain(error);
        let frame = Frame::Failed {
            kind: kind_number(error.kind()),
            errno: error.errno(),
            text: &text,
        };
        if let Some(client) = self.clients.get(client) {
            let _ = frame.send(client.socket.as_fd(), SendFlags::DONTWAIT);
        }
    }

    fn exec_start(&mut self, client: usize, arrived: Arrived) -> Result<(), SupervisorError> {
        let Arrived {
            config,
            attach,
            mut plan,
        } = arrived;
        let index = self.free_session()?;
        let bound = self.clients.get(client).is_some_and(|c| c.leash);
        raise_file_limit();
        let open_stdin = config.open_stdin;
        let mut console = None;
        let (stdio, ends) = if config.tty {
            let (socket, ends) = stdio::console()?;
            console = Some(socket);
            (Stdio::default(), ends)
        } else {
            stdio::pipes(open_stdin)?
        };
        ends.give(&mut plan);
        let release = if bound { Some(bind(&mut plan)?) } else { None };
        let pending = launch::start(&plan).map_err(|e| launch_error(&e))?;
        if let (Some(release), Some(client)) = (release, self.clients.get(client)) {
            tell_born(client.socket.as_fd(), pending.launched().pid, &release);
        }
        let child = pending.park();
        epoll::add(
            &self.epoll,
            &child,
            token(index, PART_LAUNCH),
            EventFlags::IN,
        )
        .map_err(SupervisorError::kernel("watch the exec session"))?;
        let exec = Exec {
            record: ExecRecord::new(config),
            launching: Some(Launching {
                plan,
                child,
                console,
            }),
            process: None,
            bound,
            exit: None,
            drain: [DRAIN_CHUNKS; 2],
        };
        let session = Session::new(stdio, true, Some(Box::new(exec)))?;
        if index == self.sessions.len() {
            self.sessions.push(None);
        }
        self.sessions[index] = Some(session);
        if let Some(client) = self.clients.get(client) {
            client.session = index;
            client.owner = true;
            client.streams = attach;
        }
        Ok(())
    }

    fn free_session(&self) -> Result<usize, SupervisorError> {
        let free = self.sessions.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sessions.len());
        if index < SESSIONS_MAX {
            Ok(index)
        } else {
            Err(SupervisorError::Refused(format!(
                "more than {SESSIONS_MAX} exec sessions"
            )))
        }
    }

    /// The child has come to its program, or has failed.
    pub(crate) fn exec_launched(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let launching = session.exec.as_mut().and_then(|e| e.launching.take());
        let Some(launching) = launching else { return };
        let _ = epoll::delete(&self.epoll, &launching.child);
        let launched = launching.child.finish(&launching.plan);
        // Its descriptors too: a terminal's socket is to end with the child.
        drop(launching.plan);
        let started = match launched {
            Ok(it) => session
                .begin(&self.epoll, index, it, launching.console)
                .map_err(|e| (e, NOT_EXECUTABLE)),
            Err(e) => Err((launch_error(&e), failed_code(&e))),
        };
        let Some(exec) = &mut session.exec else {
            return;
        };
        if let Err((_, code)) = &started {
            exec.record.exit_code = Some(*code);
        }
        // The record is for others to look at; the session goes on without it.
        let _ = exec.record.write(self.parts.run_dir.as_fd());
        let id = exec.record.config.id.clone();
        let told = exec_events::started(&self.parts.config, &exec.record.config);
        match started {
            Ok(pid) => self.exec_greet(index, pid),
            Err((error, _)) => {
                self.remember_exec(id);
                self.exec_fail(index, &error);
            }
        }
        self.parts.config.events.write(&told);
    }

    fn exec_greet(&mut self, index: usize, pid: i32) {
        let mut dead = None;
        for (i, client) in self.clients.of(index) {
            let started = Frame::Started(pid);
            if started
                .send(client.socket.as_fd(), SendFlags::DONTWAIT)
                .is_err()
            {
                dead = Some(i);
            }
        }
        if let Some(dead) = dead {
            self.drop_client(dead);
        } else if !self.clients.any(|c| c.session == index) {
            self.end_stdin(index);
            if self
                .session(index)
                .is_some_and(|s| s.exec.as_ref().is_some_and(|e| e.bound))
            {
                self.kill_bound(index);
            }
        }
    }

    fn exec_fail(&mut self, index: usize, error: &SupervisorError) {
        let clients: Vec<usize> = self.clients.of(index).map(|(i, _)| i).collect();
        for client in clients {
            self.exec_refuse(client, error);
            if let Some(client) = self.clients.get(client) {
                client.session = MAIN;
                client.streams = 0;
                client.owner = false;
            }
        }
        self.sessions[index] = None;
    }

    /// The process has ended: what it wrote goes out, then its code.
    pub(crate) fn exec_exited(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some(exec) = &mut session.exec else {
            return;
        };
        let Some(process) = exec.process.take() else {
            return;
        };
        let _ = epoll::delete(&self.epoll, &process);
        let exit = pidfd::wait(process.as_fd(), pidfd::Wait::Poll)
            .ok()
            .flatten();
        exec.exit = Some(exit.unwrap_or(KILLED));
        session.stdio.stdin = None;
        self.conclude_exec(index);
    }

    /// Delivers what is left of an ended session, and ends it; a client that is not done with the
    /// chunk at hand brings it back here.
    pub(crate) fn conclude_exec(&mut self, index: usize) {
        if self.session(index).is_none_or(|s| s.pending.is_some()) {
            return;
        }
        for which in 0..2 {
            while self.may_drain(index, which) && self.output(index, which) {
                if self.session(index).is_none_or(|s| s.pending.is_some()) {
                    return;
                }
            }
        }
        let Some(session) = self.sessions.get_mut(index).and_then(Option::take) else {
            return;
        };
        let Some(exec) = session.exec else { return };
        let code = exec.exit.unwrap_or(KILLED).shell_code();
        let told = exec_events::ended(&self.parts.config, &exec.record.config.id, code);
        let answer = self.exec_record_end(*exec);
        let clients: Vec<usize> = self.clients.of(index).map(|(i, _)| i).collect();
        for i in clients {
            let Some(client) = self.clients.get(i) else {
                continue;
            };
            client.session = MAIN;
            client.streams = 0;
            client.owner = false;
            if client.end(&answer).is_err() {
                self.drop_client(i);
            } else {
                self.clients.update(&self.epoll, i);
            }
        }
        self.parts.config.events.write(&told);
    }

    /// Counts one chunk after the end: what the process left behind may write for ever.
    fn may_drain(&mut self, index: usize, which: usize) -> bool {
        let exec = self.session(index).and_then(|s| s.exec.as_mut());
        exec.is_some_and(|e| {
            let left = e.drain[which];
            e.drain[which] = left.saturating_sub(1);
            left > 0
        })
    }

    fn exec_record_end(&mut self, mut exec: Exec) -> Vec<u8> {
        let exit = exec.exit.unwrap_or(KILLED);
        let code = exit.shell_code();
        exec.record.running = false;
        exec.record.exit_code = Some(code);
        let _ = exec.record.write(self.parts.run_dir.as_fd());
        self.remember_exec(exec.record.config.id);
        let signal = match exit {
            Exit::Signal(signal) => i32::from(signal),
            Exit::Code(_) => 0,
        };
        Frame::Exit {
            code,
            signal,
            oom_killed: false,
        }
        .encode()
    }

    /// Keeps the last ended sessions on record.
    fn remember_exec(&mut self, id: String) {
        if self.ended_execs.len() >= RECORDS_KEPT
            && let Some(oldest) = self.ended_execs.pop_front()
        {
            ExecRecord::remove(self.parts.run_dir.as_fd(), &oldest);
        }
        self.ended_execs.push_back(id);
    }

    /// The session of that id, or else the client's own.
    pub(crate) fn session_of(&mut self, client: usize, id: &str) -> Option<usize> {
        if id.is_empty() {
            return self.clients.get(client).map(|c| c.session);
        }
        self.sessions.iter().position(|s| {
            let exec = s.as_ref().and_then(|s| s.exec.as_ref());
            exec.is_some_and(|e| e.record.config.id == id)
        })
    }

    /// Sends a signal to the process of an exec session; `None` for the container's own.
    pub(crate) fn signal_exec(
        &mut self,
        index: usize,
        number: i32,
    ) -> Option<std::io::Result<bool>> {
        let exec = self.session(index)?.exec.as_ref()?;
        let sent = exec
            .process
            .as_ref()
            .map_or(Ok(false), |process| pidfd::signal(process.as_fd(), number));
        Some(sent)
    }

    /// The container has ended, and every process in its namespace with it: the sessions end too.
    pub(crate) fn end_execs(&mut self) {
        for index in MAIN + 1..self.sessions.len() {
            let Some(exec) = self.session(index).and_then(|s| s.exec.as_mut()) else {
                continue;
            };
            if let Some(launching) = exec.launching.take() {
                // It fails, or has just become its program and dies with the container.
                if let Ok(Launched { pidfd, .. }) = launching.child.finish(&launching.plan) {
                    exec.process = Some(pidfd);
                }
            }
            if let Some(process) = exec.process.take() {
                let ended = pidfd::wait(process.as_fd(), pidfd::Wait::Poll)
                    .ok()
                    .flatten();
                exec.exit = ended.or_else(|| {
                    let _ = pidfd::signal(process.as_fd(), KILL);
                    pidfd::wait(process.as_fd(), pidfd::Wait::Block)
                        .ok()
                        .flatten()
                });
            }
            for which in 0..2 {
                self.flush_pending(index);
                while self.may_drain(index, which) && self.output(index, which) {
                    self.flush_pending(index);
                }
            }
            let Some(exec) = self.sessions[index].take().and_then(|s| s.exec) else {
                continue;
            };
            let answer = self.exec_record_end(*exec);
            for (_, client) in self.clients.of(index) {
                let _ = client.pay();
                client.ended = true;
                let _ = client.send_final(&answer);
            }
        }
    }
}

impl Session {
    /// Has the loop serve a process that runs; on failure nothing of it is left.
    fn begin(
        &mut self,
        epoll: &OwnedFd,
        index: usize,
        launched: Launched,
        console: Option<OwnedFd>,
    ) -> Result<i32, SupervisorError> {
        let Launched { pid, pidfd } = launched;
        let open_stdin = self
            .exec
            .as_ref()
            .is_some_and(|e| e.record.config.open_stdin);
        let ready = console
            .map_or(Ok(()), |socket| {
                self.stdio.take_terminal(&socket, open_stdin)
            })
            .and_then(|()| {
                let process = token(index, PART_PROCESS);
                self.watch(epoll, index)
                    .and_then(|()| epoll::add(epoll, &pidfd, process, EventFlags::IN))
                    .map_err(SupervisorError::kernel("watch the exec session"))
            });
        if let Err(error) = ready {
            let _ = pidfd::signal(pidfd.as_fd(), KILL);
            let _ = pidfd::wait(pidfd.as_fd(), pidfd::Wait::Block);
            return Err(error);
        }
        if let Some(exec) = &mut self.exec {
            exec.process = Some(pidfd);
            exec.record.pid = pid;
            exec.record.running = true;
        }
        Ok(pid)
    }
}

/// Docker's exit code of a session that could not be started.
fn failed_code(error: &LaunchError) -> i32 {
    match error.kind() {
        ErrorKind::CommandNotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}

/// Has a check wait until its maker knows of it: who is killed before has it end by itself, who is
/// killed after leaves it to the maker.
fn bind(plan: &mut LaunchPlan) -> Result<OwnedFd, SupervisorError> {
    let made = pipe_with(PipeFlags::CLOEXEC);
    let (release, writer) = made.map_err(SupervisorError::kernel("make a pipe"))?;
    plan.await_told(release, writer.as_fd());
    Ok(writer)
}

/// A maker that is gone, or a process that has failed, is seen as that of any other session.
fn tell_born(maker: BorrowedFd<'_>, pid: i32, release: &OwnedFd) {
    if let Ok(start) = pidfd::start_time(pid) {
        let _ = Frame::Born { pid, start }.send(maker, SendFlags::DONTWAIT);
    }
    let _ = rustix::io::write(release, &[1]);
}
