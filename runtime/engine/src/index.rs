//! The list of containers for `ps`: what does not change of a container comes from one file on
//! tmpfs, checked against the records it was made of.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use amphora_spec::ContainerId;
use rustix::fs::{AtFlags, statat};
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, MountPoint};
use crate::container::{ContainerView, Status};
use crate::files::{Lock, open_dir};
use crate::{Engine, EngineError, Result};

/// Name of the index under the run root.
const NAME: &str = "index";
/// What it begins with; the number is its version.
const MAGIC: &[u8; 10] = b"amphindx\x01\x00";
/// Containers that run from which on their records are read by two threads.
const SPLIT: usize = 64;

/// What `ps` shows of a container that does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Id, 64 hexadecimal digits.
    pub id: String,
    /// Name, without a slash.
    pub name: String,
    /// Creation time, RFC 3339.
    pub created: String,
    /// Image as the user wrote it.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// Command line.
    pub args: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `linux` or `wasm`.
    pub executor: String,
    /// Network.
    pub network: String,
    /// Mounts.
    pub mounts: Vec<MountSummary>,
    /// Exposed ports, `port/proto`.
    pub exposed: Vec<String>,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
}

/// One mount in a [`Summary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSummary {
    /// `volume`, `bind` or `tmpfs`.
    pub kind: String,
    /// Volume name or host path.
    pub source: String,
    /// Path in the container.
    pub destination: String,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// When, RFC 3339.
    pub at: String,
}

/// One container in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What does not change.
    pub summary: Summary,
    /// Status.
    pub status: Status,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// Everything, for one that has a run directory.
    pub view: Option<Box<ContainerView>>,
    /// What is wrong with its records, if they cannot be read.
    pub damage: Option<String>,
}

/// What tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    summary: Summary,
    config: Stamp,
    exit: Option<(Stamp, Ended)>,
}

impl Summary {
    fn of(config: &ContainerConfig) -> Self {
        Self {
            id: config.id.hex(),
            name: config.name.clone(),
            created: config.created.clone(),
            image: config.image.clone(),
            image_id: config.image_id.to_string(),
            args: config.args(),
            labels: config.labels.clone(),
            executor: config.executor.to_string(),
            network: config.host.network.name().to_owned(),
            mounts: config.host.mounts.iter().map(MountSummary::of).collect(),
            exposed: config.exposed.clone(),
            auto_remove: config.host.auto_remove,
        }
    }
}

impl MountSummary {
    fn of(point: &MountPoint) -> Self {
        let (kind, source) = match point {
            MountPoint::Volume { name, .. } => ("volume", name.clone()),
            MountPoint::Bind { source, .. } => ("bind", source.clone()),
            MountPoint::Tmpfs { .. } => ("tmpfs", String::new()),
        };
        Self {
            kind: kind.to_owned(),
            source,
            destination: point.destination().to_owned(),
        }
    }
}

impl From<ContainerView> for Listed {
    fn from(view: ContainerView) -> Self {
        let ended = view.exit.as_ref().map(|e| Ended {
            code: e.code,
            at: e.finished_at.clone(),
        });
        Self {
            summary: Summary::of(&view.config),
            status: view.status,
            ended: ended.filter(|_| view.status != Status::Running),
            view: Some(Box::new(view)),
            damage: None,
        }
    }
}

