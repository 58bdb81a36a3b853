//! Capability names as bit masks.

use amphora_spec::runtime::Capabilities;
use amphora_sys::plan::CapSets;

use crate::ExecutorError;

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability that a bundle may name.
#[must_use]
pub fn capabilities() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

fn mask(field: &str, names: &[String]) -> Result<u64, ExecutorError> {
    names.iter().try_fold(0, |mask, name| {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let number = NAMES
            .iter()
            .position(|known| *known == short)
            .ok_or_else(|| {
                ExecutorError::Invalid(format!(
                    "process.capabilities.{field}: unknown capability \"{name}\""
                ))
            })?;
        Ok(mask | 1 << number)
    })
}

/// The bounding set and the others; no capabilities at all when the spec names none.
pub(crate) fn sets(caps: Option<&Capabilities>) -> Result<(u64, CapSets), ExecutorError> {
    let Some(caps) = caps else {
        return Ok((0, CapSets::default()));
    };
    let sets = CapSets {
        effective: mask("effective", &caps.effective)?,
        permitted: mask("permitted", &caps.permitted)?,
        inheritable: mask("inheritable", &caps.inheritable)?,
        ambient: mask("ambient", &caps.ambient)?,
    };
    Ok((mask("bounding", &caps.bounding)?, sets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_their_numbers_and_unknown_ones_are_named() {
        let caps = Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_CHECKPOINT_RESTORE".into()],
            effective: vec!["CAP_NET_RAW".into()],
            ..Capabilities::default()
        };
        let (bounding, sets) = sets(Some(&caps)).unwrap();
        assert_eq!(bounding, 1 | 1 << 40);
        assert_eq!(sets.effective, 1 << 13);
        let error = mask("ambient", &["CAP_FLY".into()])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "process.capabilities.ambient: unknown capability \"CAP_FLY\""
        );
    }
}
