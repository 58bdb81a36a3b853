//! Properties of the process: execution domain, scheduling, I/O priority, CPUs, LSM labels.

use amphora_spec::runtime::{IoPriority, Personality, Process, Scheduler, Spec};
use amphora_sys::plan::{LaunchPlan, Op};
use amphora_sys::properties::Scheduling;

use crate::{ExecutorError, lsm};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(ExecutorError::Invalid(text.into()))
}

const PER_LINUX: u32 = 0;
const PER_LINUX32: u32 = 8;

const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const DEADLINE: u32 = 6;

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// CPUs beyond this no kernel has.
const CPUS_MAX: usize = 8192;

/// Checks everything [`steps`] reads.
pub(crate) fn check(spec: &Spec) -> Result {
    if let Some(wanted) = &spec.linux.personality {
        personality(wanted)?;
    }
    process(&spec.process)?;
    devices(spec)?;
    lsm::check_mounts(&spec.linux.mount_label)
}

/// They are moved by whoever launches the plan: the child has left their namespace.
fn devices(spec: &Spec) -> Result {
    let devices = &spec.linux.net_devices;
    let mut namespaces = spec.linux.namespaces.iter();
    if !devices.is_empty() && !namespaces.any(|ns| ns.kind == "network") {
        return invalid("linux.netDevices: needs a network namespace of the container's own");
    }
    // As the kernel has it (`dev_valid_name`).
    let plain = |name: &str| {
        let letter = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
        name.len() < 16 && !matches!(name, "" | "." | "..") && name.chars().all(letter)
    };
    for (name, device) in devices {
        let own = Some(&device.name).filter(|own| !own.is_empty());
        if let Some(name) = [Some(name), own]
            .into_iter()
            .flatten()
            .find(|it| !plain(it))
        {
            let text = format!("linux.netDevices: \"{name}\" is no name of an interface");
            return invalid(text);
        }
    }
    Ok(())
}

fn process(process: &Process) -> Result {
    if let Some(wanted) = &process.scheduler {
        scheduling(wanted)?;
    }
    if let Some(wanted) = &process.io_priority {
        io_priority(wanted)?;
    }
    if let Some(wanted) = &process.exec_cpu_affinity {
        cpu_mask(&wanted.initial)?;
        cpu_mask(&wanted.last)?;
    }
    lsm::steps(process).map(drop)
}

/// The steps that set what the spec asks for, while the child may still do everything.
pub(crate) fn steps(spec: &Spec, joins: bool, plan: &mut LaunchPlan) -> Result {
    let process = &spec.process;
    if let Some(wanted) = &spec.linux.personality {
        plan.ops.push(Op::Personality(personality(wanted)?));
    }
    if let Some(wanted) = &process.scheduler {
        plan.ops.push(Op::Scheduler(scheduling(wanted)?));
    }
    if let Some(wanted) = &process.io_priority {
        plan.ops.push(Op::IoPriority(io_priority(wanted)?));
    }
    // That of who joins first is its parent's, which is not in the container's cgroup; then it is all
    // that the cgroup has, unless it is said.
    if let Some(wanted) = process.exec_cpu_affinity.as_ref().filter(|_| joins) {
        let all = (!wanted.initial.is_empty()).then(|| vec![0xff; CPUS_MAX / 8]);
        let mask = cpu_mask(&wanted.last)?.or(all);
        plan.ops.extend(mask.map(Op::CpuAffinity));
    }
    plan.ops.extend(lsm::steps(process)?);
    Ok(())
}

fn personality(wanted: &Personality) -> Result<u32> {
    if let Some(flag) = wanted.flags.first() {
        return Err(ExecutorError::unsupported(format!(
            "linux.personality.flags: {flag}"
        )));
    }
    match wanted.domain.as_str() {
        "LINUX" => Ok(PER_LINUX),
        "LINUX32" => Ok(PER_LINUX32),
        other => invalid(format!(
            "linux.personality.domain: unknown value \"{other}\""
        )),
    }
}

fn scheduling(wanted: &Scheduler) -> Result<Scheduling> {
    let field = |detail: &str| format!("process.scheduler.{detail}");
    let named = |name: &&(&str, u32)| name.0 == wanted.policy;
    let Some((_, policy)) = POLICIES.iter().find(named) else {
        if wanted.policy == "SCHED_ISO" {
            // Reserved by the specification; no kernel has it.
            return Err(ExecutorError::unsupported(field("policy: SCHED_ISO")));
        }
        let text = format!("policy: unknown value \"{}\"", wanted.policy);
        return invalid(field(&text));
    };
    let mut flags = 0;
    for flag in &wanted.flags {
        match FLAGS.iter().find(|(name, _)| name == flag) {
            Some((_, bit)) => flags |= bit,
            None => return invalid(field(&format!("flags: unknown value \"{flag}\""))),
        }
    }
    if !(-20..=19).contains(&wanted.nice) {
        return invalid(field(&format!("nice: {} is not in -20 to 19", wanted.nice)));
    }
    let realtime = matches!(policy, 1 | 2);
    let priority = u32::try_from(wanted.priority).ok();
    let range = if realtime { 1..=99 } else { 0..=0 };
    let Some(priority) = priority.filter(|priority| range.contains(priority)) else {
        let text = format!(
            "priority: {} is not in {} to {} for {}",
            wanted.priority,
            range.start(),
            range.end(),
            wanted.policy
        );
        return invalid(field(&text));
    };
    let times = [wanted.runtime, wanted.deadline, wanted.period];
    if *policy != DEADLINE && times != [0; 3] {
        return invalid(field("runtime, deadline, period: need SCHED_DEADLINE"));
    }
    Ok(Scheduling {
        policy: *policy,
        flags,
        nice: wanted.nice,
        priority,
        times,
    })
}

