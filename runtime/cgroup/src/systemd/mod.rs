//! Cgroups that systemd makes: a transient scope for each container, by D-Bus.
//!
//! systemd puts a process into a scope that it makes, and writes what it was told to again whenever it
//! likes; so it is told all limits that it has words for. The rest, and the exact values, are written
//! into the scope's directory as into any other.

mod bus;
mod properties;
mod variant;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amphora_spec::runtime::Resources;
use serde::{Deserialize, Serialize};

use self::bus::{Bus, Place, refused};
use self::wire::Value;
use crate::hierarchy::Hierarchies;
use crate::{Cgroup, CgroupError, Version};

pub use self::properties::annotated;

/// How long the answer to the call that ends a scope may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Present while systemd runs the host.
const RUNS: &str = "/run/systemd/system";

/// The place of a container among systemd's units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The slice that the scope lies in.
    pub slice: String,
    /// Name of the scope.
    pub name: String,
    /// The user whose own manager it belongs to; none for the host's.
    pub user: Option<u32>,
}

/// Whom to ask.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    /// `XDG_RUNTIME_DIR`, for a user's manager.
    pub runtime_dir: Option<PathBuf>,
    /// `DBUS_SESSION_BUS_ADDRESS`, likewise.
    pub session_bus: Option<String>,
}

/// A property of a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    name: String,
    value: Value,
}

impl Unit {
    /// From `slice:prefix:name`, as engines write `linux.cgroupsPath`; nothing is runc's place for a
    /// container of that id.
    ///
    /// # Errors
    /// When it is something else, or a slice without a process of its own is meant.
    pub fn parse(path: &str, id: &str, user: Option<u32>) -> Result<Self, CgroupError> {
        let invalid = |reason: String| CgroupError::invalid("linux.cgroupsPath", reason);
        let parts: Vec<&str> = path.split(':').collect();
        let (slice, prefix, name) = match parts[..] {
            [""] => ("", "runc", id),
            [slice, prefix, name] => (slice, prefix, name),
            _ => {
                return Err(invalid(format!(
                    "\"{}\" is not slice:prefix:name, as systemd cgroups need it",
                    path.escape_debug()
                )));
            }
        };
        let slice = match (slice, user) {
            ("", None) => "system.slice",
            ("", Some(_)) => "user.slice",
            (slice, _) => slice,
        };
        check_slice(slice).map_err(invalid)?;
        if name.ends_with(".slice") {
            return Err(invalid(format!(
                "\"{name}\" is a slice, which takes no processes"
            )));
        }
        let name = format!("{prefix}-{name}.scope");
        let letter = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if name.len() > 255 || !name.chars().all(letter) || name.starts_with('.') {
            let name = name.escape_debug();
            return Err(invalid(format!("\"{name}\" is no name of a unit")));
        }
        Ok(Self {
            slice: slice.to_owned(),
            name,
            user,
        })
    }

    /// Has systemd make the scope around a process, with the limits that it knows. Says where its
    /// cgroup is: parent and name.
    ///
    /// # Errors
    /// `NoSystemd`; what systemd answers; on a host that is not all cgroup v2.
    pub fn start(
        &self,
        sockets: &Sockets,
        pid: i32,
        resources: &Resources,
        more: &[Property],
    ) -> Result<(String, String), CgroupError> {
        let limits = properties::limits(resources)?;
        let mut bus = self.connect(sockets)?;
        if Hierarchies::system()?.version() == Version::V1 {
            return Err(CgroupError::Unsupported {
                field: "--systemd-cgroup".to_owned(),
                version: Version::V1,
            });
        }
        self.start_on(&mut bus, pid, limits, more)?;
        let (parent, name) = of_process(pid)?;
        if name == self.name {
            return Ok((parent, name));
        }
        // What is there is somebody's, and would go with the container.
        Err(CgroupError::Systemd {
            call: format!("StartTransientUnit {}", self.name),
            answer: format!("its process is in {parent}/{name}"),
        })
    }

    fn start_on(
        &self,
        bus: &mut Bus,
        pid: i32,
        limits: Vec<Property>,
        more: &[Property],
    ) -> Result<(), CgroupError> {
        let call = "StartTransientUnit";
        let mut all = properties::scope(self, pid);
        all.extend(limits);
        all.extend(more.iter().cloned());
        let body = || {
            vec![
                Value::text(&self.name),
                Value::text("replace"),
                list(&all),
                Value::Array("(sa(sv))".to_owned(), Vec::new()),
            ]
        };
        let mut answer = bus.call(call, body())?;
        if answer
            .as_ref()
            .is_err_and(|refusal| refusal.is("UnitExists"))
        {
            // One that failed is kept by that name until somebody has looked at it.
            let _ = bus.call("ResetFailedUnit", vec![Value::text(&self.name)])?;
            answer = bus.call(call, body())?;
        }
        let what = format!("{call} {}", self.name);
        self.finish(bus, answer.map_err(refused(&what))?, &what)
    }

    /// Tells systemd of changed limits.
    ///
    /// # Errors
    /// As [`Unit::start`].
    pub fn update(&self, sockets: &Sockets, resources: &Resources) -> Result<(), CgroupError> {
        let limits = properties::limits(resources)?;
        if limits.is_empty() {
            return Ok(());
        }
        let mut bus = self.connect(sockets)?;
        self.update_on(&mut bus, &limits)
    }

