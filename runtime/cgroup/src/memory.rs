//! Limits of memory. Pure.

use amphora_spec::runtime::Memory;

use crate::CgroupError;
use crate::settings::{Absent, Present, Setting, add, given, last_absent, refuse_on_v2};

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const RESERVATION: &str = "linux.resources.memory.reservation";

fn check_swap(memory: &Memory) -> Result<(), CgroupError> {
    let (Some(limit), Some(swap)) = (given(memory.limit), given(memory.swap)) else {
        return Ok(());
    };
    if limit > 0 && swap > 0 && swap < limit {
        return Err(CgroupError::invalid(
            SWAP,
            format!("{swap} is memory and swap together, and less than the memory limit {limit}"),
        ));
    }
    if limit < 0 && swap > 0 {
        return Err(CgroupError::invalid(SWAP, "it needs a memory limit"));
    }
    Ok(())
}

/// The kernel itself refuses a limit below the present use, so `checkBeforeUpdate` asks for nothing.
pub(crate) fn v1(out: &mut Vec<Setting>, memory: &Memory) -> Result<(), CgroupError> {
    check_swap(memory)?;
    let mut bytes = |file, value: Option<i64>, field| {
        if let Some(value) = given(value) {
            add(out, "memory", file, value.max(-1).to_string(), field);
        }
    };
    bytes("memory.limit_in_bytes", memory.limit, LIMIT);
    bytes("memory.memsw.limit_in_bytes", memory.swap, SWAP);
    bytes(
        "memory.soft_limit_in_bytes",
        memory.reservation,
        RESERVATION,
    );
    let field = "linux.resources.memory.kernel";
    bytes("memory.kmem.limit_in_bytes", memory.kernel, field);
    let field = "linux.resources.memory.kernelTCP";
    bytes("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp, field);
    if memory.limit < Some(0) && memory.limit.is_some() && given(memory.swap).is_none() {
        // No limit of memory means none of both together.
        let file = "memory.memsw.limit_in_bytes";
        add(out, "memory", file, "-1".to_owned(), SWAP);
        last_absent(out, Absent::Skip);
    }
    if let Some(swappiness) = memory.swappiness {
        let field = "linux.resources.memory.swappiness";
        if swappiness > 100 {
            let reason = format!("{swappiness} is not 0 to 100");
            return Err(CgroupError::invalid(field, reason));
        }
        let value = swappiness.to_string();
        add(out, "memory", "memory.swappiness", value, field);
    }
    if let Some(deep) = memory.use_hierarchy {
        // Kernels from 5.11 on count so in any case, and refuse a 0.
        let field = "linux.resources.memory.useHierarchy";
        let value = u8::from(deep).to_string();
        add(out, "memory", "memory.use_hierarchy", value, field);
        if deep {
            last_absent(out, Absent::Skip);
        }
    }
    if memory.disable_oom_killer == Some(true) {
        let field = "linux.resources.memory.disableOOMKiller";
        add(out, "memory", "memory.oom_control", "1".to_owned(), field);
    }
    Ok(())
}

pub(crate) fn v2(
    out: &mut Vec<Setting>,
    memory: &Memory,
    present: Option<Present<'_>>,
) -> Result<(), CgroupError> {
    check_swap(memory)?;
    let absent = [
        ("swappiness", memory.swappiness.is_some()),
        ("disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ("useHierarchy", memory.use_hierarchy == Some(false)),
        ("kernel", given(memory.kernel).is_some()),
        ("kernelTCP", given(memory.kernel_tcp).is_some()),
    ];
    refuse_on_v2("memory", &absent)?;
    let bytes = |value: i64| match value {
        ..0 => "max".to_owned(),
        _ => value.to_string(),
    };
    let limit = given(memory.limit);
    check_present(memory, present)?;
    if let Some(limit) = limit {
        add(out, "memory", "memory.max", bytes(limit), LIMIT);
    }
    let swap = match (given(memory.swap), limit) {
        (None, Some(..0)) | (Some(..0), _) => Some(-1),
        (None, _) => None,
        // What v1 and the specification limit together, v2 limits apart.
        (Some(swap), Some(limit)) => Some(swap - limit),
        (Some(_), None) => {
            return Err(CgroupError::invalid(SWAP, "it needs a memory limit"));
        }
    };
    if let Some(swap) = swap {
        add(out, "memory", "memory.swap.max", bytes(swap), SWAP);
        if swap <= 0 {
            // Without swap nothing is swapped.
            last_absent(out, Absent::Skip);
        }
    }
    if let Some(low) = given(memory.reservation) {
        add(out, "memory", "memory.low", bytes(low), RESERVATION);
    }
    Ok(())
}

/// v2 takes a limit below the present use, and kills.
fn check_present(memory: &Memory, present: Option<Present<'_>>) -> Result<(), CgroupError> {
    let limit = given(memory.limit).and_then(|limit| u64::try_from(limit).ok());
    match (memory.check_before_update, limit, present) {
        (Some(true), Some(limit), Some(present)) if present.memory_bytes >= limit => {
            let used = present.memory_bytes;
            let reason = format!("{limit} is less than what is in use, {used}");
            Err(CgroupError::invalid(LIMIT, reason))
        }
        _ => Ok(()),
    }
}
