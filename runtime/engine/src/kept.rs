//! Volumes that are a file system of their own: mounted once, in a mount namespace that nobody is in,
//! and shared by all who use the volume at a time.
//!
//! Supervisors hold that namespace and hand it on. Which one it is stands in `R/volumes/<name>`, whose
//! lock is held by whoever is about to mount the volume, until its supervisor answers. A volume that
//! nobody uses is mounted by nobody.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphora_spec::ContainerId;
use amphora_sys::{pidfd, tree};
use amphora_volume::{Volume, Volumes};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::MountPoint;
use crate::container::{ContainerView, Status};
use crate::files::Lock;
use crate::{Engine, EngineError, Result};

const VERSION: u32 = 1;

/// Longest that somebody else may be about to mount a volume.
const LOCK_LIMIT: Duration = Duration::from_secs(20);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The lock of a volume's record, and the engine's count of those that it holds.
#[derive(Debug)]
pub(crate) struct Guard {
    file: File,
    count: Arc<AtomicUsize>,
}

impl Guard {
    fn new(file: File, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self {
            file,
            count: Arc::clone(count),
        }
    }

    /// Lets others in while this process has the volume, and says where they find it.
    pub(crate) fn open_to_others(&self, kept: &OwnedFd) -> std::io::Result<Opened> {
        let mut record = read_record(&self.file)?;
        let here = HeldAt {
            pid: std::process::id(),
            descriptor: kept.as_raw_fd(),
        };
        let namespace = record.namespace;
        let there = |place: &HeldAt| *place != here && place.open(namespace).is_some();
        record.at.retain(there);
        record.at.push(here.clone());
        write_record(&self.file, &record)?;
        let file = self.file.try_clone()?;
        flock(&file, FlockOperation::Unlock)?;
        Ok(Opened { file, here })
    }
}

/// The lock of a volume's record, let go while this process has the volume.
#[derive(Debug)]
pub(crate) struct Opened {
    file: File,
    here: HeldAt,
}

impl Opened {
    /// Keeps others out again: while the last of it is unmounted nobody may mount it anew. Whoever
    /// has found it here meanwhile goes on with it.
    pub(crate) fn close(&self) {
        // What takes so long is no start that finds the volume here.
        if lock_within(&self.file, LOCK_LIMIT).is_ok()
            && let Ok(mut record) = read_record(&self.file)
        {
            record.at.retain(|place| *place != self.here);
            // One that stays leads nowhere.
            let _ = write_record(&self.file, &record);
        }
    }
}

/// A process that holds the namespace for a while, and is no supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HeldAt {
    pid: u32,
    descriptor: i32,
}

