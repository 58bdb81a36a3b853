//! Reconcile: compares records with reality and finishes or undoes what a crash left.
//!
//! An object whose lock is held belongs to somebody alive and is not touched.

use std::fs;
use std::os::fd::AsFd;

use amphora_spec::ContainerId;
use amphora_spec::error::chain;
use amphora_supervisor::{AdoptRequest, Config, ExitRecord, GoOnRequest, State, Status, adopt};

use crate::config::ContainerConfig;
use crate::files::{Lock, free_name, open_dir, unlink};
use crate::start::{SUPERVISE, host_netns};
use crate::{Engine, EngineError, Result};

/// Why the code of an end is not known.
const UNSEEN: &str = "the supervisor was killed and nobody saw the container end";

impl Engine {
    /// Puts one container right. Says whether there was anything to do.
    pub(crate) fn reconcile_one(&self, id: &ContainerId) -> Result<bool> {
        let run = self.run_dir(id);
        if !run.is_dir() || Lock::is_held(&run) {
            return Ok(false);
        }
        let Some(lock) = Lock::try_acquire(&run)? else {
            return Ok(false);
        };
        let state = State::read(open_dir(&run)?.as_fd()).map_err(EngineError::plain)?;
        let started = state.as_ref().is_some_and(|s| s.status == Status::Running);
        if started {
            amphora_supervisor::sweep_base(&self.options.run_root);
        }
        let soon = state.as_ref().is_some_and(State::restarts_soon);
        let again = started || soon;
        if let Some(state) = state.as_ref().filter(|_| started) {
            // Whatever its configuration says, or cannot say: it is alive.
            if state.init_alive().map_err(EngineError::plain)? {
                return self.adopt(id, &lock).map(|()| true);
            }
            if let Ok(config) = self.config(id) {
                self.record_lost(&config, state)?;
            }
        }
        let again = again && self.is_to_run(id, soon);
        let config = Config::read(open_dir(&run)?.as_fd());
        let lost = config.ok().flatten().zip(state);
        if again
            && self.guards_volumes()
            && let Some(lost) = lost
        {
            // Its start may wait for a volume that only the end of this one frees.
            return self.go_on(&lock, lost).map(|()| true);
        }
        self.finish(id)?;
        drop(lock);
        if again
            && self.start(id, crate::Attach::None).is_err()
            && let Some(lost) = lost
            && self.is_to_run(id, soon)
            && let Some(lock) = Lock::try_acquire(&run)?
        {
            // The command at hand is about something else: a supervisor of its own tries it again.
            self.go_on(&lock, lost)?;
        }
        // Killed between lease and record, a start leaves an address that only its holder's
        // missing run directory tells to be free.
        let stale = self
            .networks
            .reconcile(&|other| self.run_dir(other).exists());
        stale
            .into_iter()
            .next()
            .map_or(Ok(true), |e| Err(EngineError::plain(e)))
    }

