//! The end, in its order: drain, record, release, answer, become `finish`.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_sys::pidfd::{self, Exit};
use amphora_sys::supervise::exec_in_place;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, accept_with};

use crate::again::Cause;
use crate::clients::Clients;
use crate::exit::ExitRecord;
use crate::frame::Frame;
use crate::health::HealthAction;
use crate::lock::FINISH_LOCK_FD;
use crate::server::{Init, Server};
use crate::session::{MAIN, STREAMS};
use crate::splice::Splices;
use crate::state::{Status, proc_stat};
use crate::{SupervisorError, again, clock, files, release};

/// Most chunks read of each stream after the end: with the namespace gone a pipe's content is
/// all there is, but a process outside of it may still hold the pipe and write.
pub(crate) const DRAIN_CHUNKS: usize = 256;
/// How long the init of somebody else may stay unreaped before its code counts as unknown.
const REAP_WAIT_NS: u64 = clock::NANOS;

const UNKNOWN: &str = "the exit code is unknown: the supervisor was killed";

/// Ends a served container. Returns only when there is no `finish` program, or it cannot be started.
pub(crate) fn finish(mut server: Server) -> Result<(), SupervisorError> {
    let pid = server.parts.state.init_pid;
    let exit = server
        .parts
        .init
        .as_ref()
        .and_then(|init| exit_of(init, pid));
    let finished_at = clock::now();
    // Its sockets would keep the network namespace.
    server.names = None;
    if let Some(overlays) = server.overlays.take() {
        server.parts.late.extend(overlays.into_late());
    }
    server.ended_for = server.health_end();
    server.end_execs();
    server.flush_pending(MAIN);
    for which in 0..STREAMS.len() {
        for _ in 0..DRAIN_CHUNKS {
            if !server.output(MAIN, which) {
                break;
            }
            server.flush_pending(MAIN);
        }
    }
    server.log.finish();
    server.splices.drain();
    let started_at = server.parts.state.started_at;
    let mut record = match exit {
        Some(exit) => ExitRecord::from_exit(exit, started_at, finished_at),
        None => ExitRecord::unknown(UNKNOWN, started_at, finished_at),
    };
    record.log_bytes_dropped = server.log.dropped();
    conclude(server, record, finished_at)
}

