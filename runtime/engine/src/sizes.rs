//! What containers, images and volumes take on disk.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use amphora_spec::{ContainerId, Digest};

use crate::{Engine, Result};

/// Sizes of a container's files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerSize {
    /// Its writable layer.
    pub writable: u64,
    /// All its layers together.
    pub root: u64,
}

impl Engine {
    /// Measures a container's files.
    ///
    /// # Errors
    /// [`crate::EngineError::NoSuchContainer`].
    pub fn container_size(&self, id: &ContainerId) -> Result<ContainerSize> {
        let config = self.config(id)?;
        let writable = tree_size(&self.container_dir(id).join("upper"));
        let layers: u64 = config.layers.iter().map(|l| self.layer_size(l)).sum();
        Ok(ContainerSize {
            writable,
            root: writable + layers,
        })
    }

    /// Measures a volume's files.
    #[must_use]
    pub fn volume_size(&self, name: &str) -> u64 {
        tree_size(&self.volume_path(name))
    }

    /// Measures an unpacked layer.
    #[must_use]
    pub fn layer_size(&self, diff_id: &Digest) -> u64 {
        tree_size(&self.layers.path(diff_id))
    }
}

/// Bytes of all files below a directory, each file once; what cannot be read counts nothing.
/// Links are not followed.
pub(crate) fn tree_size(root: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut open = vec![root.to_owned()];
    let mut total = 0;
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.nlink() < 2 || seen.insert((meta.dev(), meta.ino())) {
                total += meta.len();
            }
        }
    }
    total
}
