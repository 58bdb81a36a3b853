//! `events`: what a container uses, and that its memory ran out.

use std::time::{Duration, Instant};

use amphora_cgroup::{BlockCount, Cgroup, CpuSet, Detail, OomWatch, Stats, Usage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use crate::args::{Flag, Order, parse};
use crate::error::{Result, RuncError};
use crate::list::print;
use crate::state::{Container, Status};
use crate::{Code, Context};

const FLAGS: &[Flag] = &[Flag::value("interval", None), Flag::switch("stats", None)];
const INTERVAL: Duration = Duration::from_secs(5);

/// `events`: one line with `--stats`, else one every interval until the container ends.
pub(crate) fn events(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::Any)?;
    let container = Container::find(&context.root, parsed.container()?)?;
    let interval = match parsed.get("interval") {
        None => INTERVAL,
        Some(text) => amphora_spec::duration::parse(text)
            .and_then(|nanos| u64::try_from(nanos).ok())
            .filter(|nanos| *nanos > 0)
            .map(Duration::from_nanos)
            .ok_or_else(|| {
                RuncError::usage(format!("invalid value \"{text}\" for flag --interval"))
            })?,
    };
    if container.status()? == Status::Stopped {
        return Err(RuncError::State(format!(
            "container with id {} is not running",
            container.record.id
        )));
    }
    if container.has_no_cgroup() {
        return Err(RuncError::State("the container has no cgroup".to_owned()));
    }
    if parsed.on("stats") {
        return tell_stats(&container).map(|()| 0);
    }
    follow(&container, interval).map(|()| 0)
}

/// Tells until the container's process has ended.
fn follow(container: &Container, interval: Duration) -> Result {
    let (Some(process), Some(cgroup)) = (container.process()?, container.cgroup()?) else {
        return Ok(());
    };
    let mut oom = cgroup.oom_watch()?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        fds.extend(oom.as_ref().map(|oom| PollFd::new(oom, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(RuncError::file("failed to wait for events")(errno)),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (ended, news) = (ready(0), ready(1));
        if news || ended {
            tell_oom(container, oom.as_mut())?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            tell_stats(container)?;
            next = Instant::now() + interval;
        }
    }
}

fn tell_oom(container: &Container, oom: Option<&mut OomWatch>) -> Result {
    if let Some(oom) = oom
        && oom.ran_out()?
    {
        let line = json!({"type": "oom", "id": container.record.id});
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

fn tell_stats(container: &Container) -> Result {
    let Some(cgroup) = container.cgroup()? else {
        return Ok(());
    };
    let line = json!({
        "type": "stats",
        "id": container.record.id,
        "data": data(&cgroup, container.record.pid)?,
    });
    print(&format!("{line}\n")).map(|_| ())
}

/// The figures, as runc has them; a zero stands only where runc has it.
fn data(cgroup: &Cgroup, pid: i32) -> Result<Value> {
    let stats = cgroup.stats()?;
    let detail = cgroup.detail(pid)?;
    let mut pids = Map::new();
    number(&mut pids, "current", stats.pids.unwrap_or(0));
    number(&mut pids, "limit", stats.pids_limit.unwrap_or(0));
    let huge = |(size, usage): (&String, &Usage)| {
        let mut entry = Map::new();
        number(&mut entry, "usage", usage.usage);
        number(&mut entry, "max", usage.max);
        entry.insert("failcnt".to_owned(), usage.failures.into());
        (size.clone(), Value::Object(entry))
    };
    let huge: Map<String, Value> = detail.huge_pages.iter().map(huge).collect();
    Ok(json!({
        "cpu": cpu(&stats, &detail),
        "cpuset": cpuset(&detail.cpuset),
        "memory": memory(&detail),
        "pids": pids,
        "blkio": block_io(&detail),
        "hugetlb": huge,
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}

fn number(out: &mut Map<String, Value>, key: &str, value: u64) {
    if value != 0 {
        out.insert(key.to_owned(), value.into());
    }
}

fn cpu(stats: &Stats, detail: &Detail) -> Value {
    let mut usage = Map::new();
    number(&mut usage, "total", stats.cpu_usage_ns.unwrap_or(0));
    let each = [
        ("percpu", &detail.percpu_ns),
        ("percpu_kernel", &detail.percpu_system_ns),
        ("percpu_user", &detail.percpu_user_ns),
    ];
    for (key, values) in each {
        if !values.is_empty() {
            usage.insert(key.to_owned(), json!(values));
        }
    }
    usage.insert("kernel".into(), stats.cpu_system_ns.unwrap_or(0).into());
    usage.insert("user".into(), stats.cpu_user_ns.unwrap_or(0).into());
    let mut held_back = Map::new();
    let figures = [
        ("periods", stats.cpu_periods),
        ("throttledPeriods", stats.cpu_throttled_periods),
        ("throttledTime", stats.cpu_throttled_ns),
    ];
    for (key, value) in figures {
        number(&mut held_back, key, value.unwrap_or(0));
    }
    json!({"usage": usage, "throttling": held_back})
}

fn cpuset(set: &CpuSet) -> Value {
    let mut out = Map::new();
    for (key, values) in [("cpus", &set.cpus), ("mems", &set.mems)] {
        if !values.is_empty() {
            out.insert(key.to_owned(), json!(values));
        }
    }
    for key in amphora_cgroup::CPUSET_NUMBERS {
        let value = set.numbers.get(key).copied().unwrap_or(0);
        out.insert(key.to_owned(), value.into());
    }
    Value::Object(out)
}

fn memory(detail: &Detail) -> Value {
    let entry = |usage: &Usage| {
        let mut out = Map::new();
        out.insert("limit".to_owned(), usage.limit.into());
        number(&mut out, "usage", usage.usage);
        number(&mut out, "max", usage.max);
        out.insert("failcnt".to_owned(), usage.failures.into());
        out
    };
    let mut out = Map::new();
    number(&mut out, "cache", detail.cache_bytes);
    let entries = [
        ("usage", &detail.memory),
        ("swap", &detail.memory_swap),
        ("kernel", &detail.kernel),
        ("kernelTCP", &detail.kernel_tcp),
    ];
    for (key, usage) in entries {
        out.insert(key.to_owned(), entry(usage).into());
    }
    if !detail.memory_stat.is_empty() {
        out.insert("raw".to_owned(), json!(detail.memory_stat));
    }
    Value::Object(out)
}

fn block_io(detail: &Detail) -> Value {
    const KEYS: [(&str, &str); 8] = [
        ("io_service_bytes", "ioServiceBytesRecursive"),
        ("io_serviced", "ioServicedRecursive"),
        ("io_queued", "ioQueueRecursive"),
        ("io_service_time", "ioServiceTimeRecursive"),
        ("io_wait_time", "ioWaitTimeRecursive"),
        ("io_merged", "ioMergedRecursive"),
        ("time", "ioTimeRecursive"),
        ("sectors", "sectorsRecursive"),
    ];
    let entry = |count: &BlockCount| {
        let mut out = Map::new();
        number(&mut out, "major", count.major);
        number(&mut out, "minor", count.minor);
        if !count.operation.is_empty() {
            out.insert("op".to_owned(), count.operation.clone().into());
        }
        number(&mut out, "value", count.value);
        Value::Object(out)
    };
    let mut out = Map::new();
    for (name, key) in KEYS {
        if let Some(counts) = detail.block_io.get(name) {
            let entries: Vec<Value> = counts.iter().map(entry).collect();
            out.insert(key.to_owned(), entries.into());
        }
    }
    Value::Object(out)
}
