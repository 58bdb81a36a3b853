//! What running containers use: CPU, memory, network, disk, processes.

use amphora_cgroup::Cgroup;
use amphora_executor::ExecutorKind;
use amphora_spec::ContainerId;

use crate::container::{ContainerView, Status};
use crate::start::CGROUP_PARENT;
use crate::{Engine, EngineError, Result};

/// Ticks of `/proc/stat` a second, `USER_HZ`.
const TICKS: u64 = 100;

/// One look at a running container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time it used, in nanoseconds.
    pub cpu_ns: u64,
    /// CPU time the machine had, in nanoseconds, all CPUs together.
    pub system_ns: u64,
    /// CPUs of the machine.
    pub cpus: u64,
    /// Memory in use without what could be dropped at once, in bytes.
    pub memory: u64,
    /// Memory limit, or the machine's memory, in bytes.
    pub memory_limit: u64,
    /// Bytes received, all links but the loopback.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
    /// Tasks.
    pub pids: u64,
}

impl Engine {
    /// Looks at a running container; `None` when it does not run.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; a cgroup that cannot be read.
    pub fn usage(&self, id: &ContainerId) -> Result<Option<Usage>> {
        let view = self.view(id)?;
        let Some(pid) = running(&view) else {
            return Ok(None);
        };
        let Ok(cgroup) = Cgroup::open(CGROUP_PARENT, &id.hex()) else {
            // It ended between the two looks.
            return Ok(None);
        };
        let stats = cgroup.stats().map_err(EngineError::plain)?;
        let (received, sent) = traffic(pid);
        let machine = machine_memory();
        let used = stats.memory_bytes.unwrap_or(0);
        Ok(Some(Usage {
            cpu_ns: stats.cpu_usage_ns.unwrap_or(0),
            system_ns: system_ns(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory: used.saturating_sub(stats.memory_inactive_file_bytes.unwrap_or(0)),
            memory_limit: stats.memory_limit_bytes.map_or(machine, |l| l.min(machine)),
            received,
            sent,
            read: stats.io_read_bytes.unwrap_or(0),
            written: stats.io_written_bytes.unwrap_or(0),
            pids: stats.pids.unwrap_or(0),
        }))
    }

    /// Bytes of linear memory that the guest of a running Wasm container has; `None` for any other
    /// container. The kernel knows it: nothing in the guest's process counts anything.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`].
    pub fn linear_memory(&self, id: &ContainerId) -> Result<Option<u64>> {
        let view = self.view(id)?;
        let Some(pid) = running(&view).filter(|_| view.config.executor == ExecutorKind::Wasm)
        else {
            return Ok(None);
        };
        // Gone between the two looks, it has none.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        Ok(Some(linear(&maps)))
    }

    /// Lists the processes of a running container, in the host's numbers.
    ///
    /// # Errors
    /// [`EngineError::State`] when it does not run.
    pub fn processes(&self, id: &ContainerId) -> Result<Vec<i32>> {
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        if running(&view).is_none() {
            return Err(EngineError::State(format!("container {id} is not running")));
        }
        let mut pids = Cgroup::open(CGROUP_PARENT, &id.hex())
            .and_then(|c| c.pids())
            .map_err(EngineError::plain)?;
        pids.sort_unstable();
        Ok(pids)
    }
}

/// Sums up linear memories: what can be read and written between two stretches of address space
/// that are reserved and closed, of which the later one is no smaller than the guard behind every
/// linear memory.
fn linear(maps: &str) -> u64 {
    const GUARD: u64 = 32 << 20;
    let (mut total, mut open) = (0, None);
    let mut before = 0;
    for line in maps.lines() {
        let mut words = line.split(' ');
        let range = words.next().and_then(|range| range.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.and_then(|(a, b)| Some((hex(a)?, hex(b)?))) else {
            continue;
        };
        if start != before {
            open = None;
        }
        before = end;
        let size = end.saturating_sub(start);
        match words.next().unwrap_or_default() {
            "---p" => {
                total += open.filter(|_| size >= GUARD).unwrap_or(0);
                open = Some(0);
            }
            "rw-p" => open = open.map(|sum| sum + size),
            _ => open = None,
        }
    }
    total
}

fn running(view: &ContainerView) -> Option<i32> {
    view.state
        .as_ref()
        .filter(|_| view.status == Status::Running)
        .map(|s| s.init_pid)
}

/// Bytes received and sent in a process's network namespace, the loopback left out.
fn traffic(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(_, rest)| {
            let mut numbers = rest.split_whitespace().map(|n| n.parse().unwrap_or(0));
            let received: u64 = numbers.next().unwrap_or(0);
            (received, numbers.nth(7).unwrap_or(0))
        })
        .fold((0, 0), |(a, b), (c, d): (u64, u64)| (a + c, b + d))
}

/// The machine's memory in bytes.
pub(crate) fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn system_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(7)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    ticks * (1_000_000_000 / TICKS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn linear_memories_lie_between_closed_stretches() {
        let maps = "\
00400000-00500000 r-xp 00000000 00:01 1 /amphora
00500000-00600000 rw-p 00000000 00:00 0
7f0000000000-7f0002000000 ---p 00000000 00:00 0
7f0002000000-7f0002010000 rw-p 00000000 00:02 9 /memfd:wasm-memory-image (deleted)
7f0002010000-7f0002110000 rw-p 00000000 00:00 0
7f0002110000-7f0104000000 ---p 00000000 00:00 0
7f0104000000-7f0104040000 rw-p 00000000 00:00 0
7f0104040000-7f0206000000 ---p 00000000 00:00 0
7f0300000000-7f0300001000 ---p 00000000 00:00 0
7f0300001000-7f0300200000 rw-p 00000000 00:00 0
7f0300200000-7f0300201000 ---p 00000000 00:00 0
";
        assert_eq!(super::linear(maps), 0x10000 + 0x100000 + 0x40000);
        assert_eq!(super::linear(""), 0);
    }
}
