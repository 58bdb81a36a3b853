//! From the resources of the runtime specification to files and values. Pure.

use std::borrow::Cow;

use amphora_spec::runtime::{Cpu, Memory, Resources};
use serde_json::Value;

use crate::cgroup::Previous;
use crate::dir::Dir;
use crate::{CgroupError, Version};

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: Cow<'static, str>,
    pub(crate) file: Cow<'static, str>,
    pub(crate) value: String,
    /// The field that asked for it.
    pub(crate) field: Cow<'static, str>,
}

/// What an update has to know of the present state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present<'a> {
    /// First word of `cpu.max`.
    pub(crate) cpu_quota: &'a str,
}

const MEMORY_LIMIT: &str = "linux.resources.memory.limit";
const MEMORY_SWAP: &str = "linux.resources.memory.swap";
const CPU_PERIOD: &str = "linux.resources.cpu.period";

/// Files that are the engine's own business.
const UNIFIED_REFUSED: [&str; 8] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.type",
    "cgroup.freeze",
    "cgroup.subtree_control",
    "cgroup.controllers",
    "cgroup.events",
];

/// Turns resources into settings, refusing by name what is not honoured.
pub(crate) fn from_resources(
    version: Version,
    resources: &Resources,
    present: Option<Present<'_>>,
) -> Result<Vec<Setting>, CgroupError> {
    let unsupported = |field: String| {
        Err(CgroupError::Unsupported {
            field: format!("linux.resources.{field}"),
            version,
        })
    };
    let parts = [
        ("", Some(&resources.unknown)),
        (
            "memory.",
            resources.memory.as_ref().map(|part| &part.unknown),
        ),
        ("cpu.", resources.cpu.as_ref().map(|part| &part.unknown)),
        (
            "blockIO.",
            resources.block_io.as_ref().map(|part| &part.unknown),
        ),
    ];
    for (prefix, unknown) in parts {
        if let Some((key, _)) = unknown.into_iter().flatten().find(|(_, value)| asks(value)) {
            return unsupported(format!("{prefix}{key}"));
        }
    }
    if version == Version::V1 && !resources.unified.is_empty() {
        return unsupported("unified".to_owned());
    }
    let mut out = Vec::new();
    if let Some(memory) = &resources.memory {
        match version {
            Version::V1 => memory_v1(&mut out, memory)?,
            Version::V2 => memory_v2(&mut out, memory)?,
        }
    }
    if let Some(cpu) = &resources.cpu {
        match version {
            Version::V1 => cpu_v1(&mut out, cpu),
            Version::V2 => cpu_v2(&mut out, cpu, present),
        }
    }
    if let Some(block_io) = &resources.block_io {
        crate::block_io::settings(&mut out, version, block_io);
    }
    if let Some(pids) = &resources.pids
        && (pids.limit > 0 || present.is_some())
    {
        let value = if pids.limit > 0 {
            pids.limit.to_string()
        } else {
            "max".to_owned()
        };
        add(
            &mut out,
            "pids",
            "pids.max",
            value,
            "linux.resources.pids.limit",
        );
    }
    unified(&mut out, resources)?;
    Ok(out)
}

/// Whether a value that is not understood asks for anything.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.iter().any(asks),
        Value::Object(fields) => fields.values().any(asks),
    }
}

pub(crate) fn add(
    out: &mut Vec<Setting>,
    controller: &'static str,
    file: &'static str,
    value: String,
    field: &'static str,
) {
    out.push(Setting {
        controller: controller.into(),
        file: file.into(),
        value,
        field: field.into(),
    });
}

