//! A container's cgroup: its directories, held open, and what can be done with them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amphora_spec::runtime::Resources;
use amphora_sys::mount::{self, MountAttr};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::devices::Policy;
use crate::dir::Dir;
use crate::hierarchy::{DEFAULT_PARENT, Hierarchies, below};
use crate::settings::{self, Present};
use crate::{CgroupError, Detail, OomWatch, Stats, Version, detail, kill, stats, v1, v2};

/// How long freezing may take.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long killing may take: what is killed may have much memory to give back.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long removing waits for the last exit.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);
/// Deepest tree of cgroups made inside a container that is removed with it.
const DEPTH_MAX: usize = 32;

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    /// v2: one; v1: one per hierarchy in use.
    parts: Vec<Part>,
    location: Location,
}

/// Where a cgroup lies below the mount point.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Location {
    pub(crate) root: PathBuf,
    pub(crate) parent: String,
    pub(crate) name: String,
}

/// One directory and the controllers that act through it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) controllers: Vec<String>,
    pub(crate) dir: Dir,
}

/// What is needed to find a cgroup again, in another process or later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// Version it was made with.
    pub version: Version,
    /// Mount point of the hierarchies.
    pub root: PathBuf,
    /// Parent, relative to each hierarchy.
    pub parent: String,
    /// Name below the parent.
    pub name: String,
    /// Its directories at the time.
    pub dirs: Vec<HandleDir>,
}

/// Limits as they were before an update.
#[derive(Debug, Default)]
pub struct Previous {
    settings: Vec<settings::Setting>,
    devices: Option<PreviousDevices>,
}

/// A device policy as it was.
#[derive(Debug)]
enum PreviousDevices {
    /// What `devices.list` said.
    V1(String),
    V2(Option<OwnedFd>),
}

/// One directory of a [`Handle`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleDir {
    /// Controllers that act through it.
    pub controllers: Vec<String>,
    /// Absolute path.
    pub path: PathBuf,
}

/// The container's own cgroup directories, as detached read-only mounts.
#[derive(Debug)]
pub enum CgroupMounts {
    /// One directory per hierarchy, by name; controllers mounted together are joined by commas.
    V1(Vec<(String, OwnedFd)>),
    /// The directory, to be attached at `/sys/fs/cgroup` itself.
    V2(OwnedFd),
}

