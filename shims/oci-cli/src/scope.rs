//! `--systemd-cgroup`: the container's cgroup is a scope of systemd's.

use amphora_cgroup::systemd::{self, Sockets, Unit};
use amphora_spec::runtime::{Resources, Spec};
use amphora_sys::sitter::Sitter;

use crate::error::{Result, RuncError};
use crate::state::Container;
use crate::{Context, bundle};

/// Where systemd and its buses are found, for a user other than root by the environment.
fn sockets() -> Sockets {
    let text = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    Sockets {
        runtime_dir: text("XDG_RUNTIME_DIR").map(Into::into),
        session_bus: text("DBUS_SESSION_BUS_ADDRESS").and_then(|text| text.into_string().ok()),
    }
}

/// Where the container's cgroup is to be: parent and name, and the unit that it is to be of. Of a unit,
/// systemd says where it is.
pub(crate) fn place(
    context: &Context<'_>,
    spec: &Spec,
    id: &str,
) -> Result<((String, String), Option<Unit>)> {
    if !context.systemd {
        return Ok((bundle::cgroup_place(spec, id)?, None));
    }
    if !amphora_executor::is_privileged() || amphora_executor::is_inside() {
        return Err(RuncError::unsupported(
            "--systemd-cgroup without the host's rights",
        ));
    }
    let uid = rustix::process::getuid();
    let user = (!uid.is_root()).then(|| uid.as_raw());
    let unit = Unit::parse(&spec.linux.cgroups_path, id, user)?;
    Ok(((unit.slice.clone(), unit.name.clone()), Some(unit)))
}

/// Has systemd make the unit. A scope is made around a process, and goes when it has none: what is
/// returned keeps the place until the container's own process is there.
pub(crate) fn start(container: &mut Container, unit: &Unit, spec: &Spec) -> Result<Sitter> {
    let more = systemd::annotated(&spec.annotations)?;
    let failed = RuncError::file("failed to start a process for the scope");
    let sitter = Sitter::new().map_err(failed)?;
    let resources = &spec.linux.resources;
    container.record.cgroup = unit.start(&sockets(), sitter.pid(), resources, &more)?;
    container.save()?;
    Ok(sitter)
}

/// Changed limits with what they go together with: systemd computes a rate of quota and period, and
/// devices are never without those that engines rely on.
pub(crate) fn whole(changed: &Resources, before: &Resources) -> Resources {
    let mut whole = changed.clone();
    if !whole.devices.is_empty() {
        bundle::allow_tunnels(&mut whole);
    }
    if let (Some(cpu), Some(before)) = (&mut whole.cpu, &before.cpu)
        && (cpu.quota.is_some() || cpu.period.is_some())
    {
        cpu.quota = cpu.quota.or(before.quota);
        cpu.period = cpu.period.or(before.period);
    }
    whole
}

/// Tells systemd of other limits, if the container is one of its.
pub(crate) fn update(container: &Container, resources: &Resources) -> Result {
    match &container.record.systemd {
        Some(unit) => Ok(unit.update(&sockets(), resources)?),
        None => Ok(()),
    }
}

/// Takes a change back that did not come to pass otherwise; why it did not is told.
pub(crate) fn restore(container: &Container, changed: &Resources, before: &Resources) {
    if let Some(unit) = &container.record.systemd {
        let _ = unit.restore(&sockets(), changed, before);
    }
}

/// Ends the unit. What is left of it is told, and keeps nothing from going.
pub(crate) fn stop(context: &Context<'_>, container: &Container) {
    if let Some(unit) = &container.record.systemd
        && let Err(error) = unit.stop(&sockets())
    {
        context.log.warning(&amphora_spec::error::chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use amphora_spec::runtime::Cpu;

    use super::*;

    #[test]
    fn a_rate_needs_quota_and_period() {
        let cpu = |quota, period| Resources {
            cpu: Some(Cpu {
                quota,
                period,
                ..Cpu::default()
            }),
            ..Resources::default()
        };
        let before = cpu(Some(50_000), Some(50_000));
        let now = |changed| whole(&changed, &before).cpu.map(|c| (c.quota, c.period));
        let both = Some((Some(20_000), Some(50_000)));
        assert_eq!(now(cpu(Some(20_000), None)), both);
        assert_eq!(now(cpu(None, Some(9000))), Some((Some(50_000), Some(9000))));
        assert_eq!(now(cpu(None, None)), Some((None, None)));
        assert!(whole(&cpu(None, None), &before).devices.is_empty());
    }
}
