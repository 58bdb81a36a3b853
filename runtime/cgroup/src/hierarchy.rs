//! What cgroups look like on this host, found once.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use amphora_spec::runtime::Resources;
use serde::{Deserialize, Serialize};

use crate::cgroup::Location;
use crate::devices::Policy;
use crate::dir::{CGROUP2_MAGIC, Dir};
use crate::settings::{self, Setting};
use crate::{Cgroup, CgroupError, policies, v1, v2};

/// Parent of the containers that name none.
pub const DEFAULT_PARENT: &str = "amphora";
/// Makes the parent of those among them that have a device policy of their own: a policy cannot
/// allow what the policy of an ancestor does not.
const DEVICES_SUFFIX: &str = "-devices";
/// Makes the parent of cgroups that only keep a policy's program loaded.
const POLICIES_SUFFIX: &str = "-policies";
/// Extended attribute on a parent that is completely set up.
pub(crate) const READY: &str = "trusted.amphora.ready";

const ROOT: &str = "/sys/fs/cgroup";
/// Longest name of one directory.
const NAME_MAX: usize = 255;

/// Version of the cgroup interface in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// One hierarchy per controller; also on hybrid hosts.
    V1,
    /// The unified hierarchy.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The place where cgroups are mounted.
#[derive(Debug)]
pub struct Hierarchies {
    pub(crate) root: Dir,
    version: Version,
    default_parent: String,
    /// Parents already opened by this process.
    parents: Mutex<HashMap<String, Arc<Parent>>>,
}

/// A directory (v1: one per hierarchy) that holds containers' cgroups.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) dirs: Vec<ParentDir>,
}

/// One directory and the controllers that act through it.
#[derive(Debug)]
pub(crate) struct ParentDir {
    pub(crate) controllers: Vec<String>,
    pub(crate) dir: Dir,
}

impl Parent {
    pub(crate) fn of(&self, controller: &str) -> Option<&ParentDir> {
        self.dirs
            .iter()
            .find(|dir| dir.controllers.iter().any(|have| have == controller))
    }
}

/// Everything known about a cgroup before the first directory is made.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) settings: Vec<Setting>,
    /// The policy to write into the cgroup itself; `None` when the parent's is the right one.
    pub(crate) policy: Option<Policy>,
    /// The same for v2.
    pub(crate) program: Option<OwnedFd>,
}