impl Engine {
    /// Lists containers for `ps`, newest first; only running ones unless `all`.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub fn ps(&self, all: bool) -> Result<Vec<Listed>> {
        let live = self.live()?;
        let mut rows = self.live_rows(&live, all)?;
        if all {
            let known: HashSet<&ContainerId> = live.iter().collect();
            let path = self.options.root.join("containers");
            let entries =
                std::fs::read_dir(&path).map_err(|e| EngineError::file("read", &path, e))?;
            let (mut idle, mut cut_off) = (Vec::new(), false);
            for entry in entries.flatten() {
                match entry.file_name().to_str().map(str::parse::<ContainerId>) {
                    Some(Ok(id)) if known.contains(&id) => {}
                    Some(Ok(id)) => idle.push(id),
                    _ => cut_off = true,
                }
            }
            if cut_off {
                // Kept for the next time when it fails.
                let _ = self.sweep_removed();
            }
            self.idle_rows(&idle, &mut rows)?;
        }
        rows.sort_by(|a, b| b.summary.created.cmp(&a.summary.created));
        Ok(rows)
    }

    /// Ids that have a run directory.
    fn live(&self) -> Result<Vec<ContainerId>> {
        let dir = self.options.run_root.join("containers");
        let entries = std::fs::read_dir(&dir).map_err(|e| EngineError::file("read", &dir, e))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect())
    }

    fn live_rows(&self, ids: &[ContainerId], all: bool) -> Result<Vec<Listed>> {
        let some = |ids: &[ContainerId]| -> Result<Vec<Listed>> {
            let mut rows = Vec::with_capacity(ids.len());
            for id in ids {
                if !Lock::is_held(&self.run_dir(id)) {
                    // Kept for the next time when it fails, as for every other command.
                    let _ = self.reconcile_one(id);
                }
                match self.view(id) {
                    Ok(view) if all || view.status.is_active() => rows.push(view.into()),
                    Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
                    Err(e) => rows.push(self.damaged(id, &e)),
                }
            }
            Ok(rows)
        };
        if ids.len() < SPLIT {
            return some(ids);
        }
        let (left, right) = ids.split_at(ids.len() / 2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| some(right));
            let mut rows = some(left)?;
            let joined = other.join().map_err(|_| {
                EngineError::State("the reader of container records ended".to_owned())
            })?;
            rows.extend(joined?);
            Ok(rows)
        })
    }

    fn idle_rows(&self, ids: &[ContainerId], rows: &mut Vec<Listed>) -> Result<()> {
        let path = self.options.root.join("containers");
        let dir = open_dir(&path)?;
        let mut index = read(&self.options.run_root.join(NAME));
        let before = index.len();
        let mut fresh = Vec::with_capacity(ids.len());
        let mut changed = false;
        for id in ids {
            let hex = id.hex();
            let at = index.binary_search_by(|(key, _)| key.cmp(id));
            let known = at
                .ok()
                .and_then(|at| index.get_mut(at))
                .and_then(|(_, entry)| entry.take());
            match self.entry(id, &hex, dir.as_fd(), known) {
                Ok(Some((entry, new))) => {
                    changed |= new;
                    fresh.push(entry);
                }
                Ok(None) => {}
                Err(e) => rows.push(self.damaged(id, &e)),
            }
        }
        if changed || fresh.len() != before {
            fresh.sort_by(|a, b| a.summary.id.cmp(&b.summary.id));
            write(&self.options.run_root, &fresh);
        }
        rows.extend(fresh.into_iter().filter_map(|entry| {
            let hidden = entry.exit.is_some() && entry.summary.auto_remove;
            (!hidden).then(|| Listed {
                summary: entry.summary,
                status: if entry.exit.is_some() {
                    Status::Exited
                } else {
                    Status::Created
                },
                ended: entry.exit.map(|(_, ended)| ended),
                view: None,
                damage: None,
            })
        }));
        Ok(())
    }

    /// What is left to say of a container whose records cannot be read.
    fn damaged(&self, id: &ContainerId, error: &EngineError) -> Listed {
        let dir = self.container_dir(id);
        let created = crate::boot::changed(&dir).unwrap_or(0);
        Listed {
            summary: Summary {
                id: id.hex(),
                name: self.claimed_name(id).unwrap_or_default(),
                created: crate::list::time_text(created),
                image: String::new(),
                image_id: String::new(),
                args: Vec::new(),
                labels: BTreeMap::new(),
                executor: String::new(),
                network: String::new(),
                mounts: Vec::new(),
                exposed: Vec::new(),
                auto_remove: false,
            },
            status: Status::Dead,
            ended: None,
            view: None,
            damage: Some(format!(
                "container {} is damaged: {}",
                id.short(),
                amphora_spec::error::chain(error)
            )),
        }
    }

    /// The name that is claimed for a container, whose own record of it cannot be read.
    fn claimed_name(&self, id: &ContainerId) -> Option<String> {
        let entries = std::fs::read_dir(self.options.root.join("names")).ok()?;
        let hex = id.hex();
        entries.flatten().find_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            (target.as_os_str() == hex.as_str()).then(|| entry.file_name().into_string().ok())?
        })
    }

    /// Returns a container's entry and whether it differs from the known one.
    fn entry(
        &self,
        id: &ContainerId,
        hex: &str,
        dir: BorrowedFd<'_>,
        known: Option<Entry>,
    ) -> Result<Option<(Entry, bool)>> {
        let Some(config) = stamp(dir, hex, "config.json") else {
            // Without a writable layer it never came to be.
            return match stamp(dir, hex, "upper") {
                None => Ok(None),
                Some(_) => Err(EngineError::State(format!(
                    "\"{}/config.json\" is missing",
                    self.container_dir(id).display()
                ))),
            };
        };
        let exit = stamp(dir, hex, "exit");
        if let Some(entry) = known
            && entry.config == config
            && entry.exit.as_ref().map(|(s, _)| *s) == exit
        {
            return Ok(Some((entry, false)));
        }
        let summary = match self.config(id) {
            Ok(config) => Summary::of(&config),
            Err(EngineError::NoSuchContainer(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let ended = match exit {
            Some(stamp) => self.ended(id).map(|e| {
                let ended = Ended {
                    code: e.code,
                    at: e.finished_at,
                };
                (stamp, ended)
            }),
            None => None,
        };
        let entry = Entry {
            summary,
            config,
            exit: ended,
        };
        Ok(Some((entry, true)))
    }
}

fn stamp(dir: BorrowedFd<'_>, hex: &str, name: &str) -> Option<Stamp> {
    let mut path = String::with_capacity(hex.len() + 1 + name.len());
    path.push_str(hex);
    path.push('/');
    path.push_str(name);
    let stat = statat(dir, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Stamp {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec,
    })
}

/// Reads the index, in the order of the ids; one that is missing or damaged is empty.
fn read(path: &Path) -> Vec<(ContainerId, Option<Entry>)> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let entries: Vec<Entry> = bytes
        .strip_prefix(MAGIC)
        .and_then(|body| postcard::from_bytes(body).ok())
        .unwrap_or_default();
    entries
        .into_iter()
        .filter_map(|e| Some((e.summary.id.parse().ok()?, Some(e))))
        .collect()
}

/// Replaces the index. It only saves time: a failure is nobody's concern.
fn write(run_root: &Path, entries: &[Entry]) {
    let Ok(bytes) = postcard::to_extend(&entries, MAGIC.to_vec()) else {
        return;
    };
    let temp = run_root.join(format!("{NAME}.{}", std::process::id()));
    let written =
        std::fs::write(&temp, bytes).and_then(|()| std::fs::rename(&temp, run_root.join(NAME)));
    if written.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
}
