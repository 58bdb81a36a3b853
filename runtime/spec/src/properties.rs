//! Properties of a process and of the container's network, as `config.json` has them.

use serde::{Deserialize, Serialize};

use crate::null::null_default;

/// `process.scheduler`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: String,
    /// -20 to 19, of the normal policies.
    #[serde(skip_serializing_if = "is_zero")]
    pub nice: i32,
    /// 1 to 99, of the real-time policies.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// `SCHED_FLAG_*`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub flags: Vec<String>,
    /// Nanoseconds, of the deadline policy.
    #[serde(skip_serializing_if = "is_zero")]
    pub runtime: u64,
    /// Nanoseconds, of the deadline policy.
    #[serde(skip_serializing_if = "is_zero")]
    pub deadline: u64,
    /// Nanoseconds, of the deadline policy.
    #[serde(skip_serializing_if = "is_zero")]
    pub period: u64,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `process.ioPriority`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_*`.
    pub class: String,
    /// 0 (first) to 7.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
}

/// `process.execCPUAffinity`: of processes that join the container, not of its first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecCpuAffinity {
    /// CPU list of whoever joins, before it is in the container's cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub initial: String,
    /// CPU list of the program.
    #[serde(rename = "final", skip_serializing_if = "String::is_empty")]
    pub last: String,
}

/// `linux.personality`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// None are defined.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub flags: Vec<String>,
}

/// `linux.netDevices.*`: an interface of the host that moves into the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Its name there, if another.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}
