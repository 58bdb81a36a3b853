//! After a boot or a power cut: what was left is put right, what ended is started again.
//!
//! `work`, the kernel's directory beside a writable layer, is made by a start and removed behind
//! the end of a run: where it lies and nobody holds the container's lock, the container ran when
//! the machine went down. So nothing is written, or waited for, to remember that.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use amphora_spec::ContainerId;
use amphora_supervisor::{ExitRecord, RestartKind};
use rustix::fs::{FlockOperation, flock};

use crate::config::ContainerConfig;
use crate::container::ContainerView;
use crate::create::PASSING;
use crate::files::{Lock, ensure_dir, open_dir, remove_tree, unlink, write};
use crate::finish::settle_exit;
use crate::modes::Mode;
use crate::{Attach, Engine, EngineError, Result};

/// Says that a data root was put right since the last boot, and which: in the run root, which does
/// not survive one.
pub(crate) const SETTLED: &str = "settled";
/// In the data root: in which boot, and by way of which run root, it was last put right.
const BOOT: &str = "boot";
/// Longest such record.
const BOOT_BYTES_MAX: usize = 8 << 10;
/// Made by a start, removed behind the end.
pub(crate) const WORK: &str = "work";
/// What is left of it while it is removed: a cut in the middle must not make it look younger.
const WORK_GONE: &str = "work.gone";
/// The same while files are copied into or out of a container that does not run.
pub(crate) const WORK_IDLE: &str = "work.idle";
/// Begins the names of skeletons that are being made.
const SKELETON: &str = "skeleton.";

/// Begins the names of network configurations that are being written.
const NETWORK: &str = "config.json.";

/// What [`Engine::boot`] did.
#[derive(Debug, Default)]
pub struct Booted {
    /// Names of the containers that were started, in this order.
    pub started: Vec<String>,
    /// Containers that are to run and could not be started, by name or id, and why.
    pub failed: Vec<(String, EngineError)>,
}

fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = fs::read_dir(dir).map_err(|e| EngineError::file("read", dir, e))?;
    Ok(entries.flatten().collect())
}

/// When a file was last changed, nanoseconds since 1970; `None` when it is not there.
pub(crate) fn changed(path: &Path) -> Option<u64> {
    let meta = fs::symlink_metadata(path).ok()?;
    let nanos = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    u64::try_from(nanos).ok()
}