impl Handle {
    /// Opens the cgroup; `None` when it is gone.
    ///
    /// # Errors
    /// When no cgroups are mounted or a directory cannot be opened.
    pub fn open(&self) -> Result<Option<Cgroup>, CgroupError> {
        match Hierarchies::at(&self.root)?.open(&self.parent, &self.name) {
            Ok(found) => Ok(Some(found)),
            Err(CgroupError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Cgroup {
    /// Makes `parent/name` on this host; see [`Hierarchies::create`].
    ///
    /// # Errors
    /// Those of [`Hierarchies::create`].
    pub fn create(parent: &str, name: &str, resources: &Resources) -> Result<Self, CgroupError> {
        Hierarchies::system()?.create(parent, name, resources)
    }

    /// Opens the existing `parent/name` on this host.
    ///
    /// # Errors
    /// `NotFound` when it exists in no hierarchy.
    pub fn open(parent: &str, name: &str) -> Result<Self, CgroupError> {
        Hierarchies::system()?.open(parent, name)
    }

    pub(crate) fn new(version: Version, parts: Vec<Part>) -> Self {
        Self {
            version,
            parts,
            location: Location::default(),
        }
    }

    /// Stands for a cgroup where there is none: whoever enters it stays where it is.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Version::V1, Vec::new())
    }

    pub(crate) fn at(mut self, location: Location) -> Self {
        self.location = location;
        self
    }

    pub(crate) fn push(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Notes one more controller for a directory.
    pub(crate) fn also(&mut self, at: usize, controller: &str) {
        if let Some(part) = self.parts.get_mut(at) {
            part.controllers.push(controller.to_owned());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The directory through which a controller acts.
    pub(crate) fn dir_of(&self, controller: &str) -> Option<&Dir> {
        if self.version == Version::V2 {
            return self.parts.first().map(|part| &part.dir);
        }
        let acts = |part: &&Part| part.controllers.iter().any(|have| have == controller);
        self.parts.iter().find(acts).map(|part| &part.dir)
    }

    pub(crate) fn first(&self) -> Result<&Dir, CgroupError> {
        let missing = || CgroupError::NotFound(self.location.name.clone());
        self.parts.first().map(|part| &part.dir).ok_or_else(missing)
    }

    /// The directory in which to look for the tasks.
    fn tasks_dir(&self) -> Result<&Dir, CgroupError> {
        self.dir_of("freezer").map_or_else(|| self.first(), Ok)
    }

    /// Takes back a creation that failed; there is nothing in it.
    pub(crate) fn undo(&self) {
        for part in &self.parts {
            // The failure being reported is the one that counts.
            let _ = remove_tree(&part.dir, Instant::now(), 0);
        }
    }

    /// Returns the version it was made with.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns what finds it again later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        let dir = |part: &Part| HandleDir {
            controllers: part.controllers.clone(),
            path: part.dir.path.clone(),
        };
        Handle {
            version: self.version,
            root: self.location.root.clone(),
            parent: self.location.parent.clone(),
            name: self.location.name.clone(),
            dirs: self.parts.iter().map(dir).collect(),
        }
    }

    /// Opens it once more, for somebody else to hold.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self, CgroupError> {
        let part = |part: &Part| {
            let fd = part.dir.fd.try_clone();
            let fd = fd.map_err(|source| part.dir.error("hold", "", source))?;
            let path = part.dir.path.clone();
            Ok(Part {
                controllers: part.controllers.clone(),
                dir: Dir { path, fd },
            })
        };
        Ok(Self {
            version: self.version,
            parts: self.parts.iter().map(part).collect::<Result<_, _>>()?,
            location: self.location.clone(),
        })
    }

    /// Returns its path relative to each hierarchy's root, with a leading slash.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", below(&self.location.parent, &self.location.name))
    }

    /// Returns its directories.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        self.parts
            .iter()
            .map(|part| part.dir.path.as_path())
            .collect()
    }

    /// Returns the directory for `CLONE_INTO_CGROUP`; `None` on v1.
    #[must_use]
    pub fn launch_fd(&self) -> Option<BorrowedFd<'_>> {
        match self.version {
            Version::V1 => None,
            Version::V2 => self.parts.first().map(|part| part.dir.fd.as_fd()),
        }
    }

    /// Opens the `tasks` files into which the child writes "0" to move itself; none on v2.
    ///
    /// # Errors
    /// What `openat(2)` answers.
    pub fn tasks_fds(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        if self.version == Version::V2 {
            return Ok(Vec::new());
        }
        self.parts
            .iter()
            .map(|part| open_tasks(&part.dir))
            .collect()
    }

    /// Opens the `cgroup.procs` files by which a process of another parent is moved in.
    ///
    /// # Errors
    /// What `openat(2)` answers.
    pub fn procs_fds(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let open = |part: &Part| {
            let file = part.dir.open_file("cgroup.procs", OFlags::WRONLY);
            file.map_err(|source| part.dir.error("open", "cgroup.procs", source))
        };
        self.parts.iter().map(open).collect()
    }

    /// Clones its directories as detached mounts: read-only, nosuid, nodev, noexec.
    ///
    /// # Errors
    /// What `open_tree(2)` and `mount_setattr(2)` answer.
    pub fn mounts(&self) -> Result<CgroupMounts, CgroupError> {
        if self.version == Version::V2 {
            return Ok(CgroupMounts::V2(clone_mount(self.first()?)?));
        }
        let clone = |part: &Part| Ok((part.controllers.join(","), clone_mount(&part.dir)?));
        Ok(CgroupMounts::V1(
            self.parts
                .iter()
                .map(clone)
                .collect::<Result<_, CgroupError>>()?,
        ))
    }