/// Everything after the drain.
pub(crate) fn conclude(
    mut server: Server,
    mut record: ExitRecord,
    finished_at: u64,
) -> Result<(), SupervisorError> {
    let parts = &mut server.parts;
    let kills = parts.config.cgroup.as_ref().map_or(0, oom_kills);
    record.oom_killed |= kills > 0;
    record.restarts = parts.state.restarts;
    let written = if parts.config.auto_remove {
        record.write(parts.run_dir.as_fd())
    } else {
        // A full disk must not lose the code as well.
        record
            .write(parts.data_dir.as_fd())
            .or_else(|_| record.write(parts.run_dir.as_fd()))
    };
    parts.state.status = Status::Exited;
    parts.state.finished_at = finished_at;
    parts.state.exit_code = record.code;
    let cause = match server.ended_for {
        HealthAction::Restart => Cause::Unhealthy,
        _ => Cause::Ended(record.code),
    };
    let again = !parts.config.auto_remove
        && again::wanted(
            &parts.config,
            parts.run_dir.as_fd(),
            parts.data_dir.as_fd(),
            cause,
            &mut parts.state,
        );
    let written = written.and(parts.state.write(parts.run_dir.as_fd()));
    let released = release::run(&parts.config.release);
    // The rules are gone: now the ports may be bound by the next one.
    parts.hold.retain(is_netlink);
    server.splices = Splices::default();
    let mut failures = released.failures;
    failures.extend(written.err().map(|e| e.to_string()));
    if !failures.is_empty() {
        let text = failures.join("\n");
        let _ = files::replace(server.parts.run_dir.as_fd(), "failures", text.as_bytes());
    }
    let answer = Frame::Exit {
        code: record.code,
        signal: record.signal,
        oom_killed: record.oom_killed,
    };
    let answer = answer.encode();
    for (_, client) in server.clients.iter().filter(|(_, c)| !c.ended) {
        let _ = client.pay();
        client.tell_skipped();
        let _ = client.send_final(&answer);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    while let Ok(late) = accept_with(&server.parts.control, flags) {
        let _ = crate::frame::send_bytes(late.as_fd(), &answer, rustix::net::SendFlags::DONTWAIT);
    }
    note_end(&server, &record, again);
    drop(released.sockets);
    let parts = &mut server.parts;
    std::mem::take(&mut parts.early).end(&parts.config.run_dir);
    if again {
        pause(&mut server, cause)?;
    }
    become_finish(&server.parts.config.finish, server.parts.lock.as_fd())
}

/// Waits for the next run, which does not begin here; returns when there is none after all.
fn pause(server: &mut Server, cause: Cause) -> Result<(), SupervisorError> {
    server.clients = Clients::default();
    let parts = &mut server.parts;
    parts.hold.clear();
    parts.late.clear();
    again::pause(&again::Pause {
        config: &parts.config,
        run_dir: parts.run_dir.as_fd(),
        data_dir: parts.data_dir.as_fd(),
        lock: parts.lock.as_fd(),
        control: parts.control.as_fd(),
        state: parts.state,
        cause,
    })?;
    parts.state.status = Status::Exited;
    parts.state.write(parts.run_dir.as_fd())
}

/// Writes how the container ended, once everybody has been answered.
fn note_end(server: &Server, record: &ExitRecord, again: bool) {
    let parts = &server.parts;
    let (config, log) = (&parts.config, &parts.config.events);
    let mut lines = String::new();
    if record.oom_killed {
        lines.push_str(&config.event("oom", &[]));
    }
    let spent = parts
        .state
        .finished_at
        .saturating_sub(parts.state.started_at);
    let (code, spent) = (record.code.to_string(), (spent / 1_000_000_000).to_string());
    let more = [
        ("execDuration", spent.as_str()),
        ("exitCode", code.as_str()),
    ];
    lines.push_str(&config.event("die", &more));
    let stopped = match server.ended_for {
        HealthAction::Stop => true,
        HealthAction::Restart => again,
        HealthAction::None | HealthAction::Kill => false,
    };
    if stopped {
        // As behind a stop, or in a restart, by hand.
        lines.push_str(&config.event("stop", &[]));
    }
    log.write(&lines);
}

/// Closing a netfilter socket is slow; it waits until everybody has been answered.
fn is_netlink(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(fd).is_ok_and(|d| d == AddressFamily::NETLINK)
}

/// Becomes the `finish` program; returns only without one, or when it cannot be started.
pub(crate) fn become_finish(argv: &[String], lock: BorrowedFd<'_>) -> Result<(), SupervisorError> {
    if argv.is_empty() {
        return Ok(());
    }
    let malformed = |_| SupervisorError::Malformed {
        what: "finish arguments",
        why: "a NUL byte".to_owned(),
    };
    let argv: Vec<CString> = argv
        .iter()
        .map(|a| CString::new(a.as_str()))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    let exe = open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| SupervisorError::file("open", "/proc/self/exe", e))?;
    let error = exec_in_place(exe.as_fd(), &argv, lock, FINISH_LOCK_FD);
    Err(SupervisorError::Kernel("start the finish program", error))
}

fn oom_kills(cgroup: &amphora_cgroup::Handle) -> u64 {
    let counted = cgroup
        .open()
        .ok()
        .flatten()
        .and_then(|c| c.oom_kills().ok());
    counted.unwrap_or(0)
}

/// How init ended; `None` when nobody can tell.
pub(crate) fn exit_of(init: &Init, pid: i32) -> Option<Exit> {
    if init.child {
        return pidfd::wait(init.pidfd.as_fd(), pidfd::Wait::Block)
            .ok()
            .flatten();
    }
    // Not our child: the pidfd tells once it is reaped (kernel 6.15), `/proc` while it is a zombie.
    let deadline = clock::monotonic() + REAP_WAIT_NS;
    loop {
        if let Ok(Some(exit)) = pidfd::exit_info(init.pidfd.as_fd()) {
            return Some(exit);
        }
        let zombie = proc_stat(pid).ok().flatten().filter(|s| s.dead);
        if let Some(exit) = zombie.and_then(|s| s.exit) {
            return Some(exit);
        }
        if clock::monotonic() >= deadline {
            return None;
        }
        // The pidfd hangs up when the process is reaped.
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        let _ = poll(
            &mut [PollFd::new(&init.pidfd, PollFlags::empty())],
            Some(&timeout),
        );
    }
}