impl Engine {
    /// Puts the data root right, once a boot, before the first command does anything else.
    ///
    /// # Errors
    /// A data root whose containers run by way of another run root.
    pub(crate) fn settle_once(&self) -> Result<()> {
        let mark = self.options.run_root.join(SETTLED);
        let root = self.options.root.as_os_str().as_bytes();
        let is_done = || fs::read(&mark).is_ok_and(|text| text == root);
        if is_done() {
            return Ok(());
        }
        ensure_dir(&self.options.run_root, 0o700)?;
        ensure_dir(&self.options.run_root.join("containers"), 0o700)?;
        let run_root = open_dir(&self.options.run_root)?;
        flock(&run_root, FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &self.options.run_root, e))?;
        if is_done() {
            return Ok(());
        }
        let now = boot_id()?;
        match self.last_boot()? {
            Some((boot, _)) if boot != now => self.settle()?,
            Some((_, run_root)) if run_root != self.options.run_root => {
                self.refuse_run_root(&run_root)?;
                // It has to ask again.
                unlink(&run_root.join(SETTLED))?;
            }
            // What was made by an earlier version, or since the boot, is not judged: nothing
            // tells there whether what lies about is of a run that goes on.
            _ => {}
        }
        self.note_boot(&now)?;
        write(&mark, root)
    }

    /// In which boot, and by way of which run root, the data root was last put right.
    fn last_boot(&self) -> Result<Option<(String, PathBuf)>> {
        let path = self.options.root.join(BOOT);
        let text = match fs::read(&path) {
            Ok(text) if text.len() <= BOOT_BYTES_MAX => text,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(EngineError::file("read", &path, e)),
        };
        let mut lines = text.splitn(2, |byte| *byte == b'\n');
        let boot = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let run_root = lines.next().map(|rest| rest.trim_ascii_end());
        Ok(boot.zip(run_root).map(|(boot, run_root)| {
            let run_root = PathBuf::from(OsStr::from_bytes(run_root));
            (boot.to_owned(), run_root)
        }))
    }

    fn note_boot(&self, boot: &str) -> Result<()> {
        let path = self.options.root.join(BOOT);
        let temp = path.with_extension("new");
        let mut text = format!("{boot}\n").into_bytes();
        text.extend(self.options.run_root.as_os_str().as_bytes());
        text.push(b'\n');
        write(&temp, &text)?;
        let synced = fs::File::open(&temp).and_then(|file| file.sync_all());
        synced
            .and_then(|()| fs::rename(&temp, &path))
            .map_err(|e| EngineError::file("write", &path, e))
    }

    /// Fails when a container of this data root runs by way of another run root: its supervisor,
    /// lock and addresses would not be seen here.
    fn refuse_run_root(&self, run_root: &Path) -> Result<()> {
        for id in self.ids()? {
            if !self.run_dir(&id).exists() && crate::pause::cgroup(&id)?.is_some() {
                return Err(EngineError::Invalid(format!(
                    "container {} of \"{}\" runs by way of run root \"{}\", not \"{}\"",
                    id.short(),
                    self.options.root.display(),
                    run_root.display(),
                    self.options.run_root.display()
                )));
            }
        }
        Ok(())
    }

    /// Puts the data root right: runs that a power cut ended are written down as ended, removals
    /// and creations that it cut off are ended, claims of names and containers agree. What cannot
    /// be put right stays as it is, and is named when it is listed.
    fn settle(&self) -> Result<()> {
        let _ = self.sweep_removed();
        for id in self.ids()? {
            let _ = self.settle_container(&id);
        }
        let names = self.options.root.join("names");
        for entry in read_dir(&names)? {
            if let Some(name) = entry.file_name().to_str() {
                let _ = self.sweep_name(name);
            }
        }
        self.settle_temporary()
    }

    /// Removes what was to be renamed into place.
    fn settle_temporary(&self) -> Result<()> {
        let root = &self.options.root;
        for entry in read_dir(root)? {
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| n.starts_with(SKELETON)) {
                let _ = remove_tree(&entry.path());
            }
        }
        for network in read_dir(&root.join("networks"))? {
            for entry in read_dir(&network.path()).unwrap_or_default() {
                let name = entry.file_name();
                if name.to_str().is_some_and(|n| n.starts_with(NETWORK)) {
                    let _ = unlink(&entry.path());
                }
            }
        }
        Ok(())
    }

    fn settle_container(&self, id: &ContainerId) -> Result<()> {
        let run = self.run_dir(id);
        // But for the lock: what holds more is of this boot, and reconcile knows better.
        let in_use = || fs::read_dir(&run).is_ok_and(|entries| entries.count() > 1);
        if in_use() || crate::pause::cgroup(id)?.is_some() {
            return Ok(());
        }
        let Some(lock) = Lock::try_acquire(&run)? else {
            return Ok(());
        };
        if in_use() {
            // Somebody was faster, and died.
            return Ok(());
        }
        // Against a rename or update: these change what does not run, too.
        let _config = self.lock_config(id);
        let settled = match self.config(id) {
            Ok(config) => self.settle_records(&config),
            // Its create was cut off, before anything could be written into it.
            Err(EngineError::NoSuchContainer(_)) if !self.lost_its_config(id) => {
                self.erase_half_made(id)
            }
            Err(EngineError::Record { .. }) if self.is_passing(id) => self.erase_half_made(id),
            Err(e) => Err(e),
        };
        lock.remove_dir()?;
        settled
    }

    /// Says whether a container goes when it ends, without its configuration.
    fn is_passing(&self, id: &ContainerId) -> bool {
        fs::symlink_metadata(self.container_dir(id)).is_ok_and(|m| m.mode() & PASSING != 0)
    }

    fn settle_records(&self, config: &ContainerConfig) -> Result<()> {
        let dir = self.container_dir(&config.id);
        for temporary in ["config.tmp", "exit.new", "wanted.new"] {
            unlink(&dir.join(temporary))?;
        }
        remove_tree(&dir.join(WORK_IDLE))?;
        remove_tree(&dir.join(WORK_GONE))?;
        let work = dir.join(WORK);
        if let Some(started) = changed(&work) {
            if config.host.auto_remove {
                return self.erase(config, true);
            }
            let ended = changed(&dir.join("exit")).is_some_and(|at| at >= started);
            if !ended {
                record_cut(&dir, started)?;
            }
            remove_work(&dir)?;
        }
        settle_exit(&dir)?;
        match std::os::unix::fs::symlink(config.id.hex(), self.name_path(&config.name)) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(EngineError::file(
                "create",
                &self.name_path(&config.name),
                e,
            )),
            _ => Ok(()),
        }
    }

    /// Starts what a boot ended: containers that are always to run, those that were not stopped
    /// by hand, and those that failed; whose namespaces others join, before these. What ends here
    /// in an error does not keep the others from being started.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub fn boot(&self) -> Result<Booted> {
        self.settle_once()?;
        let (mut views, damaged) = self.list_all()?;
        let mut booted = Booted {
            failed: damaged
                .into_iter()
                .map(|(id, error)| (id.short(), error))
                .collect(),
            ..Booted::default()
        };
        // Oldest first: what was made earlier may be what others need.
        views.reverse();
        for at in order(&views) {
            let Some(view) = views.get(at) else { continue };
            if view.status.is_active() || !self.is_to_boot(view) {
                continue;
            }
            let name = view.config.name.clone();
            match self.start(&view.config.id, Attach::None) {
                Ok(Some(_)) => booted.started.push(name),
                // Somebody else was faster.
                Ok(None) => {}
                Err(e) => booted.failed.push((name, e)),
            }
        }
        Ok(booted)
    }

    /// dockerd's rule, but for containers that were never started: these stay as they are.
    fn is_to_boot(&self, view: &ContainerView) -> bool {
        let Some(wanted) = self.wanted(&view.config.id) else {
            return false;
        };
        let policy = view.config.host.restart;
        // Without an exit record it could not be started.
        let (code, restarts) = view.exit.as_ref().map_or((1, 0), |e| (e.code, e.restarts));
        match policy.kind {
            RestartKind::UnlessStopped => wanted,
            _ => policy.wants(code, restarts),
        }
    }
}

