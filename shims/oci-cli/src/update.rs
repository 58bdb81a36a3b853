//! `update`: other limits for a running container.

use std::io::Read;

use amphora_spec::runtime::{BlockIo, Cpu, Memory, Pids, Resources};

use crate::args::{Flag, Order, Parsed, parse};
use crate::error::{Result, RuncError};
use crate::state::{Container, Status};
use crate::{Code, Context, bundle, scope};

const FLAGS: &[Flag] = &[
    Flag::value("resources", Some('r')),
    Flag::value("blkio-weight", None),
    Flag::value("cpu-burst", None),
    Flag::value("cpu-idle", None),
    Flag::value("cpu-period", None),
    Flag::value("cpu-quota", None),
    Flag::value("cpu-rt-period", None),
    Flag::value("cpu-rt-runtime", None),
    Flag::value("cpu-share", None),
    Flag::value("cpu-shares", None),
    Flag::value("cpuset-cpus", None),
    Flag::value("cpuset-mems", None),
    Flag::value("kernel-memory", None),
    Flag::value("kernel-memory-tcp", None),
    Flag::value("l3-cache-schema", None),
    Flag::value("mem-bw-schema", None),
    Flag::value("memory", None),
    Flag::value("memory-reservation", None),
    Flag::value("memory-swap", None),
    Flag::value("pids-limit", None),
];
/// The longest list of limits that is read.
const BYTES_MAX: u64 = 1 << 20;

/// `update`.
pub(crate) fn update(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::Any)?;
    for flag in ["l3-cache-schema", "mem-bw-schema"] {
        if parsed.get(flag).is_some() {
            return Err(RuncError::unsupported(&format!("--{flag}")));
        }
    }
    let mut container = Container::hold(&context.root, parsed.container()?)?;
    let mut resources = match parsed.get("resources") {
        Some(path) => from_file(path)?,
        None => from_flags(&parsed)?,
    };
    // runc's word for "as it is"; none is -1.
    resources.pids = resources.pids.filter(|pids| pids.limit != 0);
    if container.status()? == Status::Stopped {
        return Err(RuncError::State("container not running".to_owned()));
    }
    let Some(mut cgroup) = container.cgroup()? else {
        return Err(RuncError::State("the container has no cgroup".to_owned()));
    };
    // systemd writes what it is told in its own measure; the exact values come after it.
    let mut before = container.config()?.linux.resources;
    bundle::allow_tunnels(&mut before);
    let told = scope::whole(&resources, &before);
    scope::update(&container, &told)?;
    let mut exact = resources.clone();
    exact.devices.clone_from(&told.devices);
    let changed = cgroup.update(&exact);
    let previous = changed.inspect_err(|_| scope::restore(&container, &told, &before))?;
    let noted = container
        .note_resources(&resources)
        .and_then(|()| container.note_cgroup(&cgroup));
    noted.map(|()| 0).inspect_err(|_| {
        scope::restore(&container, &told, &before);
        cgroup.restore(&previous);
    })
}

fn from_file(path: &str) -> Result<Resources> {
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin()
            .lock()
            .take(BYTES_MAX)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes))
    };
    read.map_err(RuncError::file(format!("failed to read {path}")))?;
    serde_json::from_slice(&bytes).map_err(|source| RuncError::Malformed {
        what: path.to_owned(),
        source,
    })
}

/// A number of bytes, with `k`, `m` or `g` behind it.
fn bytes(parsed: &Parsed, flag: &str) -> Result<Option<i64>> {
    let Some(text) = parsed.get(flag) else {
        return Ok(None);
    };
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => 64,
    };
    let value = digits.parse::<i64>().ok();
    let value = value.and_then(|value| value.checked_mul(1_i64.checked_shl(shift)?));
    value
        .map(Some)
        .ok_or_else(|| RuncError::usage(format!("invalid value \"{text}\" for flag --{flag}")))
}

fn from_flags(parsed: &Parsed) -> Result<Resources> {
    let text = |flag: &str| parsed.get(flag).unwrap_or_default().to_owned();
    let memory = Memory {
        limit: bytes(parsed, "memory")?,
        reservation: bytes(parsed, "memory-reservation")?,
        swap: bytes(parsed, "memory-swap")?,
        kernel: bytes(parsed, "kernel-memory")?,
        kernel_tcp: bytes(parsed, "kernel-memory-tcp")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: parsed.parse("cpu-share")?.or(parsed.parse("cpu-shares")?),
        quota: parsed.parse("cpu-quota")?,
        period: parsed.parse("cpu-period")?,
        burst: parsed.parse("cpu-burst")?,
        realtime_runtime: parsed.parse("cpu-rt-runtime")?,
        realtime_period: parsed.parse("cpu-rt-period")?,
        idle: parsed.parse("cpu-idle")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
    };
    let weight = parsed.parse("blkio-weight")?;
    let block_io = weight.map(|weight| BlockIo {
        weight: Some(weight),
        ..BlockIo::default()
    });
    let pids = parsed.parse("pids-limit")?.map(|limit| Pids { limit });
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids,
        block_io,
        ..Resources::default()
    })
}
