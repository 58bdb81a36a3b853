//! What a cgroup uses.

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::dir::{Dir, keyed};
use crate::{CgroupError, Version};

/// From this on, v1 means "no limit": it rounds its maximum down to a page.
const V1_UNLIMITED: u64 = 1 << 62;
/// `USER_HZ`, the unit of `cpuacct.stat`: the same on every architecture we build for.
const NS_PER_TICK: u64 = 10_000_000;

/// Usage; `None` where the controller is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Memory in use, page cache included.
    pub memory_bytes: Option<u64>,
    /// Most memory ever in use.
    pub memory_peak_bytes: Option<u64>,
    /// Page cache that could be dropped at once; Docker subtracts it from what it shows.
    pub memory_inactive_file_bytes: Option<u64>,
    /// Memory limit; `None` without one.
    pub memory_limit_bytes: Option<u64>,
    /// CPU time, in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// CPU time in user mode.
    pub cpu_user_ns: Option<u64>,
    /// CPU time in kernel mode.
    pub cpu_system_ns: Option<u64>,
    /// Periods under a quota.
    pub cpu_periods: Option<u64>,
    /// Periods in which it was held back.
    pub cpu_throttled_periods: Option<u64>,
    /// Time it was held back.
    pub cpu_throttled_ns: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// Limit of tasks; `None` without one.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_written_bytes: Option<u64>,
    /// Processes killed because memory ran out.
    pub oom_kills: u64,
}

pub(crate) fn read(cgroup: &Cgroup) -> Result<Stats, CgroupError> {
    let mut stats = match cgroup.version() {
        Version::V1 => read_v1(cgroup)?,
        Version::V2 => read_v2(cgroup)?,
    };
    if let Some(dir) = cgroup.dir_of("pids") {
        stats.pids = dir.read_number("pids.current")?;
        stats.pids_limit = dir.read_number("pids.max")?;
    }
    stats.oom_kills = oom_kills(cgroup)?;
    Ok(stats)
}

/// Sums what v2 writes as `8:0 rbytes=1 wbytes=2 …` and v1 as `8:0 Read 1`, a line a device.
fn io_bytes(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for word in &words {
            match word.split_once('=') {
                Some(("rbytes", n)) => read += n.parse().unwrap_or(0),
                Some(("wbytes", n)) => written += n.parse().unwrap_or(0),
                _ => {}
            }
        }
        if let [_, what, n] = words.as_slice() {
            match *what {
                "Read" => read += n.parse().unwrap_or(0),
                "Write" => written += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    (read, written)
}

pub(crate) fn oom_kills(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    let Some(dir) = cgroup.dir_of("memory") else {
        return Ok(0);
    };
    Ok(oom_kills_in(dir, cgroup.version())?.unwrap_or(0))
}

/// `None` when it is gone or does not count.
pub(crate) fn oom_kills_in(dir: &Dir, version: Version) -> Result<Option<u64>, CgroupError> {
    let file = match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    let text = dir.read_optional(file)?;
    Ok(text.and_then(|text| keyed(&text, "oom_kill")))
}

fn read_v2(cgroup: &Cgroup) -> Result<Stats, CgroupError> {
    let dir = cgroup.first()?;
    let memory = dir.read_optional("memory.stat")?.unwrap_or_default();
    let cpu = dir.read_optional("cpu.stat")?.unwrap_or_default();
    let io = dir.read_optional("io.stat")?.as_deref().map(io_bytes);
    let microseconds = |key| keyed(&cpu, key).map(|us| us.saturating_mul(1000));
    Ok(Stats {
        memory_bytes: dir.read_number("memory.current")?,
        memory_peak_bytes: dir.read_number("memory.peak")?,
        memory_inactive_file_bytes: keyed(&memory, "inactive_file"),
        memory_limit_bytes: dir.read_number("memory.max")?,
        cpu_usage_ns: microseconds("usage_usec"),
        cpu_user_ns: microseconds("user_usec"),
        cpu_system_ns: microseconds("system_usec"),
        cpu_periods: keyed(&cpu, "nr_periods"),
        cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
        cpu_throttled_ns: microseconds("throttled_usec"),
        io_read_bytes: io.map(|io| io.0),
        io_written_bytes: io.map(|io| io.1),
        ..Stats::default()
    })
}

fn read_v1(cgroup: &Cgroup) -> Result<Stats, CgroupError> {
    let mut stats = Stats::default();
    if let Some(dir) = cgroup.dir_of("memory") {
        let memory = dir.read_optional("memory.stat")?.unwrap_or_default();
        let limit = dir.read_number("memory.limit_in_bytes")?;
        stats.memory_bytes = dir.read_number("memory.usage_in_bytes")?;
        stats.memory_peak_bytes = dir.read_number("memory.max_usage_in_bytes")?;
        stats.memory_inactive_file_bytes = keyed(&memory, "total_inactive_file");
        stats.memory_limit_bytes = limit.filter(|limit| *limit < V1_UNLIMITED);
    }
    if let Some(dir) = cgroup.dir_of("cpuacct") {
        let times = dir.read_optional("cpuacct.stat")?.unwrap_or_default();
        let ticks = |key| keyed(&times, key).map(|ticks| ticks.saturating_mul(NS_PER_TICK));
        stats.cpu_usage_ns = dir.read_number("cpuacct.usage")?;
        stats.cpu_user_ns = ticks("user");
        stats.cpu_system_ns = ticks("system");
    }
    if let Some(dir) = cgroup.dir_of("blkio") {
        let io = dir.read_optional("blkio.throttle.io_service_bytes")?;
        let io = io.as_deref().map(io_bytes);
        stats.io_read_bytes = io.map(|io| io.0);
        stats.io_written_bytes = io.map(|io| io.1);
    }
    if let Some(dir) = cgroup.dir_of("cpu") {
        let cpu = dir.read_optional("cpu.stat")?.unwrap_or_default();
        stats.cpu_periods = keyed(&cpu, "nr_periods");
        stats.cpu_throttled_periods = keyed(&cpu, "nr_throttled");
        stats.cpu_throttled_ns = keyed(&cpu, "throttled_time");
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    #[test]
    fn block_bytes_of_both_versions() {
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=2 rios=1 wios=2\n";
        assert_eq!(super::io_bytes(v2), (11, 22));
        let v1 = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n";
        assert_eq!(super::io_bytes(v1), (10, 20));
    }
}
