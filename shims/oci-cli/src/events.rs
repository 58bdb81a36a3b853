//! `events`: what a container uses.

use std::time::Duration;

use amphora_cgroup::Stats;
use serde_json::{Value, json};

use crate::args::{Flag, Order, parse};
use crate::error::RuncError;
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
    loop {
        if let Some(cgroup) = container.cgroup()? {
            let line = json!({
                "type": "stats",
                "id": container.record.id,
                "data": data(&cgroup.stats()?),
            });
            print(&format!("{line}\n"))?;
        }
        if parsed.on("stats") {
            return Ok(0);
        }
        std::thread::sleep(interval);
        if container.status()? == Status::Stopped {
            return Ok(0);
        }
    }
}

/// The figures, where runc has them.
fn data(stats: &Stats) -> Value {
    let number = |value: Option<u64>| value.unwrap_or(0);
    json!({
        "cpu": {
            "usage": {
                "total": number(stats.cpu_usage_ns),
                "kernel": number(stats.cpu_system_ns),
                "user": number(stats.cpu_user_ns),
            },
            "throttling": {
                "periods": number(stats.cpu_periods),
                "throttledPeriods": number(stats.cpu_throttled_periods),
                "throttledTime": number(stats.cpu_throttled_ns),
            },
        },
        "memory": {
            "usage": {
                "limit": stats.memory_limit_bytes.unwrap_or(u64::MAX),
                "usage": number(stats.memory_bytes),
                "max": number(stats.memory_peak_bytes),
                "failcnt": 0,
            },
            "raw": {"inactive_file": number(stats.memory_inactive_file_bytes)},
        },
        "pids": {
            "current": number(stats.pids),
            "limit": number(stats.pids_limit),
        },
        "blkio": {
            "ioServiceBytesRecursive": [
                {"op": "Read", "value": number(stats.io_read_bytes)},
                {"op": "Write", "value": number(stats.io_written_bytes)},
            ],
        },
    })
}