/// The kernel's name for this boot.
fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|e| EngineError::file("read", path, e))?;
    Ok(text.trim().to_owned())
}

/// Removes the mark that a container runs. The kernel's work directory keeps no data between
/// mounts.
pub(crate) fn remove_work(container: &Path) -> Result<()> {
    let (work, gone) = (container.join(WORK), container.join(WORK_GONE));
    match fs::rename(&work, &gone) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // What another removal left behind when it was killed.
        Err(_) => remove_tree(&gone).and_then(|()| remove_tree(&work)),
        Ok(()) => remove_tree(&gone),
    }
}

/// Writes down that the machine went down under a container.
fn record_cut(dir: &Path, started: u64) -> Result<()> {
    let why = "the machine went down while the container ran";
    let record = ExitRecord::unknown(why, started, crate::list::now_nanos());
    record
        .write(open_dir(dir)?.as_fd())
        .map_err(EngineError::plain)
}

/// Which containers a container needs to be there when it starts.
fn needs(config: &ContainerConfig) -> impl Iterator<Item = ContainerId> {
    [&config.host.ipc_mode, &config.host.pid_mode]
        .into_iter()
        .filter_map(|mode| match Mode::of(mode) {
            Mode::Container(id) => id.parse().ok(),
            _ => None,
        })
}

/// The order in which containers are started: as they come, but each after those it needs.
fn order(views: &[ContainerView]) -> Vec<usize> {
    fn visit(at: usize, views: &[ContainerView], seen: &mut HashSet<usize>, out: &mut Vec<usize>) {
        if !seen.insert(at) {
            return;
        }
        if let Some(view) = views.get(at) {
            for id in needs(&view.config) {
                if let Some(other) = views.iter().position(|v| v.config.id == id) {
                    visit(other, views, seen, out);
                }
            }
        }
        out.push(at);
    }
    let (mut seen, mut out) = (HashSet::new(), Vec::with_capacity(views.len()));
    for at in 0..views.len() {
        visit(at, views, &mut seen, &mut out);
    }
    out
}
