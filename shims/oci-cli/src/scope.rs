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
