//! Prune and disk usage: what nobody uses, and what it takes.

use std::collections::BTreeSet;

use amphora_spec::Digest;

use crate::image::{ImageRecord, ImageSummary};
use crate::{Engine, RemoveOptions, Result};

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Ids, names, or Docker's lines of images.
    pub removed: Vec<String>,
    /// Bytes that are free again.
    pub bytes: u64,
}

impl Engine {
    /// Removes the containers that do not run and that `keep` does not hold.
    ///
    /// # Errors
    /// When the list cannot be read; a container that somebody started meanwhile is left alone.
    pub fn prune_containers(&self, keep: &dyn Fn(&crate::Listed) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for listed in self.ps(true)? {
            let id = listed.summary.id;
            // A damaged one is removed by nobody but its owner.
            if listed.status.is_active() || listed.damage.is_some() || keep(&listed) {
                continue;
            }
            let size = self.container_size(&id).map_or(0, |s| s.writable);
            if self.remove(&id, RemoveOptions::default()).is_ok() {
                pruned.removed.push(id.hex());
                pruned.bytes += size;
            }
        }
        Ok(pruned)
    }

    /// Removes volumes that no container mentions: anonymous ones, with `all` all of them.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn prune_volumes(
        &self,
        all: bool,
        keep: &dyn Fn(&std::collections::BTreeMap<String, String>) -> bool,
    ) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for volume in self.volumes()? {
            if !(all || anonymous(&volume.name)) || keep(&volume.labels) {
                continue;
            }
            let size = self.volume_size(&volume.name);
            // One that a container mentions refuses.
            if self.volume_remove(&volume.name).is_ok() {
                pruned.removed.push(volume.name);
                pruned.bytes += size;
            }
        }
        Ok(pruned)
    }

    /// Removes images without a name, with `all` those that no container uses.
    ///
    /// # Errors
    /// When the lists cannot be read.
    pub fn prune_images(&self, all: bool, keep: &dyn Fn(&ImageSummary) -> bool) -> Result<Pruned> {
        let before = self.content_size();
        let used: BTreeSet<String> = self
            .ps(true)?
            .into_iter()
            .map(|c| c.summary.image_id().to_owned())
            .collect();
        let mut pruned = Pruned::default();
        for image in self.images()? {
            let id = image.record.image_id.to_string();
            if used.contains(&id) || keep(&image) || !(all || image.reference.is_none()) {
                continue;
            }
            let name = image.reference.as_ref().map_or(id, ToString::to_string);
            if let Ok(lines) = self.remove_image(&name, false) {
                for line in lines {
                    let line = line
                        .replacen("Untagged:", "untagged:", 1)
                        .replacen("Deleted:", "deleted:", 1);
                    pruned.removed.push(line);
                }
            }
        }
        if !pruned.removed.is_empty() {
            pruned.bytes = before.saturating_sub(self.content_size());
        }
        Ok(pruned)
    }

    /// Bytes of blobs and unpacked layers together.
    #[must_use]
    pub fn content_size(&self) -> u64 {
        ["blobs", "layers", "wasm-aot"]
            .iter()
            .map(|name| crate::sizes::tree_size(&self.options.root.join(name)))
            .sum()
    }

    /// Measures an image's unpacked layers, base first; 0 for what is not a tar.
    #[must_use]
    pub fn image_layers(&self, record: &ImageRecord) -> Vec<(Digest, u64)> {
        record
            .layers
            .iter()
            .map(|l| match l.diff_id {
                Some(id) => (id, self.layer_size(&id)),
                None => (l.digest, l.size),
            })
            .collect()
    }

    /// Says where the engine keeps its data.
    #[must_use]
    pub fn data_root(&self) -> &std::path::Path {
        &self.options.root
    }

    /// The machine's memory in bytes.
    #[must_use]
    pub fn machine_memory(&self) -> u64 {
        crate::usage::machine_memory()
    }
}

/// Whether a volume's name was generated.
fn anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}