impl HeldAt {
    /// The namespace, if it is this one and still held.
    fn open(&self, namespace: (u64, u64)) -> Option<OwnedFd> {
        let path = format!("/proc/{}/fd/{}", self.pid, self.descriptor);
        // A stale record may name anything by now: what waits, or acts, when it is opened.
        let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let found = opened.ok()?;
        let stat = fstat(&found).ok()?;
        if (stat.st_dev, stat.st_ino) != namespace {
            return None;
        }
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

fn read_record(mut file: &File) -> std::io::Result<Record> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

fn write_record(mut file: &File, record: &Record) -> std::io::Result<()> {
    let text = serde_json::to_vec(record)?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is recorded of a volume that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Device and inode of the namespace.
    namespace: (u64, u64),
    /// Device and inode of the root of the file system.
    root: (u64, u64),
    /// Who else holds it: commands that are at the files of containers at rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    at: Vec<HeldAt>,
}

impl Engine {
    /// Says whether this process is about to mount volumes that another start in it would wait for.
    pub(crate) fn guards_volumes(&self) -> bool {
        self.guarded.load(Ordering::Relaxed) != 0
    }

    /// Puts right what was left of others with these volumes. One that is to run again takes their
    /// locks itself, so this comes before the first of them is taken.
    pub(crate) fn settle_users(&self, own: &ContainerId, volumes: &[&str]) -> Result<()> {
        let is_kept = |name: &&str| self.kept_path(name).exists();
        if self.guards_volumes() || !volumes.iter().any(is_kept) {
            return Ok(());
        }
        for id in self.ids()?.into_iter().filter(|id| id != own) {
            let run = self.run_dir(&id);
            if !run.is_dir() || Lock::is_held(&run) {
                continue;
            }
            let Ok(config) = self.config(&id) else {
                continue;
            };
            let mut mentioned = config.host.mounts.iter().filter_map(MountPoint::volume);
            if mentioned.any(|name| volumes.contains(&name)) {
                // What is in the way of this start is found and told under the lock.
                let _ = self.reconcile_one(&id);
            }
        }
        Ok(())
    }

    /// Returns the namespace that keeps a volume's file system, and the lock that is to be held until
    /// somebody answers for it. Mounts it where nobody has.
    pub(crate) fn keep_volume(
        &self,
        own: &ContainerId,
        volume: &Volume,
    ) -> Result<(Guard, OwnedFd)> {
        let path = self.kept_path(&volume.name);
        let file = self.open_record(&volume.name)?;
        lock_record(&file, &path, &volume.name)?;
        // Counted from here on: nothing below may start another container.
        let mut guard = Guard::new(file, &self.guarded);
        let mut text = String::new();
        let read = guard.file.read_to_string(&mut text);
        read.map_err(|e| EngineError::file("read", &path, e))?;
        // Empty when it is new, torn where its writer was killed: then nobody has it.
        let record: Option<Record> = serde_json::from_str(&text).ok();
        if let Some(record) = record.filter(|record| record.version == VERSION)
            && let Some(kept) = self.kept_by_others(own, volume, &record)?
        {
            return Ok((guard, kept));
        }
        let mount = self.volumes.mount_device(volume);
        let mount = mount.map_err(EngineError::plain)?;
        let kept = self.note_kept(&mut guard.file, volume, &mount)?;
        Ok((guard, kept))
    }

    fn open_record(&self, name: &str) -> Result<File> {
        let path = self.kept_path(name);
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let opened = open().or_else(|e| match path.parent() {
            Some(dir) if e.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(dir).and_then(|()| open())
            }
            _ => Err(e),
        });
        opened.map_err(|e| EngineError::file("open", &path, e))
    }

    /// Moves a mount into a namespace of its own, and writes down which.
    fn note_kept(&self, file: &mut File, volume: &Volume, mount: &OwnedFd) -> Result<OwnedFd> {
        let path = self.kept_path(&volume.name);
        let look = |fd: &OwnedFd| {
            let stat = fstat(fd).map_err(|e| EngineError::file("look at", &path, e))?;
            Ok::<_, EngineError>((stat.st_dev, stat.st_ino))
        };
        let root = look(mount)?;
        let kept = tree::keep(mount.as_fd()).map_err(EngineError::io(format!(
            "failed to keep volume {} mounted",
            volume.name
        )))?;
        let record = Record {
            version: VERSION,
            namespace: look(&kept)?,
            root,
            at: Vec::new(),
        };
        write_record(file, &record).map_err(|e| EngineError::file("write", &path, e))?;
        Ok(kept)
    }

    /// Asks those who run and mention the volume.
    fn kept_by_others(
        &self,
        own: &ContainerId,
        volume: &Volume,
        record: &Record,
    ) -> Result<Option<OwnedFd>> {
        let (dev, ino) = record.namespace;
        if let Some(kept) = record.at.iter().find_map(|at| at.open(record.namespace)) {
            return Ok(Some(kept));
        }
        for id in self.ids()?.into_iter().filter(|id| id != own) {
            let look = || match self.view(&id) {
                Err(EngineError::NoSuchContainer(_)) => Ok(None),
                Err(error) => {
                    // Whatever it mentions: only one that runs can have the volume mounted.
                    self.reconcile_one(&id)?;
                    match Lock::is_held(&self.run_dir(&id)) {
                        true => Err(error),
                        false => Ok(None),
                    }
                }
                Ok(view) => Ok(Some(view)),
            };
            let Some(view) = look()? else { continue };
            let mut mounts = view.config.host.mounts.iter();
            if !mounts.any(|m| m.volume() == Some(&volume.name)) {
                continue;
            }
            // Its supervisor may have been killed. One that ended with it is left alone here.
            self.reconcile_one(&id)?;
            let Some(view) = look()?.filter(|view| view.status.is_active()) else {
                continue;
            };
            let held = amphora_supervisor::held(&self.run_dir(&id), dev, ino);
            if let Some(kept) = held.map_err(EngineError::plain)? {
                return Ok(Some(kept));
            }
            if let Some(kept) = self.kept_by_orphan(&view, volume, record)? {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// A supervisor that took over from a killed one holds nothing any more: the container itself
    /// still has the volume.
    fn kept_by_orphan(
        &self,
        view: &ContainerView,
        volume: &Volume,
        record: &Record,
    ) -> Result<Option<OwnedFd>> {
        let lost = || {
            Err(EngineError::Conflict(format!(
                "volume {} is mounted by container {}, and whoever kept it was killed: stop that container first",
                volume.name, view.config.id
            )))
        };
        let Some(namespace) = mount_namespace(view)? else {
            return Ok(None);
        };
        for point in &view.config.host.mounts {
            let MountPoint::Volume {
                name,
                destination,
                subpath: None,
                ..
            } = point
            else {
                continue;
            };
            let Ok(path) = CString::new(destination.as_str()) else {
                continue;
            };
            if *name != volume.name {
                continue;
            }
            let Ok(found) = tree::clone_from(&namespace, &path) else {
                continue;
            };
            let stat = fstat(&found).map_err(EngineError::io("failed to look at a volume"))?;
            if (stat.st_dev, stat.st_ino) == record.root {
                let mut file = self.open_record(&volume.name)?;
                amphora_volume::unprotect(found.as_fd(), &self.volume_path(&volume.name))
                    .map_err(EngineError::plain)?;
                return self.note_kept(&mut file, volume, &found).map(Some);
            }
        }
        match self.view(&view.config.id) {
            Ok(now) if now.status == Status::Running => lost(),
            _ => Ok(None),
        }
    }

    /// Forgets that a volume was mounted. To be called while nobody can hold the volume.
    pub(crate) fn forget_kept(&self, name: &str) {
        forget_kept(&self.options.run_root, name);
    }

    fn kept_path(&self, name: &str) -> PathBuf {
        kept_path(&self.options.run_root, name)
    }
}

fn kept_path(run_root: &Path, name: &str) -> PathBuf {
    run_root.join("volumes").join(name)
}

/// Removes a volume that was made a moment ago, together with the record of its mount.
pub(crate) fn remove_made(volumes: &Volumes, run_root: &Path, name: &str) -> Result<()> {
    let nobody = |name: &str| {
        forget_kept(run_root, name);
        Vec::new()
    };
    volumes.remove(name, &nobody).map_err(EngineError::plain)
}

fn forget_kept(run_root: &Path, name: &str) {
    let path = kept_path(run_root, name);
    if fs::remove_file(&path).is_ok()
        && let Some(dir) = path.parent()
    {
        // The last one takes the folder along.
        let _ = fs::remove_dir(dir);
    }
}

/// Takes the lock of a volume's record.
fn lock_record(file: &File, path: &Path, name: &str) -> Result<()> {
    lock_within(file, LOCK_LIMIT).map_err(|e| match e {
        Errno::WOULDBLOCK => EngineError::Conflict(format!(
            "volume {name} is busy: another start is about to mount it"
        )),
        e => EngineError::file("lock", path, e),
    })
}

fn lock_within(file: &File, limit: Duration) -> std::result::Result<(), Errno> {
    let deadline = Instant::now() + limit;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// The mount namespace of a container that runs.
fn mount_namespace(view: &ContainerView) -> Result<Option<OwnedFd>> {
    let Some(state) = view
        .state
        .as_ref()
        .filter(|_| view.status == Status::Running)
    else {
        return Ok(None);
    };
    let failed = || format!("failed to look at process {}", state.init_pid);
    let alive = || pidfd::open(state.init_pid, state.init_start).map_err(EngineError::io(failed()));
    if alive()?.is_none() {
        return Ok(None);
    }
    let path = format!("/proc/{}/ns/mnt", state.init_pid);
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    // Still the same process, so it was its namespace that was opened.
    Ok(opened
        .ok()
        .filter(|_| alive().is_ok_and(|init| init.is_some())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_so_long_and_counted() {
        let path = std::env::temp_dir().join(format!("amphora-kept-{}", std::process::id()));
        let open = || File::create(&path).unwrap();
        let (first, second) = (open(), open());
        let short = Duration::from_millis(30);
        lock_within(&first, short).unwrap();
        let begun = Instant::now();
        assert_eq!(lock_within(&second, short), Err(Errno::WOULDBLOCK));
        assert!(begun.elapsed() >= short);
        let count = Arc::new(AtomicUsize::new(0));
        let guard = Guard::new(first, &count);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drop(guard);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        lock_within(&second, short).unwrap();
        fs::remove_file(&path).unwrap();
    }
}
