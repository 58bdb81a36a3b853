//! Named volumes: `volumes/<name>/{_data,meta.json}`. A volume appears whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, open, renameat_with, stat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::error::{Result, VolumeError, file};
use crate::options::{self, DriverOptions};
use crate::spec::check;

/// Version of `meta.json`; the first of a volume without driver options.
const FORMAT: u32 = 2;
const WITHOUT_OPTIONS: u32 = 1;
/// Begins the names of folders that are being made or removed; no volume's name can.
const PASSING: &str = ".";

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Version of this format.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// Whether the name was drawn, not given.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made: seconds since 1970.
    pub created_s: u64,
    /// Driver options: what is mounted in place of the directory `_data`.
    #[serde(default, skip_serializing_if = "DriverOptions::is_empty")]
    pub options: DriverOptions,
}

/// A volume to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name; without one it gets 64 random digits.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub options: DriverOptions,
}

/// What [`Volumes::ensure`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was made just now.
    New,
    /// It was there.
    Existing,
}

/// Tells the ids of the containers that mention a volume.
pub type Users<'a> = &'a dyn Fn(&str) -> Vec<String>;

/// The volumes of one engine.
#[derive(Debug, Clone)]
pub struct Volumes {
    root: PathBuf,
}

impl Volumes {
    /// Opens the volumes below an engine's data directory; nothing is made before it is needed.
    #[must_use]
    pub fn open(data: &Path) -> Self {
        Self {
            root: data.join("volumes"),
        }
    }

    /// Makes a volume; without a name it gets one of 64 random digits.
    ///
    /// # Errors
    /// A conflict when it exists; an invalid argument when the name is none.
    pub fn create(&self, name: Option<&str>, labels: BTreeMap<String, String>) -> Result<Volume> {
        self.create_with(NewVolume {
            name: name.map(str::to_owned),
            labels,
            options: DriverOptions::new(),
        })
    }

    /// Makes a volume with driver options. Nothing is mounted before a container starts.
    ///
    /// # Errors
    /// Those of [`Volumes::create`]; an invalid argument for options that make no sense.
    pub fn create_with(&self, new: NewVolume) -> Result<Volume> {
        let volume = describe(new)?;
        fs::create_dir_all(&self.root).map_err(file("create", &self.root))?;
        let passing = self.passing("new")?;
        let made = self.build(&passing, &volume, |_| Ok(()));
        if made.is_err() {
            let _ = fs::remove_dir_all(&passing);
        }
        made.map(|()| volume)
    }

    /// Makes a volume's folder below the name `passing` and gives it its own; `fill` is told where
    /// its files are.
    pub(crate) fn build(
        &self,
        passing: &Path,
        volume: &Volume,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        fs::create_dir(passing).map_err(file("create", passing))?;
        let _lock = lock(passing, FlockOperation::LockExclusive)?;
        let data = passing.join("_data");
        fs::create_dir(&data).map_err(file("create", &data))?;
        fill(&data)?;
        write_record(passing, volume)?;
        let place = self.path(&volume.name);
        match renameat_with(CWD, passing, CWD, &place, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => Err(VolumeError::Exists(volume.name.clone())),
            other => other.map_err(file("create", &place)),
        }
    }

    /// Returns the volume of this name, made now if there is none.
    ///
    /// # Errors
    /// As [`Volumes::create`] and [`Volumes::get`], without the conflict.
    pub fn ensure(&self, name: &str, labels: BTreeMap<String, String>) -> Result<(Volume, Found)> {
        self.ensure_with(NewVolume {
            name: Some(name.to_owned()),
            labels,
            options: DriverOptions::new(),
        })
    }

    /// The same with driver options: one that is there must have these, if there are any.
    ///
    /// # Errors
    /// A conflict when it has others.
    pub fn ensure_with(&self, new: NewVolume) -> Result<(Volume, Found)> {
        let Some(name) = new.name.clone() else {
            return self.create_with(new).map(|volume| (volume, Found::New));
        };
        let options = new.options.clone();
        let fits = |volume: Volume| {
            if options.is_empty() || options == volume.options {
                Ok((volume, Found::Existing))
            } else {
                Err(VolumeError::Differs(name.clone()))
            }
        };
        match self.get(&name) {
            Err(VolumeError::NotFound(_)) => {}
            other => return other.and_then(fits),
        }
        match self.create_with(new) {
            Err(VolumeError::Exists(_)) => self.get(&name).and_then(fits),
            other => other.map(|volume| (volume, Found::New)),
        }
    }

