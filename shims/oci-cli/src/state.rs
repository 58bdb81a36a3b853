//! The record of a container: one directory below `--root`, as `docs/formats.md` says.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use amphora_cgroup::systemd::Unit;
use amphora_cgroup::{Cgroup, CgroupError};
use amphora_spec::runtime::{Resources, Spec};
use amphora_sys::pidfd;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Result, RuncError};
use crate::{Context, scope};

/// Version of the record.
const VERSION: u32 = 1;
/// Where the first process of a created container waits.
const FIFO: &str = "exec.fifo";
const LOCK: &str = "lock";
/// Locked while hooks run that come before the program.
const STARTING: &str = "starting";
const RECORD: &str = "state.json";
/// The configuration as it was at `create`: a bundle may change.
const CONFIG: &str = "config.json";
const ID_MAX: usize = 1024;

/// The record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// 0 while it is being created.
    pub(crate) pid: i32,
    /// Start time of the process, in clock ticks since boot: a pid alone may be another's by now.
    pub(crate) start_time: u64,
    pub(crate) created: String,
    pub(crate) owner: String,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Parent and name, relative to every hierarchy's root; written down before it is made.
    pub(crate) cgroup: (String, String),
    /// Inode numbers of its directories, once it is made: another's of that name is not ours.
    pub(crate) cgroup_inodes: Vec<u64>,
    /// `--no-new-keyring`, which holds for `exec` too.
    #[serde(default)]
    pub(crate) no_new_keyring: bool,
    /// The unit of systemd's that it is, with `--systemd-cgroup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) systemd: Option<Unit>,
}

impl Record {
    /// Of a container that is being created.
    pub(crate) fn new(
        context: &Context<'_>,
        id: &str,
        bundle: PathBuf,
        spec: &Spec,
    ) -> Result<Self> {
        let (cgroup, systemd) = scope::place(context, spec, id)?;
        Ok(Self {
            version: VERSION,
            id: id.to_owned(),
            rootfs: bundle.join(&spec.root.path),
            bundle,
            pid: 0,
            start_time: 0,
            created: now(),
            owner: rustix::process::getuid().as_raw().to_string(),
            annotations: spec.annotations.clone(),
            cgroup,
            cgroup_inodes: Vec::new(),
            no_new_keyring: false,
            systemd,
        })
    }
}

/// What a container is doing, in the words of the runtime specification and runc's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's directory, held.
#[derive(Debug)]
pub(crate) struct Container {
    dir: PathBuf,
    /// Locked while a command changes the container; gone with the process.
    lock: Option<fs::File>,
    pub(crate) record: Record,
}

/// `/run/amphora-runc`, or below the user's run-time directory.
pub(crate) fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match own {
        Some(dir) if !rustix::process::getuid().is_root() => Path::new(&dir).join("amphora-runc"),
        _ => PathBuf::from("/run/amphora-runc"),
    }
}

/// The time as RFC 3339, with nanoseconds.
pub(crate) fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

fn check_id(id: &str) -> Result {
    let letter = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > ID_MAX || matches!(id, "." | "..") || !id.chars().all(letter) {
        return Err(RuncError::usage(format!(
            "invalid container ID format: \"{id}\""
        )));
    }
    Ok(())
}