/// Zero means "not given", as Docker sends it.
fn given(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn check_swap(memory: &Memory) -> Result<(), CgroupError> {
    let (Some(limit), Some(swap)) = (given(memory.limit), given(memory.swap)) else {
        return Ok(());
    };
    if limit > 0 && swap > 0 && swap < limit {
        return Err(CgroupError::invalid(
            MEMORY_SWAP,
            format!("{swap} is memory and swap together, and less than the memory limit {limit}"),
        ));
    }
    if limit < 0 && swap > 0 {
        return Err(CgroupError::invalid(MEMORY_SWAP, "it needs a memory limit"));
    }
    Ok(())
}

fn memory_v1(out: &mut Vec<Setting>, memory: &Memory) -> Result<(), CgroupError> {
    check_swap(memory)?;
    if let Some(limit) = given(memory.limit) {
        add(
            out,
            "memory",
            "memory.limit_in_bytes",
            limit.max(-1).to_string(),
            MEMORY_LIMIT,
        );
    }
    if let Some(swap) = given(memory.swap) {
        add(
            out,
            "memory",
            "memory.memsw.limit_in_bytes",
            swap.max(-1).to_string(),
            MEMORY_SWAP,
        );
    }
    if let Some(low) = given(memory.reservation) {
        let field = "linux.resources.memory.reservation";
        add(
            out,
            "memory",
            "memory.soft_limit_in_bytes",
            low.max(-1).to_string(),
            field,
        );
    }
    if let Some(swappiness) = memory.swappiness {
        let field = "linux.resources.memory.swappiness";
        if swappiness > 100 {
            return Err(CgroupError::invalid(
                field,
                format!("{swappiness} is not 0 to 100"),
            ));
        }
        add(
            out,
            "memory",
            "memory.swappiness",
            swappiness.to_string(),
            field,
        );
    }
    if memory.disable_oom_killer == Some(true) {
        let field = "linux.resources.memory.disableOOMKiller";
        add(out, "memory", "memory.oom_control", "1".to_owned(), field);
    }
    Ok(())
}

fn memory_v2(out: &mut Vec<Setting>, memory: &Memory) -> Result<(), CgroupError> {
    check_swap(memory)?;
    let unsupported = |field: &str| {
        Err(CgroupError::Unsupported {
            field: format!("linux.resources.memory.{field}"),
            version: Version::V2,
        })
    };
    if memory.swappiness.is_some() {
        return unsupported("swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        return unsupported("disableOOMKiller");
    }
    let bytes = |value: i64| {
        if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    let limit = given(memory.limit);
    if let Some(limit) = limit {
        add(out, "memory", "memory.max", bytes(limit), MEMORY_LIMIT);
    }
    match (given(memory.swap), limit) {
        (None, Some(..0)) => add(out, "memory", "memory.swap.max", bytes(-1), MEMORY_SWAP),
        (None, _) => {}
        (Some(..0), _) => add(out, "memory", "memory.swap.max", bytes(-1), MEMORY_SWAP),
        (Some(swap), Some(limit)) => {
            add(
                out,
                "memory",
                "memory.swap.max",
                bytes(swap - limit),
                MEMORY_SWAP,
            );
        }
        (Some(_), None) => {
            return Err(CgroupError::invalid(MEMORY_SWAP, "it needs a memory limit"));
        }
    }
    if let Some(low) = given(memory.reservation) {
        add(
            out,
            "memory",
            "memory.low",
            bytes(low),
            "linux.resources.memory.reservation",
        );
    }
    Ok(())
}

fn cpu_v1(out: &mut Vec<Setting>, cpu: &Cpu) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        add(
            out,
            "cpu",
            "cpu.shares",
            shares.to_string(),
            "linux.resources.cpu.shares",
        );
    }
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        add(
            out,
            "cpu",
            "cpu.cfs_period_us",
            period.to_string(),
            CPU_PERIOD,
        );
    }
    if let Some(quota) = given(cpu.quota) {
        let field = "linux.resources.cpu.quota";
        add(
            out,
            "cpu",
            "cpu.cfs_quota_us",
            quota.max(-1).to_string(),
            field,
        );
    }
    cpuset(out, cpu);
}

fn cpu_v2(out: &mut Vec<Setting>, cpu: &Cpu, present: Option<Present<'_>>) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        let weight = weight_from_shares(shares).to_string();
        add(
            out,
            "cpu",
            "cpu.weight",
            weight,
            "linux.resources.cpu.shares",
        );
    }
    let period = cpu.period.filter(|period| *period != 0);
    let quota = given(cpu.quota).map(|q| {
        if q < 0 {
            "max".to_owned()
        } else {
            q.to_string()
        }
    });
    match (quota, period) {
        (None, None) => {}
        (Some(quota), None) => {
            add(out, "cpu", "cpu.max", quota, "linux.resources.cpu.quota");
        }
        (Some(quota), Some(period)) => {
            add(
                out,
                "cpu",
                "cpu.max",
                format!("{quota} {period}"),
                "linux.resources.cpu.quota",
            );
        }
        (None, Some(period)) => {
            let quota = present.map_or("max", |present| present.cpu_quota);
            add(
                out,
                "cpu",
                "cpu.max",
                format!("{quota} {period}"),
                CPU_PERIOD,
            );
        }
    }
    cpuset(out, cpu);
}

