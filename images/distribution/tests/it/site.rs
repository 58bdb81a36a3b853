//! A store and a layer store in memory, and a pull into them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amphora_content::Store;
use amphora_distribution::{
    Client, ClientConfig, DistributionError, PlainProgress, Progress, PullEvent, Pulled,
    RetryPolicy,
};
use amphora_snapshot::Layers;
use amphora_spec::{Digest, Platform, Reference};

/// A directory that goes with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = if Path::new("/dev/shm").is_dir() {
            "/dev/shm"
        } else {
            "/tmp"
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!(
            "{base}/amphora-pull-{}-{number}",
            std::process::id()
        ));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where a test pulls to.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) layers: Layers,
}

/// A configuration that fails fast.
pub(crate) fn quick() -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(5),
        silence_timeout: Duration::from_millis(400),
        retry: RetryPolicy {
            attempts: 4,
            backoff: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            retry_after_max: Duration::from_millis(1500),
        },
        ..ClientConfig::default()
    }
}

/// Keeps all events.
#[derive(Default)]
pub(crate) struct Events(pub(crate) Mutex<Vec<(String, PullEvent)>>);

impl Progress for Events {
    fn event(&self, layer: &str, event: PullEvent) {
        self.0.lock().unwrap().push((layer.to_owned(), event));
    }
}

impl Events {
    pub(crate) fn of(&self, digest: &Digest) -> Vec<PullEvent> {
        let events = self.0.lock().unwrap();
        events
            .iter()
            .filter(|(id, _)| *id == digest.short())
            .map(|(_, e)| *e)
            .collect()
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::at(TempDir::new())
    }

    fn at(dir: TempDir) -> Self {
        let store = Store::open(dir.path()).unwrap();
        let layers = Layers::open(dir.path()).unwrap();
        Self { dir, store, layers }
    }

    pub(crate) fn pull_with(
        &self,
        config: ClientConfig,
        name: &str,
        platform: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Pulled, DistributionError> {
        let reference: Reference = name.parse().unwrap();
        let platform = platform.map(|p| p.parse::<Platform>().unwrap());
        let client = Client::new(config)?;
        let (store, layers) = (&self.store, &self.layers);
        client
            .pull(store, layers, &reference, platform.as_ref(), progress)?
            .publish()
    }

    pub(crate) fn pull(&self, name: &str) -> Result<Pulled, DistributionError> {
        self.pull_with(quick(), name, None, &amphora_distribution::Silent)
    }

    /// Pulls and returns what a log file would hold.
    pub(crate) fn pull_plainly(&self, name: &str) -> (Pulled, String) {
        let progress = PlainProgress::new(Vec::new());
        let pulled = self.pull_with(quick(), name, None, &progress).unwrap();
        (pulled, String::from_utf8(progress.into_inner()).unwrap())
    }

    /// Reads a file of an unpacked layer.
    pub(crate) fn file(&self, diff_id: &Digest, path: &str) -> Vec<u8> {
        fs::read(self.layers.path(diff_id).join(path)).unwrap()
    }

    pub(crate) fn part(&self, blob: &Digest) -> PathBuf {
        self.dir.path().join(format!("ingest/{}.part", blob.hex()))
    }

    /// Names of everything that content leaves in the data root.
    pub(crate) fn contents(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["blobs/sha256", "ingest", "layers", "images"] {
            for entry in fs::read_dir(self.dir.path().join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if !name.starts_with(".empty") {
                    found.push(format!("{folder}/{name}"));
                }
            }
        }
        found.sort();
        found
    }

    /// Asserts that a failed pull has left nothing at all.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.contents(), Vec::<String>::new());
        assert!(self.store.list_all().unwrap().is_empty());
    }
}
