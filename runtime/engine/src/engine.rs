//! The engine value: roots, rooms, workloads.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use amphora_content::Store;
use amphora_executor::{ExecutorKind, Workload};
use amphora_network::Networks;
use amphora_snapshot::Layers;
use amphora_spec::ContainerId;
use amphora_volume::Volumes;

use crate::files::ensure_dir;
use crate::{EngineError, Result};

/// Where an engine keeps things.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Data root, for example `/var/lib/amphora`.
    pub root: PathBuf,
    /// Run root on tmpfs, for example `/run/amphora`.
    pub run_root: PathBuf,
    /// `host:port` registries spoken to in plain HTTP, beside loopback ones and those of the
    /// settings.
    pub insecure_registries: Vec<String>,
    /// What the configuration file says; its roots are not looked at.
    pub settings: crate::Settings,
    /// Is told what is to be known of containers that a command is not about.
    pub warn: fn(&str),
}

/// The engine.
pub struct Engine {
    pub(crate) options: EngineOptions,
    pub(crate) store: Store,
    pub(crate) layers: Layers,
    pub(crate) networks: Networks,
    pub(crate) volumes: Volumes,
    workloads: Vec<Box<dyn Workload>>,
    pub(crate) events: crate::events::Pending,
    /// Locks of volumes that this process holds.
    pub(crate) guarded: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine over its roots, making them when they are missing.
    ///
    /// # Errors
    /// When a root cannot be made or is not ours.
    pub fn open(options: EngineOptions, workloads: Vec<Box<dyn Workload>>) -> Result<Self> {
        // The one that is made last: whoever made the others may have been cut off.
        if !options.root.join("networks").is_dir() {
            ensure_dir(&options.root, 0o711)?;
            for name in ["containers", "names", "images", "volumes", "networks"] {
                ensure_dir(&options.root.join(name), 0o711)?;
            }
        }
        let store = Store::open(&options.root).map_err(EngineError::plain)?;
        let layers = Layers::open(&options.root).map_err(EngineError::plain)?;
        let networks = Networks::open(&options.root, &options.run_root)
            .with_settings(options.settings.network.clone());
        let volumes = Volumes::open(&options.root);
        let engine = Self {
            options,
            store,
            layers,
            networks,
            volumes,
            workloads,
            events: crate::events::Pending::default(),
            guarded: Arc::default(),
        };
        engine.settle_once()?;
        Ok(engine)
    }

    /// Returns what the configuration file says.
    #[must_use]
    pub const fn settings(&self) -> &crate::Settings {
        &self.options.settings
    }

    /// Returns the workload of an executor.
    pub(crate) fn workload(&self, kind: ExecutorKind) -> Result<&dyn Workload> {
        self.workloads
            .iter()
            .find(|w| w.kind() == kind)
            .map(AsRef::as_ref)
            .ok_or_else(|| EngineError::Unsupported(format!("this build has no {kind:?} executor")))
    }

    /// Returns the data directory of a container.
    pub(crate) fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.options.root.join("containers").join(id.hex())
    }

    /// Returns the run directory of a container.
    pub(crate) fn run_dir(&self, id: &ContainerId) -> PathBuf {
        self.options.run_root.join("containers").join(id.hex())
    }

    /// Returns the path of a name's claim.
    pub(crate) fn name_path(&self, name: &str) -> PathBuf {
        self.options.root.join("names").join(name)
    }

    /// Returns the lowest directory of every root file system: empty mount points and empty
    /// `/etc` files, so that starting a container writes nothing into its writable layer.
    pub(crate) fn skeleton(&self) -> Result<PathBuf> {
        let dir = self.options.root.join("skeleton");
        if !dir.is_dir() {
            make_skeleton(&self.options.root, &dir)?;
        }
        Ok(dir)
    }

    /// Returns the program to run as supervisor and as Wasm runner.
    pub(crate) fn own_program() -> Result<OwnedFd> {
        amphora_sys::process::self_exe_readonly()
            .map_err(EngineError::io("failed to open the engine's own program"))
    }
}

fn make_skeleton(root: &Path, dir: &Path) -> Result<()> {
    let suffix = u32::from_le_bytes(crate::files::random()?);
    let temp = root.join(format!("skeleton.{suffix:08x}"));
    ensure_dir(&temp, 0o755)?;
    for name in ["dev", "etc", "proc", "sys"] {
        ensure_dir(&temp.join(name), 0o755)?;
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        crate::files::write(&temp.join("etc").join(name), b"")?;
    }
    if let Err(e) = std::fs::rename(&temp, dir) {
        crate::files::remove_tree(&temp)?;
        if !dir.is_dir() {
            return Err(EngineError::file("rename", &temp, e));
        }
    }
    Ok(())
}