impl Container {
    /// Claims a name. What is made is removed by [`Container::remove`].
    pub(crate) fn claim(root: &Path, record: Record) -> Result<Self> {
        check_id(&record.id)?;
        let dir = root.join(&record.id);
        let what = || format!("failed to make {}", dir.display());
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o711)
            .recursive(true)
            .create(root)
            .map_err(RuncError::file(what()))?;
        match fs::DirBuilder::new().mode(0o711).create(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuncError::Exists);
            }
            Err(error) => return Err(RuncError::file(what())(error)),
        }
        let mut made = Self {
            dir,
            lock: None,
            record,
        };
        // A `delete --force` may take the new directory for a leftover and remove it, and another
        // `create` may have made it anew by then: what is not ours is left alone.
        let own = fs::metadata(&made.dir).map(|now| now.ino());
        let locked = made.take_lock(true);
        let still = fs::metadata(&made.dir).map(|now| now.ino());
        match (own, still) {
            (Ok(own), Ok(still)) if own == still && !made.dir.join(RECORD).exists() => {}
            _ => return Err(RuncError::Exists),
        }
        if let Err(error) = locked {
            made.remove();
            return Err(error);
        }
        Ok(made)
    }

    /// Finds a container, without waiting for who changes it.
    pub(crate) fn find(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let dir = root.join(id);
        let record = match fs::read(dir.join(RECORD)) {
            Ok(bytes) => parse_record(&dir, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuncError::NoSuchContainer);
            }
            Err(error) => {
                return Err(RuncError::file(format!("failed to read the state of {id}"))(error));
            }
        };
        Ok(Self {
            dir,
            lock: None,
            record,
        })
    }

    /// Finds a container, and keeps others from changing it.
    pub(crate) fn hold(root: &Path, id: &str) -> Result<Self> {
        let mut found = Self::find(root, id)?;
        found.take_lock(false)?;
        // Whoever had the lock may have changed or removed it.
        let lock = found.lock.take();
        let mut found = Self::find(root, id)?;
        found.lock = lock;
        Ok(found)
    }

    /// Says that the container is being started, until what is returned goes.
    pub(crate) fn begin_start(&self) -> Result<fs::File> {
        let failed = || RuncError::file(format!("failed to lock {}", self.dir.display()));
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.dir.join(STARTING)).map_err(failed())?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(RuncError::State(
                "cannot start a container that is being started".to_owned(),
            )),
            Err(errno) => Err(failed()(errno.into())),
        }
    }

    /// Keeps others from changing the container again, if it still is the same and waits.
    pub(crate) fn hold_again(&mut self, root: &Path) -> Result {
        let now = Self::hold(root, &self.record.id)?;
        let same = |record: &Record| (record.pid, record.start_time);
        if same(&now.record) != same(&self.record) {
            return Err(RuncError::NoSuchContainer);
        }
        *self = now;
        match self.status()? {
            Status::Created => Ok(()),
            other => Err(RuncError::State(format!(
                "the container is {} and no longer waits for its start",
                other.word()
            ))),
        }
    }

    /// Removes what a killed `create` left without a record; `false` when there is one by now.
    pub(crate) fn remove_leftover(root: &Path, id: &str) -> Result<bool> {
        check_id(id)?;
        let dir = root.join(id);
        if !dir.is_dir() {
            return Ok(true);
        }
        // Whoever is about to write the record has the lock.
        let lock = match lock_in(&dir, true) {
            Err(RuncError::NoSuchContainer) => return Ok(true),
            lock => lock?,
        };
        let left = !dir.join(RECORD).exists();
        if left {
            remove_dir(&dir);
        }
        drop(lock);
        Ok(left)
    }

    /// Lets others change the container.
    pub(crate) fn unlock(&mut self) {
        self.lock = None;
    }

    fn take_lock(&mut self, make: bool) -> Result {
        self.lock = Some(lock_in(&self.dir, make)?);
        Ok(())
    }

    /// Lists the names of all containers, in order.
    pub(crate) fn names(root: &Path) -> Result<Vec<String>> {
        let what = || format!("failed to list {}", root.display());
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RuncError::file(what())(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(RuncError::file(what()))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Writes the record: whole, or not at all.
    pub(crate) fn save(&self) -> Result {
        let text = serde_json::to_vec(&self.record).map_err(|source| RuncError::Malformed {
            what: "the state".to_owned(),
            source,
        })?;
        self.write(RECORD, &text)
    }

    /// Keeps the configuration for `exec` and `delete`.
    pub(crate) fn save_config(&self, text: &[u8]) -> Result {
        self.write(CONFIG, text)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result {
        // Whoever writes here has the lock: what a kill has left under the new name is nobody's.
        let new = self.dir.join(format!(".{name}"));
        let mut open = fs::OpenOptions::new();
        open.write(true).create(true).truncate(true);
        replace(&open, &new, &self.dir.join(name), bytes, 0o600)
    }

    /// The configuration as it was at `create`.
    pub(crate) fn config(&self) -> Result<Spec> {
        let (mut spec, _) = crate::bundle::read_spec(&self.dir.join(CONFIG))?;
        crate::bundle::absolute_sources(&mut spec, &self.record.bundle);
        Ok(spec)
    }

    /// Writes down which limits hold now, where they stood at `create`.
    pub(crate) fn note_resources(&self, changed: &Resources) -> Result {
        let path = self.dir.join(CONFIG);
        let malformed = |source| RuncError::Malformed {
            what: path.display().to_string(),
            source,
        };
        let failed = RuncError::file(format!("failed to read {}", path.display()));
        let text = fs::read(&path).map_err(failed)?;
        let mut config: Value = serde_json::from_slice(&text).map_err(malformed)?;
        let changed = serde_json::to_value(changed).map_err(malformed)?;
        merge(&mut config, json!({"linux": {"resources": changed}}));
        let text = serde_json::to_vec(&config).map_err(malformed)?;
        self.save_config(&text)
    }

    pub(crate) fn fifo(&self) -> PathBuf {
        self.dir.join(FIFO)
    }

    /// The directory of the socket on which it says that it is ready.
    pub(crate) fn notify(&self) -> PathBuf {
        self.dir.join("notify")
    }

    /// The first process; `None` when it has ended.
    pub(crate) fn process(&self) -> Result<Option<OwnedFd>> {
        let (pid, start) = (self.record.pid, self.record.start_time);
        let failed = |error| RuncError::file(format!("failed to find process {pid}"))(error);
        let Some(process) = pidfd::open(pid, start).map_err(failed)? else {
            return Ok(None);
        };
        // A zombie whose parent does not care has ended all the same.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        Ok((!matches!(state, None | Some('Z' | 'X'))).then_some(process))
    }

    /// The cgroup; `None` when it is gone.
    pub(crate) fn cgroup(&self) -> Result<Option<Cgroup>> {
        let Some(cgroup) = self.open_cgroup()? else {
            return Ok(None);
        };
        // Limits may have brought in more directories since, and a removal that was cut short may have
        // left only some.
        let now = inodes(&cgroup).map_err(RuncError::file("failed to look at the cgroup"))?;
        let noted = &self.record.cgroup_inodes;
        let ours = noted.iter().any(|inode| now.contains(inode));
        Ok(ours.then_some(cgroup))
    }

    /// Whether it was made without a cgroup.
    pub(crate) fn has_no_cgroup(&self) -> bool {
        self.record.pid != 0 && self.record.cgroup_inodes.is_empty()
    }

    /// The processes of the cgroup; without one, those of the pid namespace.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        if !self.has_no_cgroup() {
            let cgroup = self.cgroup()?;
            return Ok(cgroup.map_or_else(|| Ok(Vec::new()), |cgroup| cgroup.pids())?);
        }
        if self.process()?.is_none() {
            return Ok(Vec::new());
        }
        let first = self.record.pid;
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let theirs = namespace(&first.to_string());
        if theirs.is_none() || theirs == namespace("self") {
            return Ok(vec![first]);
        }
        let entries = fs::read_dir("/proc").map_err(RuncError::file("failed to list /proc"))?;
        let mut pids: Vec<i32> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .filter(|name| namespace(name) == theirs)
            .filter_map(|name| name.parse().ok())
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    fn open_cgroup(&self) -> Result<Option<Cgroup>> {
        let (parent, name) = &self.record.cgroup;
        match Cgroup::open(parent, name) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(CgroupError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down which cgroup was made.
    pub(crate) fn note_cgroup(&mut self, cgroup: &Cgroup) -> Result {
        let failed = RuncError::file("failed to look at the cgroup");
        self.record.cgroup_inodes = inodes(cgroup).map_err(failed)?;
        self.save()
    }

    /// Removes the cgroup that a `create` may have made before it was killed: one that is in use is
    /// somebody's, and stays.
    pub(crate) fn remove_unclaimed_cgroup(&self) {
        if self.record.pid == 0
            && let Ok(Some(cgroup)) = self.open_cgroup()
            && cgroup.pids().is_ok_and(|pids| pids.is_empty())
        {
            let _ = cgroup.remove_within(std::time::Duration::ZERO);
        }
    }

    pub(crate) fn status(&self) -> Result<Status> {
        if self.record.pid == 0 {
            return Ok(Status::Creating);
        }
        if self.process()?.is_none() {
            return Ok(Status::Stopped);
        }
        if self.waits() {
            return Ok(Status::Created);
        }
        let frozen = self
            .cgroup()?
            .is_some_and(|c| c.is_frozen().unwrap_or(false));
        Ok(if frozen {
            Status::Paused
        } else {
            Status::Running
        })
    }

    /// Whether the process stands at the FIFO: it is there, and somebody reads it.
    fn waits(&self) -> bool {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(CWD, self.fifo(), flags, Mode::empty()).is_ok()
    }

    /// The state as the specification has it, for `state` and hooks.
    pub(crate) fn oci_state(&self, status: Status) -> serde_json::Value {
        let record = &self.record;
        let pid = if status == Status::Stopped {
            0
        } else {
            record.pid
        };
        serde_json::json!({
            "ociVersion": "1.2.1",
            "id": record.id,
            "status": status.word(),
            "pid": pid,
            "bundle": record.bundle,
            "annotations": record.annotations,
        })
    }

    /// Removes the directory; the name is free then.
    pub(crate) fn remove(self) {
        remove_dir(&self.dir);
    }
}

/// Puts the fields of one object into those of another.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A lock of this process alone, in a container's directory: the container's process starts as a copy
/// of this one, and is to hold nothing while it waits. Where `make` is not given and nobody has made
/// the file, or where the directory went meanwhile, there is no such container.
fn lock_in(dir: &Path, make: bool) -> Result<fs::File> {
    let path = dir.join(LOCK);
    let failed = || RuncError::file(format!("failed to lock {}", dir.display()));
    let file = fs::OpenOptions::new()
        .write(true)
        .create(make)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RuncError::NoSuchContainer);
        }
        Err(error) => return Err(failed()(error)),
    };
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| failed()(errno.into()))?;
    let locked = file.metadata().map_err(failed())?.ino();
    match fs::metadata(&path) {
        Ok(now) if now.ino() == locked => Ok(file),
        _ => Err(RuncError::NoSuchContainer),
    }
}