    /// Reads what it uses.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        stats::read(self)
    }

    /// Reads everything that is counted. `pid` is a process in it: what it has no directory for, it
    /// shares with others.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn detail(&self, pid: i32) -> Result<Detail, CgroupError> {
        detail::read(self, pid)
    }

    /// Listens for memory running out; `None` where nobody would tell.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>, CgroupError> {
        OomWatch::new(self)
    }

    /// The directory of a v1 hierarchy that a process is in.
    pub(crate) fn hierarchy_dir(&self, controller: &str, pid: i32) -> Option<Dir> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            names
                .split(',')
                .any(|name| name == controller)
                .then_some(path)
        })?;
        let root = Dir::open(&self.location.root.join(controller)).ok()?;
        root.child(path.trim_start_matches('/')).ok()
    }

    /// Counts the processes that the kernel killed because memory ran out.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        stats::oom_kills(self)
    }

    /// Lists the processes in it and in cgroups below.
    ///
    /// # Errors
    /// When `cgroup.procs` cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        kill::pids(self.tasks_dir()?)
    }

    /// Sends a signal (1 to 64) to every process in it and in cgroups below.
    ///
    /// # Errors
    /// When `cgroup.procs` cannot be read.
    pub fn signal(&self, number: i32) -> Result<(), CgroupError> {
        kill::signal(self.tasks_dir()?, number)
    }

    /// Stops every process and waits until all have stopped.
    ///
    /// # Errors
    /// `Timeout`, after letting them run again; `MissingController` on v1 without `freezer`.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.freeze_within(FREEZE_DEADLINE)
    }

    /// Lets stopped processes run again.
    ///
    /// # Errors
    /// What the kernel answers; `MissingController` on v1 without `freezer`.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let (dir, file, value) = match self.version {
            Version::V2 => (self.first()?, "cgroup.freeze", "0"),
            Version::V1 => (self.freezer()?, "freezer.state", "THAWED"),
        };
        dir.write(file, value)
            .map_err(|source| dir.error("write", file, source))
    }

    /// Says whether its processes are stopped, or on the way there.
    ///
    /// # Errors
    /// When the state cannot be read; `MissingController` on v1 without `freezer`.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let (dir, file, running) = match self.version {
            Version::V2 => (self.first()?, "cgroup.freeze", "0"),
            Version::V1 => (self.freezer()?, "freezer.state", "THAWED"),
        };
        let state = dir.read_optional(file)?;
        Ok(state.is_some_and(|state| state.trim() != running))
    }

    fn freezer(&self) -> Result<&Dir, CgroupError> {
        self.dir_of("freezer")
            .ok_or_else(|| CgroupError::MissingController {
                controller: "freezer".to_owned(),
                field: "pause".to_owned(),
            })
    }

    fn freeze_within(&self, limit: Duration) -> Result<(), CgroupError> {
        let (dir, file, value) = match self.version {
            Version::V2 => (self.first()?, "cgroup.freeze", "1"),
            Version::V1 => (self.freezer()?, "freezer.state", "FROZEN"),
        };
        let write = |value| {
            dir.write(file, value)
                .map_err(|e| dir.error("write", file, e))
        };
        write(value)?;
        let frozen = wait_until(Instant::now() + limit, || {
            if self.version == Version::V2 {
                let events = dir.read("cgroup.events");
                let events = events.map_err(|e| dir.error("read", "cgroup.events", e))?;
                return Ok(crate::dir::keyed(&events, "frozen") == Some(1));
            }
            let state = dir.read(file).map_err(|e| dir.error("read", file, e))?;
            if state.trim() == "FROZEN" {
                return Ok(true);
            }
            // v1 looks at its tasks again only when it is told to.
            write(value)?;
            Ok(false)
        })?;
        if frozen {
            return Ok(());
        }
        self.thaw()?;
        Err(CgroupError::Timeout {
            action: "freeze",
            path: dir.path.clone(),
        })
    }

    /// Kills every process in it and in cgroups below, and waits until none is left.
    ///
    /// # Errors
    /// `Timeout` when some do not die in time.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + KILL_DEADLINE;
        if self.version == Version::V2 {
            return kill::kill_v2(self.first()?, deadline);
        }
        // Frozen processes cannot multiply while they are being killed. Failing to freeze only
        // makes it take more rounds.
        let frozen = self.freeze_within(Duration::from_millis(100)).is_ok();
        let dir = self.tasks_dir()?;
        let thaw = || if frozen { self.thaw() } else { Ok(()) };
        kill::kill_v1(dir, deadline, thaw)
    }

    /// Removes it, with what was made below it; waits a little for the last exit. One that is gone
    /// already is no error.
    ///
    /// # Errors
    /// `Timeout` when processes are left in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.remove_within(REMOVE_DEADLINE)
    }

    /// Removes it as [`Cgroup::remove`] does, waiting so long.
    ///
    /// # Errors
    /// `Timeout` when processes are left in it; all directories have been tried then.
    pub fn remove_within(&self, limit: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + limit;
        let mut first = Ok(());
        for part in &self.parts {
            let result = remove_tree(&part.dir, deadline, 0);
            if first.is_ok() {
                first = result;
            }
        }
        first
    }

    /// Changes limits. What `resources` leaves out stays as it is. Returns what was changed, for
    /// [`Cgroup::restore`].
    ///
    /// # Errors
    /// Whatever is refused, by field, before anything is changed; otherwise what the kernel
    /// answers: what had been changed is then as it was before.
    pub fn update(&mut self, resources: &Resources) -> Result<Previous, CgroupError> {
        let policy = self.other_policy(resources)?;
        let present = match self.dir_of("cpu") {
            Some(dir) if self.version == Version::V2 => dir.read_optional("cpu.max")?,
            _ => None,
        };
        let quota = present
            .as_deref()
            .and_then(|text| text.split(' ').next())
            .unwrap_or("max");
        let memory_bytes = match self.dir_of("memory") {
            Some(dir) if self.version == Version::V2 => dir.read_number("memory.current")?,
            _ => None,
        };
        let present = Some(Present {
            cpu_quota: quota,
            memory_bytes: memory_bytes.unwrap_or(0),
        });
        let settings = settings::from_resources(self.version, resources, present)?;
        self.extend(&settings)?;
        let mut previous = Previous {
            settings: settings::present(&settings, |controller| self.dir_of(controller)),
            devices: None,
        };
        let applied = settings::apply(&settings, |controller| self.dir_of(controller));
        let applied = applied.and_then(|()| {
            previous.devices = policy
                .map(|policy| self.change_policy(&policy))
                .transpose()?;
            Ok(())
        });
        if applied.is_err() {
            self.restore(&previous);
        }
        applied.map(|()| previous)
    }

    /// The device policy that an update asks for. One that many share cannot be changed for one.
    fn other_policy(&self, resources: &Resources) -> Result<Option<Policy>, CgroupError> {
        const FIELD: &str = "linux.resources.devices";
        if resources.devices.is_empty() {
            return Ok(None);
        }
        let policy = Policy::from_rules(&resources.devices)?;
        if self.location.parent != DEFAULT_PARENT {
            return Ok(Some(policy));
        }
        if policy == Policy::standard() {
            return Ok(None);
        }
        Err(CgroupError::Unsupported {
            field: format!("changing {FIELD}"),
            version: self.version,
        })
    }

    fn change_policy(&self, policy: &Policy) -> Result<PreviousDevices, CgroupError> {
        if self.version == Version::V2 {
            let old = v2::replace_policy(self.first()?, policy)?;
            return Ok(PreviousDevices::V2(old));
        }
        let missing = || CgroupError::MissingController {
            controller: "devices".to_owned(),
            field: "linux.resources.devices".to_owned(),
        };
        let dir = self.dir_of("devices").ok_or_else(missing)?;
        v1::change_policy(dir, policy).map(PreviousDevices::V1)
    }

    /// Takes an update back as far as the kernel lets it.
    pub fn restore(&self, previous: &Previous) {
        // Whoever calls this reports the failure that led here.
        for setting in &previous.settings {
            let _ = settings::apply(std::slice::from_ref(setting), |name| self.dir_of(name));
        }
        let _ = settings::apply(&previous.settings, |controller| self.dir_of(controller));
        match (&previous.devices, self.first()) {
            (Some(PreviousDevices::V1(list)), _) => {
                if let Some(dir) = self.dir_of("devices") {
                    v1::restore_policy(dir, list);
                }
            }
            (Some(PreviousDevices::V2(old)), Ok(dir)) => v2::restore_program(dir, old.as_ref()),
            _ => {}
        }
    }

    /// Brings in controllers that no limit has needed so far.
    fn extend(&mut self, settings: &[settings::Setting]) -> Result<(), CgroupError> {
        let has = |part: &Part, name: &str| part.controllers.iter().any(|have| have == name);
        for setting in settings {
            let name = setting.controller.as_ref();
            if name == "cgroup" || self.parts.iter().any(|part| has(part, name)) {
                continue;
            }
            let host = Hierarchies::at(&self.location.root)?;
            let added = match self.version {
                Version::V1 => {
                    let part = v1::extend(&host, &self.location, name)?;
                    if let Some(part) = &part {
                        kill::move_all(self.tasks_dir()?, &part.dir)?;
                    }
                    part.map(|part| self.parts.push(part))
                }
                Version::V2 => {
                    v2::extend(&host, &self.location.parent, name)?.then(|| self.also(0, name))
                }
            };
            added.ok_or_else(|| CgroupError::MissingController {
                controller: name.to_owned(),
                field: setting.field.to_string(),
            })?;
        }
        Ok(())
    }
}