fn cpuset(out: &mut Vec<Setting>, cpu: &Cpu) {
    if !cpu.cpus.is_empty() {
        add(
            out,
            "cpuset",
            "cpuset.cpus",
            cpu.cpus.clone(),
            "linux.resources.cpu.cpus",
        );
    }
    if !cpu.mems.is_empty() {
        add(
            out,
            "cpuset",
            "cpuset.mems",
            cpu.mems.clone(),
            "linux.resources.cpu.mems",
        );
    }
}

/// Maps shares (2 to 262144, 1024 is normal) to a weight (1 to 10000, 100 is normal): a quadratic
/// in the logarithm through the three points that must correspond, (2, 1), (1024, 100) and
/// (262144, 10000).
fn weight_from_shares(shares: u64) -> u32 {
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

fn unified(out: &mut Vec<Setting>, resources: &Resources) -> Result<(), CgroupError> {
    for (file, value) in &resources.unified {
        let field = format!("linux.resources.unified[\"{}\"]", file.escape_debug());
        let Some((controller, _)) = file.split_once('.') else {
            return Err(CgroupError::invalid(field, "it is not a cgroup file"));
        };
        if file.contains(['/', '\0']) || UNIFIED_REFUSED.contains(&file.as_str()) {
            return Err(CgroupError::invalid(field, "this file may not be set"));
        }
        out.push(Setting {
            controller: controller.to_owned().into(),
            file: file.clone().into(),
            value: value.clone(),
            field: field.into(),
        });
    }
    Ok(())
}

/// Writes settings. One that is refused because another must come first (memory before memory and
/// swap when lowering, after it when raising; period and quota likewise) is tried again at the end.
pub(crate) fn apply<'a>(
    settings: &'a [Setting],
    dir_of: impl Fn(&str) -> Option<&'a Dir>,
) -> Result<(), CgroupError> {
    let mut again = Vec::new();
    for setting in settings {
        match write(setting, &dir_of)? {
            Ok(()) => {}
            Err(error) if invalid(&error) => again.push(setting),
            Err(error) => return Err(refused(setting, &dir_of, error)),
        }
    }
    for setting in again {
        write(setting, &dir_of)?.map_err(|error| refused(setting, &dir_of, error))?;
    }
    Ok(())
}

/// Returns settings that bring back what the files hold now. A file that holds more than one
/// value of its own form is left out: what is written there is no limit of an update.
pub(crate) fn present<'a>(
    settings: &'a [Setting],
    dir_of: impl Fn(&str) -> Option<&'a Dir>,
) -> Previous {
    let before = |setting: &Setting| {
        let text = dir_of(&setting.controller)?.read(&setting.file).ok()?;
        let value = text.trim().to_owned();
        (!value.contains('\n')).then(|| Setting {
            value,
            ..setting.clone()
        })
    };
    // Backwards, so that what had to come last is taken back first.
    Previous(settings.iter().rev().filter_map(before).collect())
}

fn write<'a>(
    setting: &Setting,
    dir_of: &impl Fn(&str) -> Option<&'a Dir>,
) -> Result<std::io::Result<()>, CgroupError> {
    let missing = || CgroupError::MissingController {
        controller: setting.controller.to_string(),
        field: setting.field.to_string(),
    };
    let dir = dir_of(&setting.controller).ok_or_else(missing)?;
    match dir.write(&setting.file, &setting.value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(CgroupError::MissingController {
                controller: setting.file.to_string(),
                field: setting.field.to_string(),
            })
        }
        result => Ok(result),
    }
}

fn invalid(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

fn refused<'a>(
    setting: &Setting,
    dir_of: &impl Fn(&str) -> Option<&'a Dir>,
    source: std::io::Error,
) -> CgroupError {
    CgroupError::Set {
        field: setting.field.to_string(),
        value: setting.value.clone(),
        path: dir_of(&setting.controller)
            .map(|dir| dir.path.join(setting.file.as_ref()))
            .unwrap_or_default(),
        source,
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