fn io_priority(wanted: &IoPriority) -> Result<u32> {
    let class = match wanted.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => {
            return invalid(format!(
                "process.ioPriority.class: unknown value \"{other}\""
            ));
        }
    };
    match u32::try_from(wanted.priority) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => invalid(format!(
            "process.ioPriority.priority: {} is not in 0 to 7",
            wanted.priority
        )),
    }
}

/// A list of CPUs such as `0-3,8` as a mask: bit 0 of byte 0 is CPU 0. An empty list is none.
///
/// # Errors
/// A list that means nothing.
pub fn cpu_mask(list: &str) -> Result<Option<Vec<u8>>> {
    if list.is_empty() {
        return Ok(None);
    }
    let wrong = || ExecutorError::Invalid(format!("process.execCPUAffinity: \"{list}\""));
    let number = |text: &str| -> Result<usize> {
        let number = text.trim().parse().map_err(|_| wrong())?;
        if number < CPUS_MAX {
            Ok(number)
        } else {
            Err(wrong())
        }
    };
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        for cpu in first..=last {
            let at = cpu / 8;
            if mask.len() <= at {
                mask.resize(at + 1, 0u8);
            }
            if let Some(byte) = mask.get_mut(at) {
                *byte |= 1 << (cpu % 8);
            }
        }
    }
    Ok(Some(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Result<Scheduling> {
        scheduling(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn every_policy_and_flag_of_the_specification_is_known() {
        let rt = scheduler(
            r#"{"policy":"SCHED_RR","priority":7,
            "flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_UTIL_CLAMP_MAX"]}"#,
        )
        .unwrap();
        assert_eq!((rt.policy, rt.priority, rt.flags), (2, 7, 0x41));
        let deadline = scheduler(
            r#"{"policy":"SCHED_DEADLINE","runtime":1000000,"deadline":2000000,"period":3000000}"#,
        )
        .unwrap();
        assert_eq!(deadline.times, [1_000_000, 2_000_000, 3_000_000]);
        let batch = scheduler(r#"{"policy":"SCHED_BATCH","nice":-20,"flags":null}"#).unwrap();
        assert_eq!((batch.policy, batch.nice), (3, -20));
    }

    #[test]
    fn what_the_kernel_would_ignore_is_refused_by_name() {
        for (json, part) in [
            (r#"{"policy":"SCHED_ISO"}"#, "policy: SCHED_ISO"),
            (r#"{"policy":""}"#, "process.scheduler.policy"),
            (
                r#"{"policy":"SCHED_OTHER","nice":20}"#,
                "process.scheduler.nice",
            ),
            (
                r#"{"policy":"SCHED_OTHER","priority":1}"#,
                "scheduler.priority",
            ),
            (r#"{"policy":"SCHED_FIFO"}"#, "scheduler.priority"),
            (r#"{"policy":"SCHED_FIFO","priority":-1}"#, "priority"),
            (r#"{"policy":"SCHED_IDLE","period":1}"#, "SCHED_DEADLINE"),
            (
                r#"{"policy":"SCHED_IDLE","flags":["X"]}"#,
                "scheduler.flags",
            ),
        ] {
            let text = scheduler(json).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        let personality = |json| personality(&serde_json::from_str(json).unwrap());
        assert_eq!(personality(r#"{"domain":"LINUX32"}"#).unwrap(), 8);
        assert_eq!(personality(r#"{"domain":"LINUX"}"#).unwrap(), 0);
        assert!(personality(r#"{"domain":"LINUX","flags":["ADDR_NO_RANDOMIZE"]}"#).is_err());
        assert!(personality(r#"{"domain":"BSD"}"#).is_err());
        let io = |json| io_priority(&serde_json::from_str(json).unwrap());
        assert_eq!(
            io(r#"{"class":"IOPRIO_CLASS_BE","priority":7}"#).unwrap(),
            0x4007
        );
        assert!(io(r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#).is_err());
        assert!(io(r#"{"class":"IOPRIO_CLASS_NONE"}"#).is_err());
    }

    #[test]
    fn lists_of_cpus_become_masks() {
        assert_eq!(cpu_mask("").unwrap(), None);
        assert_eq!(cpu_mask("0").unwrap(), Some(vec![1]));
        assert_eq!(cpu_mask("0-3,8,17").unwrap(), Some(vec![0b1111, 1, 0b10]));
        for list in ["x", "3-1", "-", "1,", "8192", "0-99999999999"] {
            assert!(cpu_mask(list).is_err(), "{list}");
        }
    }
}