    /// Takes back what [`Unit::update`] has told of `changed`, where `before` held.
    ///
    /// # Errors
    /// As [`Unit::start`].
    pub fn restore(
        &self,
        sockets: &Sockets,
        changed: &Resources,
        before: &Resources,
    ) -> Result<(), CgroupError> {
        let back = properties::back(&properties::limits(changed)?, &properties::limits(before)?);
        if back.is_empty() {
            return Ok(());
        }
        self.update_on(&mut self.connect(sockets)?, &back)
    }

    fn update_on(&self, bus: &mut Bus, limits: &[Property]) -> Result<(), CgroupError> {
        let call = "SetUnitProperties";
        let body = vec![Value::text(&self.name), Value::Bool(true), list(limits)];
        let answer = bus.call(call, body)?;
        answer.map_err(refused(&format!("{call} {}", self.name)))?;
        Ok(())
    }

    /// Ends the scope. One that is gone is no error.
    ///
    /// # Errors
    /// As [`Unit::start`].
    pub fn stop(&self, sockets: &Sockets) -> Result<(), CgroupError> {
        let deadline = Instant::now() + bus::DEADLINE;
        // A scope goes by itself when it is empty. Where that happens while systemd looks at the call,
        // nobody answers it: another connection hears that there is no such unit.
        loop {
            let mut bus = self.connect(sockets)?;
            bus.expect_answers_within(ANSWER);
            match self.stop_on(&mut bus) {
                Err(error) if bus::is_silence(&error) && Instant::now() < deadline => {}
                stopped => return stopped,
            }
        }
    }

    fn stop_on(&self, bus: &mut Bus) -> Result<(), CgroupError> {
        let what = format!("StopUnit {}", self.name);
        let body = vec![Value::text(&self.name), Value::text("replace")];
        match bus.call("StopUnit", body)? {
            Err(refusal) if refusal.is("NoSuchUnit") => return Ok(()),
            answer => self.finish(bus, answer.map_err(refused(&what))?, &what)?,
        }
        // Most have not failed, and are not known any more.
        let _ = bus.call("ResetFailedUnit", vec![Value::text(&self.name)])?;
        Ok(())
    }

    /// Waits for the job that a call has begun.
    fn finish(&self, bus: &mut Bus, answer: Vec<Value>, what: &str) -> Result<(), CgroupError> {
        let failed = |answer: String| CgroupError::Systemd {
            call: what.to_owned(),
            answer,
        };
        let Some(Value::Path(job)) = answer.into_iter().next() else {
            return Err(failed("it names no job".to_owned()));
        };
        match bus.job(&job)?.as_str() {
            bus::DONE => Ok(()),
            result => Err(failed(format!("the job ended as {result}"))),
        }
    }

    fn connect(&self, sockets: &Sockets) -> Result<Bus, CgroupError> {
        if !Path::new(RUNS).is_dir() {
            let missing = std::io::ErrorKind::NotFound.into();
            return Err(CgroupError::NoSystemd(missing));
        }
        Bus::connect(&self.places(sockets), self.user.unwrap_or(0))
    }

    fn places(&self, sockets: &Sockets) -> Vec<Place> {
        if self.user.is_none() {
            return vec![
                Place::Manager("/run/systemd/private".to_owned()),
                Place::Bus("unix:path=/run/dbus/system_bus_socket".to_owned()),
            ];
        }
        let mut places = Vec::new();
        if let Some(dir) = &sockets.runtime_dir {
            let private = dir.join("systemd/private").display().to_string();
            places.push(Place::Manager(private));
            places.push(Place::Bus(format!("unix:path={}/bus", dir.display())));
        }
        places.extend(sockets.session_bus.clone().map(Place::Bus));
        places
    }
}

/// The cgroup below a scope that [`Unit::start`] has made, with its limits.
///
/// # Errors
/// Whatever is refused, by field; the directory is left to systemd.
pub fn adopt(parent: &str, name: &str, resources: &Resources) -> Result<Cgroup, CgroupError> {
    Hierarchies::system()?.adopt(parent, name, resources)
}

fn list(properties: &[Property]) -> Value {
    let pair = |property: &Property| {
        let value = Value::Variant(Box::new(property.value.clone()));
        Value::Struct(vec![Value::text(&property.name), value])
    };
    Value::Array("(sv)".to_owned(), properties.iter().map(pair).collect())
}

/// `a-b.slice` lies in `a.slice`; no part may be empty.
fn check_slice(slice: &str) -> Result<(), String> {
    let wrong = || format!("\"{}\" is no name of a slice", slice.escape_debug());
    let name = slice.strip_suffix(".slice").ok_or_else(wrong)?;
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_.\\@:".contains(c);
    let whole = name == "-" || name.split('-').all(|part| !part.is_empty());
    match whole && name.chars().all(letter) {
        true => Ok(()),
        false => Err(wrong()),
    }
}

/// Where a process is on v2: parent and name.
fn of_process(pid: i32) -> Result<(String, String), CgroupError> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = std::fs::read_to_string(&path).map_err(|source| CgroupError::Io {
        action: "read",
        path,
        source,
    })?;
    let line = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let (parent, name) = line
        .map(|line| line.rsplit_once('/').unwrap_or(("", line)))
        .ok_or_else(|| CgroupError::NotFound(format!("of process {pid}")))?;
    Ok((parent.to_owned(), name.to_owned()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