    /// Returns a volume.
    ///
    /// # Errors
    /// Not found, or its record cannot be read.
    pub fn get(&self, name: &str) -> Result<Volume> {
        check_volume_name(name)?;
        let path = self.path(name).join("meta.json");
        match fs::read(&path) {
            // The data are what counts: a torn record loses no more than what it said.
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(Volume {
                version: WITHOUT_OPTIONS,
                name: name.to_owned(),
                anonymous: false,
                labels: BTreeMap::new(),
                created_s: 0,
                options: DriverOptions::new(),
            }),
            Ok(bytes) => match serde_json::from_slice::<Volume>(&bytes) {
                Ok(volume) if (WITHOUT_OPTIONS..=FORMAT).contains(&volume.version) => Ok(Volume {
                    // It may have been renamed.
                    name: name.to_owned(),
                    ..volume
                }),
                Ok(volume) => Err(VolumeError::Version {
                    path,
                    found: volume.version,
                    known: FORMAT,
                }),
                Err(source) => Err(VolumeError::Record { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(VolumeError::NotFound(name.to_owned()))
            }
            Err(error) => Err(file("read", path)(error)),
        }
    }

    /// Lists volumes by name.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut all = Vec::new();
        for name in self.names()? {
            match self.get(&name) {
                Ok(volume) => all.push(volume),
                // Removed meanwhile, or nothing of ours.
                Err(VolumeError::NotFound(_) | VolumeError::Name { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Holds a volume: as long as the descriptor is open it cannot be removed. Whoever records a
    /// use holds the volume from its look at it until the record is written.
    ///
    /// # Errors
    /// Not found.
    pub fn hold(&self, name: &str) -> Result<OwnedFd> {
        self.locked(name, FlockOperation::LockShared)
    }

    pub(crate) fn locked(&self, name: &str, operation: FlockOperation) -> Result<OwnedFd> {
        let path = self.path(name);
        let missing = |error: VolumeError| match error {
            VolumeError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                VolumeError::NotFound(name.to_owned())
            }
            other => other,
        };
        let fd = lock(&path, operation).map_err(missing)?;
        let held = fstat(&fd).map_err(file("look at", &path))?;
        match stat(&path) {
            Ok(now) if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino) => Ok(fd),
            _ => Err(VolumeError::NotFound(name.to_owned())),
        }
    }

    /// Removes a volume, unless `users` names containers that use it or somebody holds it.
    ///
    /// # Errors
    /// Not found, or a conflict when it is in use.
    pub fn remove(&self, name: &str, users: Users<'_>) -> Result<()> {
        self.get(name)?;
        let lock = self.locked_unused("remove", name, users)?;
        let (path, passing) = (self.path(name), self.passing("gone")?);
        fs::rename(&path, &passing).map_err(file("remove", &path))?;
        drop(lock);
        fs::remove_dir_all(&passing).map_err(file("remove", &path))
    }

    /// Locks a volume that nobody uses.
    pub(crate) fn locked_unused(
        &self,
        verb: &'static str,
        name: &str,
        users: Users<'_>,
    ) -> Result<OwnedFd> {
        let in_use = |users| VolumeError::InUse {
            verb,
            name: name.to_owned(),
            users,
        };
        let lock = match self.locked(name, FlockOperation::NonBlockingLockExclusive) {
            Err(VolumeError::File { source, .. })
                if source.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) =>
            {
                return Err(in_use(users(name)));
            }
            other => other?,
        };
        let users = users(name);
        if users.is_empty() {
            Ok(lock)
        } else {
            Err(in_use(users))
        }
    }

    /// Removes what creations and removals left when they were killed.
    ///
    /// # Errors
    /// When the directory cannot be read; what cannot be removed is left.
    pub fn sweep(&self) -> Result<()> {
        for name in self
            .names()?
            .iter()
            .filter(|name| name.starts_with(PASSING))
        {
            let path = self.root.join(name);
            if lock(&path, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }

    /// Returns where the volume's files are.
    #[must_use]
    pub fn data_path(&self, name: &str) -> PathBuf {
        self.path(name).join("_data")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn passing(&self, what: &str) -> Result<PathBuf> {
        Ok(self
            .root
            .join(format!("{PASSING}{what}-{}", random_hex::<8>()?)))
    }

    fn names(&self) -> Result<Vec<String>> {
        match fs::read_dir(&self.root) {
            Ok(entries) => entries
                .map(|entry| Ok(entry.map_err(file("read", &self.root))?.file_name()))
                .filter_map(|name| name.map(|n| n.into_string().ok()).transpose())
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(file("read", &self.root)(error)),
        }
    }
}

/// Opens a file or directory and locks it; closing gives the lock back.
pub(crate) fn lock(path: &Path, operation: FlockOperation) -> Result<OwnedFd> {
    let fd =
        open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(file("open", path))?;
    flock(fd.as_fd(), operation).map_err(file("lock", path))?;
    Ok(fd)
}

/// What is recorded of a volume that is being made.
pub(crate) fn describe(new: NewVolume) -> Result<Volume> {
    let anonymous = new.name.is_none();
    let name = match new.name {
        Some(name) => {
            check_volume_name(&name)?;
            name
        }
        None => random_hex::<32>()?,
    };
    options::check(&new.options).map_err(|problem| VolumeError::Options {
        name: name.clone(),
        problem,
    })?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Volume {
        version: if new.options.is_empty() {
            WITHOUT_OPTIONS
        } else {
            FORMAT
        },
        name,
        anonymous,
        labels: new.labels,
        created_s: created.as_secs(),
        options: new.options,
    })
}

/// Writes the record of the volume that lies in `folder`. What options say must not be lost with the
/// power: the volume would be another.
pub(crate) fn write_record(folder: &Path, volume: &Volume) -> Result<()> {
    let (meta, new) = (folder.join("meta.json"), folder.join("meta.json.tmp"));
    let bytes = serde_json::to_vec(volume).map_err(|source| VolumeError::Record {
        path: meta.clone(),
        source,
    })?;
    fs::write(&new, bytes).map_err(file("write", &meta))?;
    if !volume.options.is_empty() {
        let synced = fs::File::open(&new).and_then(|file| file.sync_all());
        synced.map_err(file("write", &meta))?;
    }
    fs::rename(&new, &meta).map_err(file("write", &meta))
}

pub(crate) fn check_volume_name(name: &str) -> Result<()> {
    check(name).map_err(|problem| VolumeError::Name {
        name: name.to_owned(),
        problem,
    })
}

fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(file("read", "/dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
