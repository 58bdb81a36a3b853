//! From the resources of the runtime specification to files and values. Pure.

use std::borrow::Cow;

use amphora_spec::runtime::Resources;

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
    pub(crate) absent: Absent,
}

/// What to do when the kernel does not have the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Absent {
    /// Nobody may believe that the limit holds.
    #[default]
    Refuse,
    /// What was asked for is so without it.
    Skip,
    /// The same in another file and its own measure.
    Instead(&'static str, String),
}

/// What an update has to know of the present state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present<'a> {
    /// First word of `cpu.max`.
    pub(crate) cpu_quota: &'a str,
    /// `memory.current`.
    pub(crate) memory_bytes: u64,
}

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
    if version == Version::V1 && !resources.unified.is_empty() {
        return unsupported("unified".to_owned());
    }
    let mut out = Vec::new();
    if let Some(memory) = &resources.memory {
        match version {
            Version::V1 => crate::memory::v1(&mut out, memory)?,
            Version::V2 => crate::memory::v2(&mut out, memory, present)?,
        }
    }
    if let Some(cpu) = &resources.cpu {
        match version {
            Version::V1 => crate::cpu::v1(&mut out, cpu),
            Version::V2 => crate::cpu::v2(&mut out, cpu, present)?,
        }
    }
    if let Some(block_io) = &resources.block_io {
        crate::block_io::settings(&mut out, version, block_io)?;
    }
    pids(&mut out, resources, present.is_some());
    crate::extra::settings(&mut out, version, resources)?;
    unified(&mut out, resources)?;
    Ok(out)
}

/// A new cgroup has no limit; one that has is told so.
fn pids(out: &mut Vec<Setting>, resources: &Resources, exists: bool) {
    let value = match &resources.pids {
        Some(pids) if pids.limit > 0 => pids.limit.to_string(),
        Some(_) if exists => "max".to_owned(),
        _ => return,
    };
    add(out, "pids", "pids.max", value, "linux.resources.pids.limit");
}

pub(crate) fn add(
    out: &mut Vec<Setting>,
    controller: &'static str,
    file: impl Into<Cow<'static, str>>,
    value: String,
    field: impl Into<Cow<'static, str>>,
) {
    out.push(Setting {
        controller: controller.into(),
        file: file.into(),
        value,
        field: field.into(),
        absent: Absent::Refuse,
    });
}

/// Says what the last added setting means to a kernel without its file.
pub(crate) fn last_absent(out: &mut [Setting], absent: Absent) {
    if let Some(last) = out.last_mut() {
        last.absent = absent;
    }
}

/// Zero means "not given", as Docker sends it.
pub(crate) fn given(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

/// Refuses the first of a group's fields that is asked for and that v2 does not have.
pub(crate) fn refuse_on_v2(group: &str, fields: &[(&str, bool)]) -> Result<(), CgroupError> {
    match fields.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(CgroupError::Unsupported {
            field: format!("linux.resources.{group}.{field}"),
            version: Version::V2,
        }),
        None => Ok(()),
    }
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
            absent: Absent::Refuse,
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

/// Returns settings that bring back what the files hold now.
pub(crate) fn present<'a>(
    settings: &'a [Setting],
    dir_of: impl Fn(&str) -> Option<&'a Dir>,
) -> Vec<Setting> {
    let before = |setting: &Setting| {
        let dir = dir_of(&setting.controller)?;
        let (file, wanted) = match (&setting.absent, dir.read(&setting.file)) {
            (Absent::Instead(file, value), Err(_)) => (Cow::Borrowed(*file), value.as_str()),
            _ => (setting.file.clone(), setting.value.as_str()),
        };
        let value = previous_value(&file, wanted, &dir.read(&file).ok()?)?;
        Some(Setting {
            file,
            value,
            absent: Absent::Skip,
            ..setting.clone()
        })
    };
    // Backwards, so that what had to come last is taken back first.
    settings.iter().rev().filter_map(before).collect()
}

/// What to write to get back from `wanted` to what a file says. Most say one value; the others have a
/// line for each device, interface or state.
fn previous_value(file: &str, wanted: &str, says: &str) -> Option<String> {
    if file == "memory.oom_control" {
        return crate::dir::keyed(says, "oom_kill_disable").map(|value| value.to_string());
    }
    let per_device = file.ends_with("_device")
        || file == "net_prio.ifpriomap"
        || matches!(file, "io.max" | "rdma.max")
        || (matches!(file, "io.weight" | "io.bfq.weight") && wanted.contains(':'));
    if !per_device {
        let weight = says.lines().find_map(|line| line.strip_prefix("default "));
        return Some(weight.unwrap_or(says).trim().to_owned());
    }
    let (device, rest) = wanted.split_once(' ')?;
    let line = says.lines().find(|line| {
        let name = line.split_once(' ').map(|(name, _)| name);
        name == Some(device)
    });
    let nothing = match file {
        "io.max" | "rdma.max" => {
            let keys = rest.split(' ').filter_map(|pair| pair.split_once('='));
            let unlimited: Vec<String> = keys.map(|(key, _)| format!("{key}=max")).collect();
            unlimited.join(" ")
        }
        "io.weight" | "io.bfq.weight" => "default".to_owned(),
        _ => "0".to_owned(),
    };
    Some(line.map_or_else(|| format!("{device} {nothing}"), str::to_owned))
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
    let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let written = match (dir.write(&setting.file, &setting.value), &setting.absent) {
        (Err(error), Absent::Skip) if absent(&error) => Ok(()),
        (Err(error), Absent::Instead(file, value)) if absent(&error) => dir.write(file, value),
        (written, _) => written,
    };
    match written {
        Err(error) if absent(&error) => Err(CgroupError::MissingFile {
            file: setting.file.to_string(),
            field: setting.field.to_string(),
        }),
        written => Ok(written),
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
