//! Update: limits of a container changed in its record and, while it runs, in the kernel.

use amphora_spec::{Classify, ContainerId};

use crate::config::HostConfig;
use crate::container::Status;
use crate::files::Lasting;
use crate::{Engine, EngineError, Result, limits};

/// What an update changes; `None` leaves a limit as it is, and so does a zero, as under Docker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateOptions {
    /// Block weight.
    pub blkio_weight: Option<u16>,
    /// CPU period in microseconds.
    pub cpu_period: Option<i64>,
    /// CPU quota in microseconds a period.
    pub cpu_quota: Option<i64>,
    /// CPU weight, 1024 is normal.
    pub cpu_shares: Option<u64>,
    /// CPUs in billionths.
    pub nano_cpus: Option<u64>,
    /// CPU list.
    pub cpuset_cpus: Option<String>,
    /// Memory node list.
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes.
    pub memory: Option<i64>,
    /// Soft memory limit in bytes.
    pub memory_reservation: Option<i64>,
    /// Memory and swap together in bytes; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// Most tasks; -1 is unlimited.
    pub pids_limit: Option<i64>,
}

impl Engine {
    /// Changes the limits of a container. Either all of them hold afterwards, in the record and
    /// in the kernel, or none.
    ///
    /// # Errors
    /// A limit that contradicts another or that the kernel refuses.
    pub fn update(&self, id: &ContainerId, options: &UpdateOptions) -> Result<()> {
        let _lock = self.lock_config(id)?;
        self.reconcile_one(id)?;
        let mut config = self.config(id)?;
        let cannot = |source: EngineError| EngineError::Below {
            context: format!("Cannot update container {id}"),
            kind: source.kind(),
            source: Box::new(source),
        };
        merge(&mut config.host, options).map_err(cannot)?;
        limits::check(&config.host)?;
        let mut resources = limits::resources(&config.host)?;
        if let Some(limit) = options.pids_limit {
            resources.pids = Some(amphora_spec::runtime::Pids { limit });
        }
        let running = self.view(id)?.status == Status::Running;
        let mut applied = None;
        if running && let Some(mut cgroup) = crate::pause::cgroup(id)? {
            let previous = cgroup
                .update(&resources)
                .map_err(|e| cannot(EngineError::plain(e)))?;
            applied = Some((cgroup, previous));
        }
        let written = self.write_config(&mut config, Lasting::Long);
        written.inspect_err(|_| {
            if let Some((cgroup, previous)) = &applied {
                cgroup.restore(previous);
            }
        })?;
        self.note_container(&config, "update", &[]);
        Ok(())
    }
}

/// Merges what is asked for into what is set.
fn merge(host: &mut HostConfig, options: &UpdateOptions) -> Result<()> {
    let conflict = |a: &str, b: &str| {
        Err(EngineError::Invalid(format!(
            "Conflicting options: {a} cannot be updated as {b} has already been set"
        )))
    };
    let given = |value: Option<i64>| value.filter(|v| *v != 0);
    let positive = |value: Option<i64>| value.is_some_and(|v| v > 0);
    let nano = options.nano_cpus.filter(|v| *v > 0);
    if nano.is_some() && positive(host.cpu_period) {
        return conflict("Nano CPUs", "CPU Period");
    }
    if nano.is_some() && positive(host.cpu_quota) {
        return conflict("Nano CPUs", "CPU Quota");
    }
    let has_nano = host.nano_cpus.is_some_and(|v| v > 0);
    if positive(options.cpu_period) && has_nano {
        return conflict("CPU Period", "NanoCPUs");
    }
    if positive(options.cpu_quota) && has_nano {
        return conflict("CPU Quota", "NanoCPUs");
    }
    if let Some(memory) = given(options.memory) {
        let swap = limits::memory_swap(host);
        if memory > swap && given(options.memory_swap).is_none() {
            return Err(EngineError::Invalid(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time".to_owned(),
            ));
        }
        // What followed from the memory limit stays where it is.
        host.memory_swap = Some(swap);
        host.memory = Some(memory);
    }
    host.memory_swap = given(options.memory_swap).or(host.memory_swap);
    host.memory_reservation = given(options.memory_reservation).or(host.memory_reservation);
    host.nano_cpus = nano.or(host.nano_cpus);
    host.cpu_period = given(options.cpu_period).or(host.cpu_period);
    host.cpu_quota = given(options.cpu_quota).or(host.cpu_quota);
    host.cpu_shares = options.cpu_shares.filter(|v| *v != 0).or(host.cpu_shares);
    let text = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    host.cpuset_cpus = text(&options.cpuset_cpus).or_else(|| host.cpuset_cpus.take());
    host.cpuset_mems = text(&options.cpuset_mems).or_else(|| host.cpuset_mems.take());
    host.pids_limit = options.pids_limit.or(host.pids_limit);
    if let Some(weight) = options.blkio_weight.filter(|v| *v != 0) {
        host.block_io.weight = weight;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_from_the_memory_limit_stays() {
        let mut host = HostConfig {
            memory: Some(100 << 20),
            ..HostConfig::default()
        };
        let update = |memory: i64| UpdateOptions {
            memory: Some(memory),
            ..UpdateOptions::default()
        };
        merge(&mut host, &update(150 << 20)).unwrap();
        assert_eq!(host.memory_swap, Some(200 << 20));
        let error = merge(&mut host, &update(300 << 20)).unwrap_err();
        assert!(error.to_string().contains("update the memoryswap"));
        assert_eq!(host.memory, Some(150 << 20));
    }

    #[test]
    fn cpus_and_quota_exclude_each_other() {
        let mut host = HostConfig {
            cpu_quota: Some(20_000),
            ..HostConfig::default()
        };
        let update = UpdateOptions {
            nano_cpus: Some(1),
            ..UpdateOptions::default()
        };
        let text =
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set";
        assert_eq!(merge(&mut host, &update).unwrap_err().to_string(), text);
    }
}