    /// Puts everything right. Returns how many containers needed it.
    ///
    /// # Errors
    /// When the run root cannot be read; failures of single containers are kept for the next time.
    pub fn reconcile_all(&self) -> Result<usize> {
        let dir = self.options.run_root.join("containers");
        let entries = fs::read_dir(&dir).map_err(|e| EngineError::file("read", &dir, e))?;
        let mut count = 0;
        for entry in entries.flatten() {
            let id = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<ContainerId>().ok());
            if let Some(id) = id
                && matches!(self.reconcile_one(&id), Ok(true))
            {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Frees a name whose container never came to be. Says whether the name is free now.
    pub(crate) fn sweep_name(&self, name: &str) -> Result<bool> {
        let path = self.name_path(name);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            // No link: nobody's claim.
            Err(_) => return unlink(&path).map(|()| true),
        };
        let Some(id) = target.to_str().and_then(|t| t.parse::<ContainerId>().ok()) else {
            // A claim is made whole, so this is none.
            return unlink(&path).map(|()| true);
        };
        if self.sweep_renamed(&id, name)? {
            return Ok(true);
        }
        if Lock::is_held(&self.run_dir(&id)) {
            return Ok(false);
        }
        self.reconcile_one(&id)?;
        if self.container_dir(&id).join("config.json").exists() {
            return Ok(false);
        }
        // One at a time: what the other has freed may be the claim of a third by now.
        let names = self.options.root.join("names");
        let dir = open_dir(&names)?;
        rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &names, e))?;
        if !Lock::is_held(&self.run_dir(&id)) && !self.container_dir(&id).is_dir() {
            free_name(&path, &id)?;
        }
        Ok(fs::read_link(&path).is_err())
    }

    /// Has a supervisor run a container again whose own was killed, in its own time.
    fn go_on(&self, lock: &Lock, lost: (Config, State)) -> Result<()> {
        let exe = Self::own_program()?;
        let (config, state) = lost;
        amphora_supervisor::go_on(GoOnRequest {
            exe: &exe,
            run_dir: config.run_dir.clone(),
            lock: lock.share()?,
            config,
            state,
            cgroup: amphora_cgroup::supervisor_cgroup().ok(),
        })
        .map_err(EngineError::plain)
    }

    /// Starts a supervisor for a container whose own was killed.
    fn adopt(&self, id: &ContainerId, lock: &Lock) -> Result<()> {
        self.refuse_elsewhere(id)?;
        let exe = Self::own_program()?;
        let mut failed = Vec::new();
        let listeners = self.networks.listeners(id, &mut failed);
        let listeners = listeners.unwrap_or_else(|error| {
            failed.push(error);
            Vec::new()
        });
        adopt(AdoptRequest {
            exe: &exe,
            argv: &SUPERVISE,
            run_dir: self.run_dir(id),
            lock: lock.share()?,
            listeners: listeners.into_iter().map(|l| l.fd).collect(),
            hold: Vec::new(),
            cgroup: amphora_cgroup::supervisor_cgroup().ok(),
            attach: None,
        })
        .map_err(EngineError::plain)?;
        let name = self.config(id).map_or_else(|_| id.short(), |c| c.name);
        for error in failed {
            // The rules lead to the container all the same.
            (self.options.warn)(&format!(
                "container {name} lost its supervisor, and the new one does not have all of its \
                 ports: {}",
                chain(&error)
            ));
        }
        Ok(())
    }

    /// A supervisor made here serves and releases ports here: those of a container of another
    /// network namespace it would neither hold nor free.
    fn refuse_elsewhere(&self, id: &ContainerId) -> Result<()> {
        let dir = open_dir(&self.run_dir(id))?;
        let config = Config::read(dir.as_fd()).map_err(EngineError::plain)?;
        match config.and_then(|c| c.netns) {
            Some(its) if its != host_netns()? => Err(EngineError::State(format!(
                "container {id} lost its supervisor, and its ports are in another network \
                 namespace (net:[{}]): run a command there to take it over",
                its.1
            ))),
            _ => Ok(()),
        }
    }

    /// Writes down that nobody saw how a container ended.
    fn record_lost(&self, config: &ContainerConfig, state: &State) -> Result<()> {
        if config.host.auto_remove || self.exit_record(&config.id)?.is_some() {
            return Ok(());
        }
        let dir = open_dir(&self.container_dir(&config.id))?;
        let record = ExitRecord {
            restarts: state.restarts,
            ..ExitRecord::unknown(UNSEEN, state.started_at, crate::list::now_nanos())
        };
        let code = record.code.to_string();
        self.note_container(config, "die", &[("exitCode", &code)]);
        record.write(dir.as_fd()).map_err(EngineError::plain)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use amphora_spec::ContainerId;

    use crate::files::{Lock, random};
    use crate::{Engine, EngineOptions};

    /// A command that clashes with another's port looks at every run directory, also at one that
    /// is not locked yet.
    #[test]
    fn what_is_being_made_is_locked_beside_a_reconciliation() {
        let dir = std::env::temp_dir().join(format!("amphora-reconcile-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let options = || EngineOptions {
            warn: |_| (),
            root: dir.join("root"),
            run_root: dir.join("run"),
            insecure_registries: Vec::new(),
            settings: crate::Settings::default(),
        };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let engine = Engine::open(options(), Vec::new()).unwrap();
                    while !over.load(Ordering::Relaxed) {
                        engine.reconcile_all().unwrap();
                    }
                });
            }
            let engine = Engine::open(options(), Vec::new()).unwrap();
            let locked = (0..2000).map(|_| {
                let id = ContainerId::from_random(random().unwrap());
                Lock::acquire_new(&engine.run_dir(&id)).and_then(Lock::remove_dir)
            });
            let failed = locked.filter_map(Result::err).next();
            over.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{failed:?}");
        });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
