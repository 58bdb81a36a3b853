//! Everything that the kernel counts, for those who show it as it is.

use std::collections::BTreeMap;

use crate::cgroup::Cgroup;
use crate::dir::{Dir, keyed};
use crate::{CgroupError, Version};

/// Figures in the kernel's own measure; zero or empty where the controller is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail {
    /// CPU time on each processor, in nanoseconds (v1).
    pub percpu_ns: Vec<u64>,
    /// CPU time in kernel mode on each processor (v1).
    pub percpu_system_ns: Vec<u64>,
    /// CPU time in user mode on each processor (v1).
    pub percpu_user_ns: Vec<u64>,
    /// The processors and memory nodes, and how they are used (v1).
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Usage,
    /// Memory and swap together.
    pub memory_swap: Usage,
    /// Kernel memory (v1).
    pub kernel: Usage,
    /// Buffers of TCP connections (v1).
    pub kernel_tcp: Usage,
    /// Page cache.
    pub cache_bytes: u64,
    /// `memory.stat`.
    pub memory_stat: BTreeMap<String, u64>,
    /// Block devices, by the last part of the v1 file's name, for example `io_service_bytes`.
    pub block_io: BTreeMap<&'static str, Vec<BlockCount>>,
    /// Huge pages, by size.
    pub huge_pages: BTreeMap<String, Usage>,
}

/// One counted and limited thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Its limit; the largest number means none.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// Most ever in use.
    pub max: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Files of a v1 cpuset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet {
    /// Processors.
    pub cpus: Vec<u16>,
    /// Memory nodes.
    pub mems: Vec<u16>,
    /// The files with a single number, by name.
    pub numbers: BTreeMap<&'static str, i64>,
}

/// A count of one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockCount {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// For example `Read`; empty where all count together.
    pub operation: String,
    /// Number of bytes, operations or nanoseconds.
    pub value: u64,
}

/// Names of the numbers of a [`CpuSet`], as v1 has them.
pub const CPUSET_NUMBERS: [&str; 9] = [
    "cpu_exclusive",
    "mem_exclusive",
    "mem_hardwall",
    "memory_migrate",
    "memory_pressure",
    "memory_spread_page",
    "memory_spread_slab",
    "sched_load_balance",
    "sched_relax_domain_level",
];
/// Where the largest processor or node number is.
const CPU_MAX: u16 = 8191;
/// What block devices count, by the schedulers from which each is taken, the most telling first.
const BLOCK_COUNTS: [&str; 8] = [
    "io_service_bytes",
    "io_serviced",
    "io_queued",
    "io_service_time",
    "io_wait_time",
    "io_merged",
    "time",
    "sectors",
];
const BLOCK_SOURCES: [&str; 3] = ["blkio.bfq.", "blkio.", "blkio.throttle."];

pub(crate) fn read(cgroup: &Cgroup, pid: i32) -> Result<Detail, CgroupError> {
    match cgroup.version() {
        Version::V1 => read_v1(cgroup, pid),
        Version::V2 => read_v2(cgroup.first()?),
    }
}

fn numbers(text: &str) -> Vec<u64> {
    let parsed = text.split_whitespace().map(str::parse);
    parsed.filter_map(Result::ok).collect()
}

/// The numbers of a list such as `0-2,5`.
fn list(text: &str) -> Vec<u16> {
    let mut found = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            found.extend(first..=last.min(CPU_MAX));
        }
    }
    found
}

