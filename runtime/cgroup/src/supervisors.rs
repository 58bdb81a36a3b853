//! The cgroup that supervisors live in, so that stopping a service, ending a login session or
//! limiting either does not reach them.

use std::os::fd::OwnedFd;

use crate::cgroup::open_tasks;
use crate::dir::{CGROUP_MAGIC, CGROUP2_MAGIC};
use crate::hierarchy::Hierarchies;
use crate::{CgroupError, Version, v1};

/// Where a hybrid host mounts the unified hierarchy.
const HYBRID: &str = "unified";
/// systemd's own v1 hierarchy, by which it finds what belongs to a service.
const SYSTEMD: &str = "systemd";

/// What a new supervisor is started with.
#[derive(Debug)]
pub struct SupervisorCgroup {
    /// Directory for `CLONE_INTO_CGROUP`: v2 and hybrid hosts.
    pub launch: Option<OwnedFd>,
    /// v1 `tasks` files: the child writes "0" into each.
    pub tasks: Vec<OwnedFd>,
}

/// Opens the supervisors' cgroup, making it where it is missing. It stays when it is empty.
///
/// # Errors
/// When it cannot be made or opened.
pub fn supervisor_cgroup() -> Result<SupervisorCgroup, CgroupError> {
    Hierarchies::system()?.supervisors()
}

impl Hierarchies {
    /// Opens the supervisors' cgroup; see [`supervisor_cgroup`].
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn supervisors(&self) -> Result<SupervisorCgroup, CgroupError> {
        let own = self.supervisors_name();
        if self.version() == Version::V2 {
            let dir = match self.root.child(&own) {
                Ok(dir) => dir,
                Err(_) => self.root.make_all(&own)?,
            };
            return Ok(SupervisorCgroup {
                launch: Some(dir.fd),
                tasks: Vec::new(),
            });
        }
        let mut found = SupervisorCgroup {
            launch: None,
            tasks: Vec::new(),
        };
        let mut seen: Vec<u64> = Vec::new();
        let names = v1::ALWAYS
            .iter()
            .chain(&v1::ON_DEMAND)
            .chain(&[SYSTEMD, HYBRID]);
        for name in names {
            let Some(dir) = v1::open_or_make(self, name, &own)? else {
                continue;
            };
            let device = dir
                .device()
                .map_err(|source| dir.error("inspect", "", source))?;
            if seen.contains(&device) {
                continue;
            }
            seen.push(device);
            match dir.magic().unwrap_or(0) {
                CGROUP2_MAGIC => found.launch = Some(dir.fd),
                CGROUP_MAGIC => found.tasks.push(open_tasks(&dir)?),
                _ => {}
            }
        }
        Ok(found)
    }
}