fn inodes(cgroup: &Cgroup) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for path in cgroup.paths() {
        inodes.push(fs::metadata(path)?.ino());
    }
    inodes.sort_unstable();
    Ok(inodes)
}

/// Removes a container's directory, its record first: without one nothing is there.
fn remove_dir(dir: &Path) {
    let _ = fs::remove_file(dir.join(RECORD));
    let _ = fs::remove_dir_all(dir);
}

fn parse_record(dir: &Path, bytes: &[u8]) -> Result<Record> {
    let what = || dir.join(RECORD).display().to_string();
    let record: Record = serde_json::from_slice(bytes).map_err(|source| RuncError::Malformed {
        what: what(),
        source,
    })?;
    if record.version != VERSION {
        return Err(RuncError::State(format!(
            "{} has version {}, not {VERSION}",
            what(),
            record.version
        )));
    }
    Ok(record)
}

/// Writes a file that appears whole: engines watch for a pid file.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A kill may have left one of an equal process number.
    let unique = amphora_sys::pidfd::start_time(rustix::process::getpid().as_raw_nonzero().get());
    let unique = unique.unwrap_or_default();
    let new = path.with_file_name(format!(".{name}.{}.{unique}", std::process::id()));
    let mut open = fs::OpenOptions::new();
    open.write(true).create_new(true);
    replace(&open, &new, path, bytes, mode)
}

/// Writes a file under a new name and gives it its own.
fn replace(open: &fs::OpenOptions, new: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result {
    let failed = || RuncError::file(format!("failed to write {}", path.display()));
    let mut file = open.clone().mode(mode).open(new).map_err(failed())?;
    let written = io::Write::write_all(&mut file, bytes).and_then(|()| fs::rename(new, path));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written.map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_limits_stand_beside_the_others() {
        let mut config = json!({"linux": {"resources": {"cpu": {"shares": 5, "quota": 7}}}});
        merge(
            &mut config,
            json!({"linux": {"resources": {"cpu": {"shares": 6}, "pids": {"limit": 1}}}}),
        );
        let want = json!({"cpu": {"shares": 6, "quota": 7}, "pids": {"limit": 1}});
        assert_eq!(config["linux"]["resources"], want);
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for id in ["", ".", "..", "a/b", "a b", "ä", "a\0"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["a", "A-1_+.x", "...", "0"] {
            assert!(check_id(id).is_ok(), "{id:?}");
        }
    }
}