fn flat(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn read_v1(cgroup: &Cgroup, pid: i32) -> Result<Detail, CgroupError> {
    let mut found = Detail::default();
    if let Some(dir) = cgroup.dir_of("cpuacct") {
        let percpu = dir.read_optional("cpuacct.usage_percpu")?;
        found.percpu_ns = numbers(&percpu.unwrap_or_default());
        // A head line, then number, user, system.
        let all = dir.read_optional("cpuacct.usage_all")?.unwrap_or_default();
        for line in all.lines().skip(1) {
            if let [_, user, system] = numbers(line)[..] {
                found.percpu_user_ns.push(user);
                found.percpu_system_ns.push(system);
            }
        }
    }
    let above;
    let cpuset = match cgroup.dir_of("cpuset") {
        Some(dir) => Some(dir),
        None => {
            // It has none of its own: that of the cgroup its process is in holds.
            above = cgroup.hierarchy_dir("cpuset", pid);
            above.as_ref()
        }
    };
    if let Some(dir) = cpuset {
        found.cpuset = read_cpuset(dir)?;
    }
    if let Some(dir) = cgroup.dir_of("memory") {
        let stat = dir.read_optional("memory.stat")?.unwrap_or_default();
        found.memory_stat = flat(&stat);
        found.cache_bytes = keyed(&stat, "cache").unwrap_or(0);
        found.memory = usage_v1(dir, "memory")?;
        found.memory_swap = usage_v1(dir, "memory.memsw")?;
        found.kernel = usage_v1(dir, "memory.kmem")?;
        found.kernel_tcp = usage_v1(dir, "memory.kmem.tcp")?;
    }
    if let Some(dir) = cgroup.dir_of("blkio") {
        found.block_io = block_v1(dir)?;
    }
    if let Some(dir) = cgroup.dir_of("hugetlb") {
        for size in page_sizes(dir)? {
            let usage = usage_v1(dir, &format!("hugetlb.{size}"))?;
            found.huge_pages.insert(size, usage);
        }
    }
    Ok(found)
}

fn usage_v1(dir: &Dir, prefix: &str) -> Result<Usage, CgroupError> {
    let number = |name: &str| {
        let file = format!("{prefix}.{name}");
        dir.read_number(&file)
            .map(std::option::Option::unwrap_or_default)
    };
    Ok(Usage {
        limit: number("limit_in_bytes")?,
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes")?,
        failures: number("failcnt")?,
    })
}

fn read_cpuset(dir: &Dir) -> Result<CpuSet, CgroupError> {
    let mut found = CpuSet {
        cpus: list(&dir.read_optional("cpuset.cpus")?.unwrap_or_default()),
        mems: list(&dir.read_optional("cpuset.mems")?.unwrap_or_default()),
        numbers: BTreeMap::new(),
    };
    for name in CPUSET_NUMBERS {
        let text = dir.read_optional(&format!("cpuset.{name}"))?;
        if let Some(number) = text.and_then(|text| text.trim().parse().ok()) {
            found.numbers.insert(name, number);
        }
    }
    Ok(found)
}

fn block_v1(dir: &Dir) -> Result<BTreeMap<&'static str, Vec<BlockCount>>, CgroupError> {
    let mut found = BTreeMap::new();
    for source in BLOCK_SOURCES {
        for name in BLOCK_COUNTS {
            let text = dir.read_optional(&format!("{source}{name}_recursive"))?;
            let counts: Vec<BlockCount> = text
                .iter()
                .flat_map(|t| t.lines().filter_map(count))
                .collect();
            if !counts.is_empty() {
                found.insert(name, counts);
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 Read 10`, or without the operation.
fn count(line: &str) -> Option<BlockCount> {
    let mut words = line.split_whitespace();
    let (major, minor) = device(words.next()?)?;
    let (operation, value) = match (words.next()?, words.next()) {
        (operation, Some(value)) => (operation, value),
        (value, None) => ("", value),
    };
    Some(BlockCount {
        major,
        minor,
        operation: operation.to_owned(),
        value: value.parse().ok()?,
    })
}

fn page_sizes(dir: &Dir) -> Result<Vec<String>, CgroupError> {
    let failed = |source| dir.error("list", "", source);
    let names = dir.files().map_err(failed)?;
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?;
        let size = size
            .strip_suffix(".limit_in_bytes")
            .or_else(|| size.strip_suffix(".max"))?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    Ok(names.into_iter().filter_map(size).collect())
}

fn read_v2(dir: &Dir) -> Result<Detail, CgroupError> {
    let number = |file: &str| -> Result<u64, CgroupError> {
        let text = dir.read_optional(file)?.unwrap_or_default();
        Ok(match text.trim() {
            "max" => u64::MAX,
            text => text.parse().unwrap_or(0),
        })
    };
    let stat = dir.read_optional("memory.stat")?.unwrap_or_default();
    let events = dir.read_optional("memory.events")?.unwrap_or_default();
    let memory = Usage {
        limit: number("memory.max")?,
        usage: number("memory.current")?,
        max: number("memory.peak")?,
        failures: keyed(&events, "max").unwrap_or(0),
    };
    // As v1 has it, with memory: the kernel counts swap alone.
    let swap_limit = number("memory.swap.max")?;
    let memory_swap = Usage {
        limit: swap_limit.saturating_add(memory.limit),
        usage: number("memory.swap.current")?.saturating_add(memory.usage),
        ..Usage::default()
    };
    let mut found = Detail {
        memory,
        memory_swap,
        cache_bytes: keyed(&stat, "file").unwrap_or(0),
        memory_stat: flat(&stat),
        block_io: block_v2(&dir.read_optional("io.stat")?.unwrap_or_default()),
        ..Detail::default()
    };
    for size in page_sizes(dir)? {
        let events = dir.read_optional(&format!("hugetlb.{size}.events"))?;
        let usage = Usage {
            limit: number(&format!("hugetlb.{size}.max"))?,
            usage: number(&format!("hugetlb.{size}.current"))?,
            max: 0,
            failures: keyed(&events.unwrap_or_default(), "max").unwrap_or(0),
        };
        found.huge_pages.insert(size, usage);
    }
    Ok(found)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …` in v1's words.
fn block_v2(text: &str) -> BTreeMap<&'static str, Vec<BlockCount>> {
    let mut found: BTreeMap<&'static str, Vec<BlockCount>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (name, operation) = match key {
                "rbytes" => ("io_service_bytes", "Read"),
                "wbytes" => ("io_service_bytes", "Write"),
                "rios" => ("io_serviced", "Read"),
                "wios" => ("io_serviced", "Write"),
                _ => continue,
            };
            found.entry(name).or_default().push(BlockCount {
                major,
                minor,
                operation: operation.to_owned(),
                value: value.parse().unwrap_or(0),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_spelt_out() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list("\n"), Vec::<u16>::new());
        assert_eq!(list("3\n"), [3]);
        assert_eq!(list("9000-60000").len(), 0, "bounded");
    }

    #[test]
    fn block_counts_of_both_versions_are_told_in_the_same_words() {
        let lines = |counts: &[BlockCount]| {
            let line =
                |c: &BlockCount| format!("{}:{} {} {}", c.major, c.minor, c.operation, c.value);
            counts.iter().map(line).collect::<Vec<_>>()
        };
        let v2 = block_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        assert_eq!(
            lines(&v2["io_service_bytes"]),
            ["8:0 Read 1", "8:0 Write 2"]
        );
        assert_eq!(lines(&v2["io_serviced"]), ["8:0 Read 3", "8:0 Write 4"]);
        let v1: Vec<BlockCount> = "8:0 Read 1\n8:0 7\nTotal 8\n"
            .lines()
            .filter_map(count)
            .collect();
        assert_eq!(lines(&v1), ["8:0 Read 1", "8:0  7"]);
    }
}
