//! Limits of a container: checked in Docker's words, turned into resources. Pure, but for what the
//! host has of CPUs, memory nodes and devices.

use amphora_spec::runtime::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};
use rustix::fs::{FileType, major, minor, stat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::HostConfig;
use crate::{EngineError, Result};

/// Least memory of a container, in bytes.
const MIN_MEMORY: i64 = 6 << 20;
/// Billionths of one CPU.
const CPU: u64 = 1_000_000_000;

/// Limits on block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockLimits {
    /// Weight, 10 to 1000; 0 is not set.
    pub weight: u16,
    /// Weights of single devices.
    pub weight_device: Vec<DeviceRate>,
    /// Bytes read in a second.
    pub read_bps: Vec<DeviceRate>,
    /// Bytes written in a second.
    pub write_bps: Vec<DeviceRate>,
    /// Reads in a second.
    pub read_iops: Vec<DeviceRate>,
    /// Writes in a second.
    pub write_iops: Vec<DeviceRate>,
}

/// A number for one device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// Path of the device.
    pub path: String,
    /// Rate or weight.
    pub rate: u64,
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// Checks the limits that a container is created with.
pub(crate) fn check_create(host: &HostConfig) -> Result<()> {
    if host.memory.unwrap_or(0) == 0 && host.memory_swap.is_some_and(|swap| swap > 0) {
        return invalid(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    check(host)
}

/// Checks limits, whoever asks for them.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    check_memory(host)?;
    check_cpu(host)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    check_list("cpus", "CPUs", host.cpuset_cpus.as_deref(), "cpu")?;
    check_list("mems", "memory nodes", host.cpuset_mems.as_deref(), "node")?;
    let weight = host.block_io.weight;
    if weight != 0 && !(10..=1000).contains(&weight) {
        return invalid("Range of blkio weight is from 10 to 1000");
    }
    Ok(())
}

fn check_memory(host: &HostConfig) -> Result<()> {
    let memory = host.memory.unwrap_or(0);
    let swap = host.memory_swap.unwrap_or(0);
    let low = host.memory_reservation.unwrap_or(0);
    if memory > 0 && memory < MIN_MEMORY {
        return invalid("Minimum memory limit allowed is 6MB");
    }
    if memory > 0 && swap > 0 && swap < memory {
        return invalid("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if low > 0 && low < MIN_MEMORY {
        return invalid("Minimum memory reservation allowed is 6MB");
    }
    if memory > 0 && low > 0 && memory < low {
        return invalid(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    match host.memory_swappiness {
        Some(value) if !(0..=100).contains(&value) => invalid(format!(
            "invalid value: {value}. Valid memory swappiness range is 0-100"
        )),
        _ => Ok(()),
    }
}

fn check_cpu(host: &HostConfig) -> Result<()> {
    let period = host.cpu_period.unwrap_or(0);
    let quota = host.cpu_quota.unwrap_or(0);
    if let Some(nano) = host.nano_cpus {
        if period > 0 {
            return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set");
        }
        if quota > 0 {
            return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
        }
        let count = cpu_count();
        if nano > count.saturating_mul(CPU) {
            return invalid(format!(
                "Range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
            ));
        }
    }
    if period != 0 && !(1000..=1_000_000).contains(&period) {
        return invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if quota > 0 && quota < 1000 {
        return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    Ok(())
}

/// CPUs that the host has on.
fn cpu_count() -> u64 {
    let count = online("cpu").map_or(0, |list| list.len());
    u64::try_from(count.max(1)).unwrap_or(1)
}

/// Numbers of what is on: `cpu` or `node`.
fn online(kind: &str) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/sys/devices/system/{kind}/online")).ok()?;
    numbers(text.trim())
}

/// Parses a list such as `0-2,7`.
fn numbers(list: &str) -> Option<Vec<u32>> {
    /// Most CPUs or nodes that any kernel is built for.
    const HIGHEST: u32 = 8191;
    let mut out = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > HIGHEST {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

fn check_list(name: &str, nouns: &str, wanted: Option<&str>, kind: &str) -> Result<()> {
    let Some(wanted) = wanted.filter(|text| !text.is_empty()) else {
        return Ok(());
    };
    let Some(list) = numbers(wanted) else {
        return invalid(format!("Invalid value {wanted} for cpuset {name}"));
    };
    let path = format!("/sys/devices/system/{kind}/online");
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| "0".to_owned());
    let there = numbers(text.trim()).unwrap_or_default();
    if list.iter().all(|number| there.contains(number)) {
        return Ok(());
    }
    invalid(format!(
        "Requested {nouns} are not available - requested {wanted}, available: {}",
        text.trim()
    ))
}

/// What Docker shows and compares as `MemorySwap`: twice the memory unless something is said.
pub(crate) fn memory_swap(host: &HostConfig) -> i64 {
    host.memory_swap
        .or(host.memory.map(|m| m.saturating_mul(2)))
        .unwrap_or(0)
}

/// Turns the limits into resources; devices are left to the caller.
///
/// # Errors
/// A device of the host that is none.
pub(crate) fn resources(host: &HostConfig) -> Result<Resources> {
    let swap = memory_swap(host);
    let memory = Memory {
        limit: host.memory,
        reservation: host.memory_reservation,
        swap: (swap != 0).then_some(swap),
        swappiness: host.memory_swappiness.and_then(|v| u64::try_from(v).ok()),
        disable_oom_killer: host.oom_kill_disable.then_some(true),
        ..Memory::default()
    };
    let from_cpus = host.nano_cpus.map(|nano| {
        let micros = nano / 10_000;
        i64::try_from(micros.max(1000)).unwrap_or(i64::MAX)
    });
    let period = host.cpu_period.and_then(|v| u64::try_from(v).ok());
    let cpu = Cpu {
        shares: host.cpu_shares,
        quota: from_cpus.or(host.cpu_quota),
        period: from_cpus.map(|_| 100_000).or(period),
        cpus: host.cpuset_cpus.clone().unwrap_or_default(),
        mems: host.cpuset_mems.clone().unwrap_or_default(),
        ..Cpu::default()
    };
    let pids = host
        .pids_limit
        .filter(|n| *n > 0)
        .map(|limit| Pids { limit });
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids,
        block_io: block_io(&host.block_io)?,
        ..Resources::default()
    })
}

fn block_io(limits: &BlockLimits) -> Result<Option<BlockIo>> {
    if *limits == BlockLimits::default() {
        return Ok(None);
    }
    let rates = |list: &[DeviceRate]| {
        let rate = |device: &DeviceRate| {
            let (major, minor) = block_device(&device.path)?;
            let rate = device.rate;
            Ok(ThrottleDevice { major, minor, rate })
        };
        list.iter().map(rate).collect::<Result<Vec<_>>>()
    };
    let weights = rates(&limits.weight_device)?.into_iter();
    let weight = |d: ThrottleDevice| WeightDevice {
        major: d.major,
        minor: d.minor,
        weight: Some(u16::try_from(d.rate).unwrap_or(u16::MAX)),
        leaf_weight: None,
    };
    Ok(Some(BlockIo {
        weight: (limits.weight != 0).then_some(limits.weight),
        weight_device: weights.map(weight).collect(),
        throttle_read_bps_device: rates(&limits.read_bps)?,
        throttle_write_bps_device: rates(&limits.write_bps)?,
        throttle_read_iops_device: rates(&limits.read_iops)?,
        throttle_write_iops_device: rates(&limits.write_iops)?,
        ..BlockIo::default()
    }))
}

fn block_device(path: &str) -> Result<(u32, u32)> {
    let failed = |e| EngineError::file("look at device", path.as_ref(), e);
    let found = stat(path).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return invalid(format!("{path} is not a block device"));
    }
    Ok((major(found.st_rdev), minor(found.st_rdev)))
}

/// The part of `HostConfig` in `inspect` that limits make.
pub(crate) fn json(host: &HostConfig) -> Map<String, Value> {
    let rates = |list: &[DeviceRate]| -> Vec<Value> {
        list.iter()
            .map(|d| json!({ "Path": d.path, "Rate": d.rate }))
            .collect()
    };
    let io = &host.block_io;
    let weights: Vec<Value> = io
        .weight_device
        .iter()
        .map(|d| json!({ "Path": d.path, "Weight": d.rate }))
        .collect();
    let value = json!({
        "Memory": host.memory.unwrap_or(0),
        "MemorySwap": memory_swap(host),
        "MemoryReservation": host.memory_reservation.unwrap_or(0),
        "MemorySwappiness": host.memory_swappiness,
        "OomKillDisable": host.oom_kill_disable,
        "OomScoreAdj": host.oom_score_adj,
        "NanoCpus": host.nano_cpus.unwrap_or(0),
        "CpuShares": host.cpu_shares.unwrap_or(0),
        "CpuPeriod": host.cpu_period.unwrap_or(0),
        "CpuQuota": host.cpu_quota.unwrap_or(0),
        "CpusetCpus": host.cpuset_cpus.clone().unwrap_or_default(),
        "CpusetMems": host.cpuset_mems.clone().unwrap_or_default(),
        "PidsLimit": host.pids_limit,
        "BlkioWeight": io.weight,
        "BlkioWeightDevice": weights,
        "BlkioDeviceReadBps": rates(&io.read_bps),
        "BlkioDeviceWriteBps": rates(&io.write_bps),
        "BlkioDeviceReadIOps": rates(&io.read_iops),
        "BlkioDeviceWriteIOps": rates(&io.write_iops),
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(numbers("0-2,7"), Some(vec![0, 1, 2, 7]));
        for bad in ["", "a", "3-1", "1,", "-1", "0-999999"] {
            assert_eq!(numbers(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_are_refused_in_docker_s_words() {
        let refused = |host: HostConfig| check_create(&host).unwrap_err().to_string();
        let host = HostConfig::default;
        let text = refused(HostConfig {
            memory: Some(1 << 20),
            ..host()
        });
        assert_eq!(text, "Minimum memory limit allowed is 6MB");
        let text = refused(HostConfig {
            memory_swap: Some(1 << 30),
            ..host()
        });
        assert!(text.starts_with("You should always set the Memory limit"));
        let text = refused(HostConfig {
            nano_cpus: Some(CPU),
            cpu_period: Some(50_000),
            ..host()
        });
        assert!(text.starts_with("Conflicting options: Nano CPUs and CPU Period"));
        let text = refused(HostConfig {
            cpuset_cpus: Some("0-4000".to_owned()),
            ..host()
        });
        assert!(text.starts_with("Requested CPUs are not available - requested 0-4000"));
        assert!(check_create(&host()).is_ok());
    }

    #[test]
    fn nothing_asked_for_is_nothing_set() {
        assert_eq!(
            resources(&HostConfig::default()).unwrap(),
            Resources::default()
        );
    }
}