impl Hierarchies {
    /// Looks at `/sys/fs/cgroup`, the first time; a process keeps what it found.
    ///
    /// # Errors
    /// When nothing is mounted there.
    pub fn system() -> Result<&'static Self, CgroupError> {
        static SYSTEM: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(found) = SYSTEM.get() {
            return Ok(found);
        }
        let found = Self::at(Path::new(ROOT))?;
        Ok(SYSTEM.get_or_init(|| found))
    }

    /// Looks at another mount point.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn at(root: &Path) -> Result<Self, CgroupError> {
        let missing = |_| CgroupError::NoCgroups(root.to_owned());
        let root = Dir::open(root).map_err(missing)?;
        let version = if root.magic().map_err(missing)? == CGROUP2_MAGIC {
            Version::V2
        } else {
            Version::V1
        };
        Ok(Self {
            root,
            version,
            default_parent: DEFAULT_PARENT.to_owned(),
            parents: Mutex::default(),
        })
    }

    /// Names another parent whose children inherit the standard device policy from it; what lies
    /// beside it is called after it.
    #[must_use]
    pub fn with_default_parent(mut self, parent: &str) -> Self {
        parent.clone_into(&mut self.default_parent);
        self
    }

    /// A sibling of the containers' parent: v2 allows no processes in a cgroup that gives
    /// controllers to its children.
    pub(crate) fn supervisors_name(&self) -> String {
        format!("{}-supervisors", self.default_parent)
    }

    fn devices_parent(&self) -> String {
        format!("{}{DEVICES_SUFFIX}", self.default_parent)
    }

    /// Returns the version in use.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes `parent/name` with its limits and device policy. `parent` may have several
    /// components; it is made when missing.
    ///
    /// # Errors
    /// Whatever is refused, by field, before anything is made; otherwise what the kernel answers,
    /// after what was made has been removed.
    pub fn create(
        &self,
        parent: &str,
        name: &str,
        resources: &Resources,
    ) -> Result<Cgroup, CgroupError> {
        let parent = checked_parent(parent)?;
        let name = checked_name(name)?;
        let settings = settings::from_resources(self.version, resources, None)?;
        let policy = Policy::from_rules(&resources.devices)?;
        let standard = policy == Policy::standard();
        let aside = self.devices_parent();
        let (parent, policy) = match parent == self.default_parent {
            true if standard => (parent, None),
            true => (aside.as_str(), Some(policy)),
            false => (parent, Some(policy)),
        };
        let request = self.request(name, settings, policy)?;
        let location = self.location(parent, name);
        let opened = self.parent(parent, &request)?;
        let created = match self.create_in(&opened, &request) {
            Err(CgroupError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                // Somebody removed the parent since it was opened.
                self.forget(parent);
                self.create_in(&*self.parent(parent, &request)?, &request)
            }
            result => result,
        };
        Ok(created?.at(location))
    }

    /// Takes over a cgroup that a service manager has made, and writes limits and device policy into it.
    ///
    /// # Errors
    /// As [`Hierarchies::create`]; nothing is removed.
    pub(crate) fn adopt(
        &self,
        parent: &str,
        name: &str,
        resources: &Resources,
    ) -> Result<Cgroup, CgroupError> {
        let parent = checked_parent(parent)?;
        let name = checked_name(name)?;
        let settings = settings::from_resources(self.version, resources, None)?;
        let policy = Policy::from_rules(&resources.devices)?;
        let request = self.request(name, settings, Some(policy))?;
        let adopted = match self.version {
            Version::V2 => v2::adopt(self, parent, &request)?,
            Version::V1 => {
                return Err(CgroupError::Unsupported {
                    field: "--systemd-cgroup".to_owned(),
                    version: self.version,
                });
            }
        };
        Ok(adopted.at(self.location(parent, name)))
    }

    fn request(
        &self,
        name: &str,
        settings: Vec<Setting>,
        policy: Option<Policy>,
    ) -> Result<Request, CgroupError> {
        let policy = policy.filter(|policy| !policy.allows_all());
        Ok(Request {
            name: name.to_owned(),
            settings,
            program: self.program(policy.as_ref())?,
            policy,
        })
    }

    fn program(&self, policy: Option<&Policy>) -> Result<Option<OwnedFd>, CgroupError> {
        let (Version::V2, Some(policy)) = (self.version, policy) else {
            return Ok(None);
        };
        let kept = format!("{}{POLICIES_SUFFIX}", self.default_parent);
        let program = policies::program(&self.root, &kept, policy);
        let failed = |source| self.root.error("load a device policy below", "", source);
        program.map(Some).map_err(failed)
    }

    fn location(&self, parent: &str, name: &str) -> Location {
        Location {
            root: self.root.path.clone(),
            parent: parent.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Opens an existing `parent/name`.
    ///
    /// # Errors
    /// `NotFound` when it exists in no hierarchy.
    pub fn open(&self, parent: &str, name: &str) -> Result<Cgroup, CgroupError> {
        let parent = checked_parent(parent)?;
        let name = checked_name(name)?;
        let aside = self.devices_parent();
        let mut candidates = vec![parent];
        if parent == self.default_parent {
            candidates.push(&aside);
        }
        for parent in candidates {
            let found = match self.version {
                Version::V1 => v1::open(self, &below(parent, name))?,
                Version::V2 => v2::open(self, &below(parent, name))?,
            };
            if let Some(found) = found {
                return Ok(found.at(self.location(parent, name)));
            }
        }
        Err(CgroupError::NotFound(below(parent, name)))
    }

    fn create_in(&self, parent: &Parent, request: &Request) -> Result<Cgroup, CgroupError> {
        match self.version {
            Version::V1 => v1::create(parent, request),
            Version::V2 => v2::create(parent, request),
        }
    }

    fn parent(&self, parent: &str, request: &Request) -> Result<Arc<Parent>, CgroupError> {
        let extra = request.extra_controllers();
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(known)) = (extra.is_empty(), parents.get(parent)) {
            return Ok(Arc::clone(known));
        }
        let shared = (parent == self.default_parent).then(Policy::standard);
        let opened = Arc::new(match self.version {
            Version::V1 => v1::open_parent(self, parent, shared.as_ref(), &extra)?,
            Version::V2 => v2::open_parent(self, parent, shared.as_ref(), &extra)?,
        });
        if extra.is_empty() {
            parents.insert(parent.to_owned(), Arc::clone(&opened));
        }
        Ok(opened)
    }

    fn forget(&self, parent: &str) {
        self.parents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(parent);
    }
}

impl Request {
    /// Controllers needed beyond those every cgroup has.
    fn extra_controllers(&self) -> Vec<&str> {
        let mut extra: Vec<&str> = Vec::new();
        for setting in &self.settings {
            let name = setting.controller.as_ref();
            if name != "cgroup" && !v1::ALWAYS.contains(&name) && !extra.contains(&name) {
                extra.push(name);
            }
        }
        extra
    }
}

/// A path below a parent, which may be the hierarchy's root.
pub(crate) fn below(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        return name.to_owned();
    }
    format!("{parent}/{name}")
}

/// Strips slashes at both ends and refuses what would lead elsewhere. Nothing is the root.
fn checked_parent(parent: &str) -> Result<&str, CgroupError> {
    let trimmed = parent.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(trimmed);
    }
    for part in trimmed.split('/') {
        check_component(part, "cgroup parent", parent)?;
    }
    Ok(trimmed)
}

fn checked_name(name: &str) -> Result<&str, CgroupError> {
    if name.contains('/') {
        return Err(CgroupError::invalid(
            "cgroup name",
            format!("\"{name}\" has a slash"),
        ));
    }
    check_component(name, "cgroup name", name)?;
    Ok(name)
}

fn check_component(part: &str, what: &str, whole: &str) -> Result<(), CgroupError> {
    let reason = match part {
        "" => "has an empty component",
        "." | ".." => "has a relative component",
        _ if part.len() > NAME_MAX => "is too long",
        _ if part.contains(['\0', '\n']) => "has a control character",
        _ => return Ok(()),
    };
    Err(CgroupError::invalid(
        what,
        format!("\"{}\" {reason}", whole.escape_debug()),
    ))
}

#[cfg(test)]
mod tests {
    use super::{checked_name, checked_parent};

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["..", "a/../b", "a//b", ".", "x\n", "/..", "/./"] {
            assert!(checked_parent(bad).is_err(), "{bad:?}");
        }
        assert_eq!(checked_parent("/").expect("the root"), "");
        assert_eq!(checked_parent("/a/b/").expect("fine"), "a/b");
        assert!(checked_name("a/b").is_err());
        assert!(checked_name("").is_err());
        assert!(checked_name(&"x".repeat(256)).is_err());
        assert!(checked_name("0123abc").is_ok());
    }
}
