//! Limits of processor time. Pure.

use amphora_spec::runtime::Cpu;

use crate::CgroupError;
use crate::settings::{Absent, Present, Setting, add, given, last_absent, refuse_on_v2};

const SHARES: &str = "linux.resources.cpu.shares";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const BURST: &str = "linux.resources.cpu.burst";
const IDLE: &str = "linux.resources.cpu.idle";

fn positive(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value != 0)
}

pub(crate) fn v1(out: &mut Vec<Setting>, cpu: &Cpu) {
    if let Some(shares) = positive(cpu.shares) {
        add(out, "cpu", "cpu.shares", shares.to_string(), SHARES);
    }
    if let Some(period) = positive(cpu.period) {
        add(out, "cpu", "cpu.cfs_period_us", period.to_string(), PERIOD);
    }
    if let Some(quota) = given(cpu.quota) {
        let value = quota.max(-1).to_string();
        add(out, "cpu", "cpu.cfs_quota_us", value, QUOTA);
    }
    if let Some(burst) = cpu.burst {
        add(out, "cpu", "cpu.cfs_burst_us", burst.to_string(), BURST);
        none_is_none(out, burst);
    }
    if let Some(period) = positive(cpu.realtime_period) {
        let field = "linux.resources.cpu.realtimePeriod";
        add(out, "cpu", "cpu.rt_period_us", period.to_string(), field);
    }
    if let Some(runtime) = given(cpu.realtime_runtime) {
        let field = "linux.resources.cpu.realtimeRuntime";
        add(out, "cpu", "cpu.rt_runtime_us", runtime.to_string(), field);
    }
    idle(out, cpu);
    cpuset(out, cpu);
}

pub(crate) fn v2(
    out: &mut Vec<Setting>,
    cpu: &Cpu,
    present: Option<Present<'_>>,
) -> Result<(), CgroupError> {
    let absent = [
        ("realtimePeriod", positive(cpu.realtime_period).is_some()),
        ("realtimeRuntime", given(cpu.realtime_runtime).is_some()),
    ];
    refuse_on_v2("cpu", &absent)?;
    if let Some(shares) = positive(cpu.shares) {
        let weight = weight_from_shares(shares).to_string();
        add(out, "cpu", "cpu.weight", weight, SHARES);
    }
    let quota = given(cpu.quota).map(|quota| match quota {
        ..0 => "max".to_owned(),
        _ => quota.to_string(),
    });
    let (value, field) = match (quota, positive(cpu.period)) {
        (None, None) => (None, QUOTA),
        (Some(quota), None) => (Some(quota), QUOTA),
        (Some(quota), Some(period)) => (Some(format!("{quota} {period}")), QUOTA),
        (None, Some(period)) => {
            let quota = present.map_or("max", |present| present.cpu_quota);
            (Some(format!("{quota} {period}")), PERIOD)
        }
    };
    if let Some(value) = value {
        add(out, "cpu", "cpu.max", value, field);
    }
    if let Some(burst) = cpu.burst {
        add(out, "cpu", "cpu.max.burst", burst.to_string(), BURST);
        none_is_none(out, burst);
    }
    idle(out, cpu);
    cpuset(out, cpu);
    Ok(())
}

/// On a kernel that cannot (before 5.14, 5.15), nothing does.
fn none_is_none(out: &mut [Setting], value: u64) {
    if value == 0 {
        last_absent(out, Absent::Skip);
    }
}

fn idle(out: &mut Vec<Setting>, cpu: &Cpu) {
    if let Some(idle) = cpu.idle {
        add(out, "cpu", "cpu.idle", idle.to_string(), IDLE);
        none_is_none(out, idle.unsigned_abs());
    }
}

fn cpuset(out: &mut Vec<Setting>, cpu: &Cpu) {
    if !cpu.cpus.is_empty() {
        let field = "linux.resources.cpu.cpus";
        add(out, "cpuset", "cpuset.cpus", cpu.cpus.clone(), field);
    }
    if !cpu.mems.is_empty() {
        let field = "linux.resources.cpu.mems";
        add(out, "cpuset", "cpuset.mems", cpu.mems.clone(), field);
    }
}

/// Maps shares (2 to 262144, 1024 is normal) to a weight (1 to 10000, 100 is normal): a quadratic
/// in the logarithm through the three points that must correspond, (2, 1), (1024, 100) and
/// (262144, 10000). What runc 1.4 and crun 1.23 do; the line that older ones draw through the ends
/// makes 39 of the normal 1024.
pub(crate) fn weight_from_shares(shares: u64) -> u32 {
    let shares = shares.clamp(2, 262_144);
    // `shares` fits 18 bits and the weight 14: both casts are exact enough by far.
    #[expect(clippy::cast_precision_loss, reason = "at most 18 bits")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil().clamp(1.0, 10_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 10000"
    )]
    let weight = weight as u32;
    weight
}
