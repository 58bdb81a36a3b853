//! Volumes that are a file system of their own: mounted once, in a mount namespace that nobody is in,
//! and shared by all who use the volume at a time.
//!
//! Supervisors hold that namespace and hand it on. Which one it is stands in `R/volumes/<name>`, whose
//! lock is held by whoever is about to mount the volume, until its supervisor answers. A volume that
//! nobody uses is mounted by nobody.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use amphora_spec::ContainerId;
use amphora_sys::{pidfd, tree};
use amphora_volume::Volume;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat};
use serde::{Deserialize, Serialize};

use crate::config::MountPoint;
use crate::container::{ContainerView, Status};
use crate::{Engine, EngineError, Result};

const VERSION: u32 = 1;

/// What is recorded of a volume that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Device and inode of the namespace.
    namespace: (u64, u64),
    /// Device and inode of the root of the file system.
    root: (u64, u64),
}

impl Engine {
    /// Returns the namespace that keeps a volume's file system, and the lock that is to be held until
    /// somebody answers for it. Mounts it where nobody has.
    pub(crate) fn keep_volume(
        &self,
        own: &ContainerId,
        volume: &Volume,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let path = self.kept_path(&volume.name);
        let mut file = self.open_record(&volume.name)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &path, e))?;
        let mut text = String::new();
        file.read_to_string(&mut text)
            .map_err(|e| EngineError::file("read", &path, e))?;
        // Empty when it is new, torn where its writer was killed: then nobody has it.
        let record: Option<Record> = serde_json::from_str(&text).ok();
        if let Some(record) = record.filter(|record| record.version == VERSION)
            && let Some(kept) = self.kept_by_others(own, volume, &record)?
        {
            return Ok((file.into(), kept));
        }
        let mount = self.volumes.mount_device(volume);
        let mount = mount.map_err(EngineError::plain)?;
        let kept = self.note_kept(&mut file, volume, &mount)?;
        Ok((file.into(), kept))
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
        };
        let write = |file: &mut File| {
            let text = serde_json::to_vec(&record)?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)
        };
        write(file).map_err(|e| EngineError::file("write", &path, e))?;
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
        for id in self.ids()?.into_iter().filter(|id| id != own) {
            let look = || match self.view(&id) {
                Err(EngineError::NoSuchContainer(_)) => Ok(None),
                other => other.map(Some),
            };
            let Some(view) = look()? else { continue };
            let mut mounts = view.config.host.mounts.iter();
            if !mounts.any(|m| m.volume() == Some(&volume.name)) {
                continue;
            }
            // Its supervisor may have been killed.
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
        let path = self.kept_path(name);
        if fs::remove_file(&path).is_ok()
            && let Some(dir) = path.parent()
        {
            // The last one takes the folder along.
            let _ = fs::remove_dir(dir);
        }
    }

    fn kept_path(&self, name: &str) -> PathBuf {
        self.options.run_root.join("volumes").join(name)
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
