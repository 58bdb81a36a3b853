//! Killing everything in a cgroup, and listing it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::CgroupError;
use crate::cgroup::wait_until;
use crate::dir::{Dir, keyed};

/// Processes handled at a time, so that their descriptors stay few.
const BATCH: usize = 128;
/// Most rounds of moving processes that keep forking.
const MOVE_ROUNDS: usize = 100;
/// Deepest tree of cgroups looked into.
const DEPTH_MAX: usize = 32;

/// Processes in a cgroup and below it.
pub(crate) fn pids(dir: &Dir) -> Result<Vec<i32>, CgroupError> {
    let mut found = Vec::new();
    collect(dir, 0, &mut found)?;
    Ok(found)
}

fn collect(dir: &Dir, depth: usize, found: &mut Vec<i32>) -> Result<(), CgroupError> {
    let Some(text) = dir.read_optional("cgroup.procs")? else {
        return Ok(());
    };
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth < DEPTH_MAX {
        for below in dir.subdirs().unwrap_or_default() {
            if let Ok(below) = dir.child(&below) {
                collect(&below, depth + 1, found)?;
            }
        }
    }
    Ok(())
}

/// `cgroup.kill` (kernel 5.14) takes the whole tree at once, forks included.
pub(crate) fn kill_v2(dir: &Dir, deadline: Instant) -> Result<(), CgroupError> {
    match dir.write("cgroup.kill", "1") {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(dir.error("write", "cgroup.kill", source)),
    }
    let empty = wait_until(deadline, || {
        let events = dir.read_optional("cgroup.events")?;
        Ok(events.is_none_or(|events| keyed(&events, "populated") != Some(1)))
    })?;
    if empty { Ok(()) } else { Err(timeout(dir)) }
}

/// Kills in rounds until nothing is left. `thaw` is called after every round: a frozen process
/// dies when it runs again.
pub(crate) fn kill_v1(
    dir: &Dir,
    deadline: Instant,
    thaw: impl Fn() -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let empty = wait_until(deadline, || {
        let mut left = pids(dir)?;
        while !left.is_empty() {
            let rest = left.split_off(left.len().min(BATCH));
            let held: Vec<(i32, OwnedFd)> = left.iter().filter_map(|pid| hold(*pid)).collect();
            // A number may have passed to another process before it was held. One that is still
            // listed after that is ours, or dead and cannot be signalled.
            let still = pids(dir)?;
            let ours: Vec<OwnedFd> = held
                .into_iter()
                .filter_map(|(pid, fd)| still.contains(&pid).then_some(fd))
                .collect();
            for process in &ours {
                // Exited meanwhile: what was wanted.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            if rest.is_empty() {
                thaw()?;
                wait_exit(&ours, deadline);
            }
            left = rest;
        }
        Ok(pids(dir)?.is_empty())
    })?;
    thaw()?;
    if empty { Ok(()) } else { Err(timeout(dir)) }
}

/// Sends a signal to every process of the tree that is there now.
pub(crate) fn signal(dir: &Dir, number: i32) -> Result<(), CgroupError> {
    for batch in pids(dir)?.chunks(BATCH) {
        let held: Vec<(i32, OwnedFd)> = batch.iter().filter_map(|pid| hold(*pid)).collect();
        // As in `kill_v1`: held first, and still listed.
        let still = pids(dir)?;
        for (_, process) in held.iter().filter(|(pid, _)| still.contains(pid)) {
            // It may have ended by itself.
            let _ = amphora_sys::pidfd::signal(process.as_fd(), number);
        }
    }
    Ok(())
}

fn hold(pid: i32) -> Option<(i32, OwnedFd)> {
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    Some((pid, fd))
}

/// Waits until all have exited. Whether they have is found by listing again.
fn wait_exit(processes: &[OwnedFd], deadline: Instant) {
    for process in processes {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return;
        };
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&timeout)), Ok(1)) {
            return;
        }
    }
}

/// Moves every process of one v1 cgroup into another hierarchy's.
pub(crate) fn move_all(from: &Dir, to: &Dir) -> Result<(), CgroupError> {
    let mut moved: Vec<i32> = Vec::new();
    for _ in 0..MOVE_ROUNDS {
        let mut fresh = pids(from)?;
        fresh.retain(|pid| !moved.contains(pid));
        if fresh.is_empty() {
            return Ok(());
        }
        for pid in fresh {
            match to.write("cgroup.procs", &pid.to_string()) {
                Ok(()) => moved.push(pid),
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                Err(source) => return Err(to.error("move processes to", "", source)),
            }
        }
    }
    Err(CgroupError::Timeout {
        action: "move processes to",
        path: to.path.clone(),
    })
}

fn timeout(dir: &Dir) -> CgroupError {
    CgroupError::Timeout {
        action: "kill the processes of",
        path: dir.path.clone(),
    }
}