pub(crate) fn open_tasks(dir: &Dir) -> Result<OwnedFd, CgroupError> {
    let file = dir.open_file("tasks", OFlags::WRONLY);
    file.map_err(|source| dir.error("open", "tasks", source))
}

fn clone_mount(dir: &Dir) -> Result<OwnedFd, CgroupError> {
    let attr_set = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let attr = MountAttr {
        attr_set,
        ..MountAttr::default()
    };
    let tree = mount::clone_tree(dir.fd.as_fd(), Path::new(""), false)
        .map_err(|source| dir.error("clone the mount of", "", source))?;
    mount::set_attr(tree.as_fd(), false, &attr)
        .map_err(|source| dir.error("make read-only the clone of", "", source))?;
    Ok(tree)
}

/// Removes a directory and those below it. Only waiting is bounded by the deadline.
fn remove_tree(dir: &Dir, deadline: Instant, depth: usize) -> Result<(), CgroupError> {
    let Some(name) = dir.path.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    let above = match dir.child("..") {
        Ok(above) => above,
        Err(error) if gone(&error) => return Ok(()),
        Err(source) => return Err(dir.error("open", "..", source)),
    };
    let mut looked = false;
    let removed = wait_until(deadline, || match above.rmdir(name) {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            if !looked && depth < DEPTH_MAX {
                looked = true;
                for name in dir.subdirs().unwrap_or_default() {
                    if let Ok(inner) = dir.child(&name) {
                        remove_tree(&inner, deadline, depth + 1)?;
                    }
                }
            }
            Ok(false)
        }
        Err(source) => Err(CgroupError::Io {
            action: "remove",
            path: dir.path.clone(),
            source,
        }),
    })?;
    if removed {
        return Ok(());
    }
    Err(CgroupError::Timeout {
        action: "remove",
        path: dir.path.clone(),
    })
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Asks until the answer is yes or the deadline has passed; at least twice.
pub(crate) fn wait_until(
    deadline: Instant,
    mut done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<bool, CgroupError> {
    const LONGEST: Duration = Duration::from_millis(10);
    let mut pause = Duration::from_micros(100);
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return done();
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST);
    }
}
