//! Images: arrival, lookup, listing, removal.

use std::collections::HashSet;
use std::fs;
use std::io::Read;

use amphora_content::{Collected, Named, Partials, Pins, WasmImage, archive};
use amphora_distribution::{Client, ClientConfig, Progress, Pulled};
use amphora_snapshot::{BlobLayer, Limits, MAX_IMAGE_LAYERS, SnapshotError};
use amphora_spec::image::{Descriptor, ImageConfig, Index, Manifest};
use amphora_spec::media::{self, LayerKind};
use amphora_spec::select::{Facts, ModuleKind};
use amphora_spec::{Classify, Digest, ErrorKind, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::config::MountPoint;
use crate::files::read_json;
use crate::{Engine, EngineError, Result};

/// Version of the image records.
const RECORD_VERSION: u32 = 2;
/// Largest manifest, index or config that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Fewest digits that stand for an id.
const MIN_PREFIX: usize = 3;
/// Deepest nesting of indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// What is recorded of an image when it arrives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Version of this record.
    pub version: u32,
    /// The image's manifest.
    pub manifest: Descriptor,
    /// The image id: digest of the config.
    pub image_id: Digest,
    /// The config; mostly empty for a bare Wasm artifact.
    pub config: ImageConfig,
    /// Layers, base first.
    pub layers: Vec<LayerRecord>,
    /// What selection needs.
    pub facts: Facts,
    /// Bytes of all blobs.
    pub size: u64,
}

/// What a record of any version says.
#[derive(Deserialize)]
struct Recorded {
    manifest: Descriptor,
}

/// One layer of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the plain tar; none for a bare Wasm layer.
    pub diff_id: Option<Digest>,
    /// Size of the blob in bytes.
    pub size: u64,
}

/// One row of `images`.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// Name, if the image has one.
    pub reference: Option<Reference>,
    /// What the name points at.
    pub target: Descriptor,
    /// The record.
    pub record: ImageRecord,
}

/// An image found for a container.
#[derive(Debug, Clone)]
pub(crate) struct FoundImage {
    pub(crate) record: ImageRecord,
}

impl Engine {
    /// Loads a docker or OCI archive. Returns the names, or ids, of what was loaded.
    ///
    /// # Errors
    /// A malformed archive, or one with an image that cannot be used. Nothing of it is visible
    /// then, and every name is what it was.
    pub fn load(&self, input: impl Read + Send) -> Result<Vec<Result<Reference, Digest>>> {
        self.collect_after_boot()?;
        let lease = self.store.lease().map_err(EngineError::plain)?;
        let loaded = archive::load(&self.store, input, &archive::LoadOptions::default())
            .map_err(EngineError::plain)?;
        let (mut out, mut ids) = (Vec::new(), Vec::new());
        for image in &loaded {
            let records = match self.arrive(&image.manifest) {
                Ok(records) => records,
                Err(e) => return Err(self.give_up(lease, e)),
            };
            ids.extend(records.first().map(|r| r.image_id.to_string()));
            out.push(match &image.reference {
                Some(reference) => Ok(reference.clone()),
                None => Err(records
                    .first()
                    .map_or(image.manifest.digest, |r| r.image_id)),
            });
        }
        archive::publish(&self.store, &loaded).map_err(EngineError::plain)?;
        for id in &ids {
            self.note("image", "load", id, &[("name", id)]);
        }
        Ok(out)
    }

    /// Collects what came and cannot be used; what was there, and its names, stay. The lease, or
    /// whatever holds it, goes first.
    pub(crate) fn give_up(&self, lease: impl Sized, error: EngineError) -> EngineError {
        drop(lease);
        // Best effort: the next collection finds it, and the first failure is the one to tell.
        let _ = self.collect();
        error
    }

    /// Makes an image of a bare `.wasm` file and names it.
    ///
    /// # Errors
    /// When the bytes are no module that can run, with the reason.
    pub fn add_wasm(&self, bytes: &[u8], reference: &Reference) -> Result<Digest> {
        let facts = amphora_artifact::inspect_wasm(bytes).map_err(EngineError::plain)?;
        self.collect_after_boot()?;
        let lease = self.store.lease().map_err(EngineError::plain)?;
        let os = if facts.kind == ModuleKind::Component {
            "wasip2"
        } else {
            "wasip1"
        };
        let image = WasmImage {
            bytes,
            os,
            component: None,
        };
        let manifest =
            amphora_content::add_wasm(&self.store, &image, None).map_err(EngineError::plain)?;
        let records = match self.arrive(&manifest) {
            Ok(records) => records,
            Err(e) => return Err(self.give_up(lease, e)),
        };
        self.store
            .sync()
            .and_then(|()| self.store.tag(reference, &manifest))
            .map_err(EngineError::plain)?;
        Ok(records.first().map_or(manifest.digest, |r| r.image_id))
    }

    /// Pulls an image, records it, and names it last.
    ///
    /// # Errors
    /// An unreachable registry, an unknown image, data that fails verification, an image that
    /// cannot be used; the name stays what it was.
    pub fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        let client = Client::new(ClientConfig {
            insecure: self
                .options
                .insecure_registries
                .iter()
                .chain(&self.options.settings.insecure_registries)
                .cloned()
                .collect(),
            mirrors: self.options.settings.registry_mirrors.clone(),
            ..ClientConfig::default()
        })
        .map_err(EngineError::plain)?;
        self.collect_after_boot()?;
        let fetched = client
            .pull(&self.store, &self.layers, reference, platform, progress)
            .map_err(EngineError::plain)?;
        if let Err(e) = self.arrive(fetched.manifest()) {
            return Err(self.give_up(fetched, e));
        }
        let pulled = fetched.publish().map_err(EngineError::plain)?;
        let repository = reference.familiar_repository();
        self.note(
            "image",
            "pull",
            &reference.familiar(),
            &[("name", &repository)],
        );
        Ok(pulled)
    }

    /// Names an image anew.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`].
    pub fn tag(&self, source: &str, target: &Reference) -> Result<()> {
        let found = self.image_targets(source)?;
        let descriptor = found
            .first()
            .ok_or_else(|| EngineError::NoSuchImage(source.to_owned()))?;
        self.store
            .tag(target, descriptor)
            .map_err(EngineError::plain)?;
        if let Ok(found) = self.find_image(source, None) {
            let id = found.record.image_id.to_string();
            self.note("image", "tag", &id, &[("name", &target.familiar())]);
        }
        Ok(())
    }

    /// Records every image below `target` whose blobs are here; unpacks and compiles ahead.
    pub(crate) fn arrive(&self, target: &Descriptor) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        self.arrive_below(target, 0, &mut HashSet::new(), &mut records)?;
        if records.is_empty() {
            return Err(EngineError::Invalid(format!(
                "no image of {} is complete",
                target.digest
            )));
        }
        Ok(records)
    }

    fn arrive_below(
        &self,
        target: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
        records: &mut Vec<ImageRecord>,
    ) -> Result<()> {
        if !seen.insert(target.digest) {
            return Ok(());
        }
        if !media::is_index(&target.media_type) {
            records.push(self.arrive_manifest(target)?);
            return Ok(());
        }
        if depth >= MAX_INDEX_DEPTH {
            return Err(EngineError::Invalid(format!(
                "index {} is nested more than {MAX_INDEX_DEPTH} deep",
                target.digest
            )));
        }
        let index: Index = self.document(&target.digest)?;
        for entry in &index.manifests {
            let unknown = entry.platform.as_ref().is_some_and(Platform::is_unknown);
            let here = self
                .store
                .has(&entry.digest)
                .map_err(EngineError::plain)?
                .is_some();
            if !unknown && here {
                self.arrive_below(entry, depth + 1, seen, records)?;
            }
        }
        Ok(())
    }

    fn arrive_manifest(&self, target: &Descriptor) -> Result<ImageRecord> {
        if let Some(record) = self.record(&target.digest)? {
            return Ok(record);
        }
        let manifest: Manifest = self.document(&target.digest)?;
        let config = self.image_config(&manifest)?;
        let layers = self.unpack_layers(&manifest, &config)?;
        let size = target.size
            + manifest.config.size
            + manifest.layers.iter().map(|l| l.size).sum::<u64>();
        let facts = crate::image_facts::gather(self, target, &manifest, &config, &layers)?;
        let record = ImageRecord {
            version: RECORD_VERSION,
            manifest: target.clone(),
            image_id: manifest.config.digest,
            config,
            layers,
            facts,
            size,
        };
        self.warm(&record)?;
        self.store
            .put_record(&target.digest, &record)
            .map_err(EngineError::plain)?;
        Ok(record)
    }

    fn image_config(&self, manifest: &Manifest) -> Result<ImageConfig> {
        let kind = manifest.config.media_type.as_str();
        match kind {
            media::OCI_CONFIG | media::DOCKER_CONFIG | media::WASM_CONFIG_V0 => {
                self.document(&manifest.config.digest)
            }
            _ => Ok(ImageConfig::default()),
        }
    }

    fn unpack_layers(&self, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<LayerRecord>> {
        if manifest.layers.len() > MAX_IMAGE_LAYERS {
            return Err(EngineError::plain(SnapshotError::TooManyLayers {
                count: manifest.layers.len(),
                limit: MAX_IMAGE_LAYERS,
            }));
        }
        let tars = manifest
            .layers
            .iter()
            .filter(|l| matches!(media::layer_kind(&l.media_type), LayerKind::Tar(_)))
            .count();
        let ids = &config.rootfs.diff_ids;
        let pairs_up = ids.len() == manifest.layers.len() || tars == 0 || ids.len() == tars;
        if tars > 0 && !pairs_up {
            return Err(EngineError::Invalid(format!(
                "image {} has {} layers and {} diff ids",
                manifest.config.digest,
                manifest.layers.len(),
                ids.len()
            )));
        }
        let by_position = ids.len() == manifest.layers.len();
        let mut next_tar = ids.iter();
        let mut out = Vec::new();
        for (position, layer) in manifest.layers.iter().enumerate() {
            let kind = media::layer_kind(&layer.media_type);
            let diff_id = match kind {
                LayerKind::Tar(_) if by_position => ids.get(position).copied(),
                LayerKind::Tar(_) => next_tar.next().copied(),
                _ => None,
            };
            if let (LayerKind::Tar(compression), Some(diff_id)) = (kind, diff_id)
                && !self.layers.has(&diff_id)
            {
                let blob = BlobLayer {
                    blob: &layer.digest,
                    label: compression,
                    diff_id: &diff_id,
                };
                self.layers
                    .unpack_blob(&self.store, blob, &Limits::default())
                    .map_err(EngineError::plain)?;
            }
            out.push(LayerRecord {
                digest: layer.digest,
                diff_id,
                size: layer.size,
            });
        }
        Ok(out)
    }

    /// Reads a JSON document from the store.
    pub(crate) fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let bytes = self
            .store
            .read_blob(digest, MAX_DOCUMENT)
            .map_err(EngineError::plain)?;
        serde_json::from_slice(&bytes).map_err(|source| EngineError::Record {
            path: format!("blobs/sha256/{}", digest.hex()).into(),
            source,
        })
    }

    fn record_path(&self, manifest: &Digest) -> std::path::PathBuf {
        let name = format!("{}.json", manifest.hex());
        self.options.root.join("images").join(name)
    }

    /// Reads the record of a manifest.
    pub(crate) fn record(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        let path = self.record_path(manifest);
        // A record of another version is made anew.
        match read_json::<ImageRecord>(&path) {
            Ok(record) => Ok(record.filter(|r| r.version == RECORD_VERSION)),
            Err(EngineError::Record { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns what is recorded of a manifest. A record of another version is made anew.
    pub(crate) fn recorded(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        if let Some(record) = self.record(manifest)? {
            return Ok(Some(record));
        }
        match read_json::<Recorded>(&self.record_path(manifest)) {
            Ok(Some(old)) if old.manifest.digest == *manifest => self.record_of(&old.manifest),
            // Of a damaged one only the image's names tell what it is about.
            Ok(_) | Err(EngineError::Record { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lists all records.
    fn records(&self) -> Result<Vec<ImageRecord>> {
        let dir = self.options.root.join("images");
        let entries = fs::read_dir(&dir).map_err(|e| EngineError::file("read", &dir, e))?;
        let mut out = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|n| n.strip_suffix(".json"))
                .and_then(|n| Digest::from_hex(n).ok());
            if let Some(digest) = digest
                && let Some(record) = self.recorded(&digest)?
            {
                out.push(record);
            }
        }
        Ok(out)
    }

    /// Finds what a name, id or id prefix points at.
    pub(crate) fn image_targets(&self, text: &str) -> Result<Vec<Descriptor>> {
        if let Ok(reference) = text.parse::<Reference>() {
            let reference = reference.with_default_tag();
            if let Some(target) = self.store.resolve(&reference).map_err(EngineError::plain)? {
                return Ok(vec![target]);
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < MIN_PREFIX || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let mut ids: Vec<(Digest, Descriptor)> = self
            .records()?
            .into_iter()
            .filter(|r| {
                r.image_id.hex().starts_with(hex) || r.manifest.digest.hex().starts_with(hex)
            })
            .map(|r| (r.image_id, r.manifest))
            .collect();
        ids.dedup_by_key(|(id, _)| *id);
        if ids.len() > 1 {
            return Err(EngineError::Ambiguous(text.to_owned()));
        }
        Ok(ids.into_iter().map(|(_, d)| d).collect())
    }

    /// Finds the image a container shall run, by Docker's rules and `platform`.
    pub(crate) fn find_image(&self, text: &str, platform: Option<&Platform>) -> Result<FoundImage> {
        let missing = || {
            let shown = text
                .parse::<Reference>()
                .map_or_else(|_| text.to_owned(), |r| r.with_default_tag().familiar());
            EngineError::NoSuchImage(shown)
        };
        let target = self
            .image_targets(text)?
            .into_iter()
            .next()
            .ok_or_else(missing)?;
        let candidates = self.records_of(&target)?;
        let record = choose(candidates, platform).ok_or_else(missing)?;
        Ok(FoundImage { record })
    }

    /// Returns the records of all images that a manifest or index leads to.
    pub(crate) fn records_of(&self, target: &Descriptor) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        self.collect_records(target, 0, &mut HashSet::new(), &mut records)?;
        Ok(records)
    }

    /// Returns an image's record, made anew when it is damaged or another version's.
    fn record_of(&self, target: &Descriptor) -> Result<Option<ImageRecord>> {
        match self.record(&target.digest)? {
            None if self.record_path(&target.digest).exists() => {
                match self.arrive_manifest(target) {
                    Ok(record) => Ok(Some(record)),
                    // An image that is damaged is no reason not to list the others.
                    Err(e) if is_its_own(&e) => Ok(None),
                    Err(e) => Err(e),
                }
            }
            found => Ok(found),
        }
    }

    fn collect_records(
        &self,
        target: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
        out: &mut Vec<ImageRecord>,
    ) -> Result<()> {
        if !seen.insert(target.digest) {
            return Ok(());
        }
        if !media::is_index(&target.media_type) {
            out.extend(self.record_of(target)?);
            return Ok(());
        }
        if depth >= MAX_INDEX_DEPTH {
            return Ok(());
        }
        let index: Index = match self.document(&target.digest) {
            Ok(index) => index,
            // Other platforms' indexes are not fetched; a damaged one leads nowhere either.
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in &index.manifests {
            self.collect_records(entry, depth + 1, seen, out)?;
        }
        Ok(())
    }

    /// Lists images: one row a name, and one for each image without a name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        Ok(self.all_images()?.0)
    }

    /// The same, and a line for each entry that leads to no image any more.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all_images(&self) -> Result<(Vec<ImageSummary>, Vec<String>)> {
        let (mut rows, mut damaged) = (Vec::new(), Vec::new());
        for named in self.store.list_all().map_err(EngineError::plain)? {
            let records = self.records_of(&named.target)?;
            match choose(records, None) {
                Some(record) => rows.push(ImageSummary {
                    reference: named.reference,
                    target: named.target,
                    record,
                }),
                None => damaged.push(damage(&named)),
            }
        }
        Ok((rows, damaged))
    }

    /// Finds an image with its names, for `inspect`.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`].
    pub fn image(&self, text: &str) -> Result<(ImageRecord, Vec<Reference>)> {
        let found = self.find_image(text, None)?;
        let entries = self.entries_of(&found.record.manifest.digest)?;
        let names = entries.into_iter().filter_map(|e| e.reference).collect();
        Ok((found.record, names))
    }

    /// Returns the entries, named or not, that lead to an image: its manifest, or an index with it.
    fn entries_of(&self, manifest: &Digest) -> Result<Vec<Named>> {
        let mut entries = Vec::new();
        for named in self.store.list_all().map_err(EngineError::plain)? {
            let records = self.records_of(&named.target)?;
            if records.iter().any(|r| r.manifest.digest == *manifest) {
                entries.push(named);
            }
        }
        Ok(entries)
    }

    /// Removes a name and, with the last name, the image. Returns Docker's lines.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`]; [`EngineError::Conflict`] when a container uses it.
    pub fn remove_image(&self, text: &str, force: bool) -> Result<Vec<String>> {
        let mut found = self.image(text);
        if matches!(found, Err(EngineError::NoSuchImage(_))) {
            // What is listed has its torn record made anew.
            self.images()?;
            found = self.image(text);
        }
        let (record, names) = match found {
            Err(missing @ EngineError::NoSuchImage(_)) => {
                return self.remove_damaged_image(text, force, missing);
            }
            found => found?,
        };
        let by_name = text
            .parse::<Reference>()
            .ok()
            .map(Reference::with_default_tag)
            .filter(|r| names.contains(r));
        let (gone, last) = match by_name {
            Some(name) => {
                let last = names.len() == 1;
                (vec![name], last)
            }
            None if names.len() > 1 && !force => {
                return Err(EngineError::Conflict(format!(
                    "unable to delete {} (must be forced) - image is referenced in multiple repositories",
                    record.image_id.short()
                )));
            }
            None => (names, true),
        };
        if last {
            let manifest = &record.manifest.digest;
            self.check_unused(manifest, &record.image_id, text, force)?;
        }
        let id = record.image_id.to_string();
        let mut lines = Vec::new();
        for name in &gone {
            self.store.untag(name).map_err(EngineError::plain)?;
            self.defer("image", "untag", &id, &[("name", &id)]);
            lines.push(format!("Untagged: {}", name.familiar()));
        }
        if last {
            self.forget(&record.manifest.digest)?;
            self.collect()?;
            self.defer("image", "delete", &id, &[("name", &id)]);
            lines.push(format!("Deleted: {id}"));
        }
        self.flush_events();
        Ok(lines)
    }

    /// Removes a name, or what an id stands for, that leads to no image any more.
    fn remove_damaged_image(
        &self,
        text: &str,
        force: bool,
        missing: EngineError,
    ) -> Result<Vec<String>> {
        let name = text.parse().ok().map(Reference::with_default_tag);
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let mut found = Vec::new();
        for entry in self.store.list_all().map_err(EngineError::plain)? {
            let named = name.is_some() && entry.reference == name;
            let by_id = hex.len() >= MIN_PREFIX && entry.target.digest.hex().starts_with(hex);
            if (named || by_id) && self.records_of(&entry.target)?.is_empty() {
                found.push(entry);
            }
        }
        let Some(target) = found.first().map(|entry| entry.target.digest) else {
            return Err(missing);
        };
        if found.iter().any(|entry| entry.target.digest != target) {
            return Err(EngineError::Ambiguous(text.to_owned()));
        }
        self.check_unused(&target, &target, text, force)?;
        let id = target.to_string();
        let mut lines = Vec::new();
        for name in found.into_iter().filter_map(|entry| entry.reference) {
            self.store.untag(&name).map_err(EngineError::plain)?;
            self.defer("image", "untag", &id, &[("name", &id)]);
            lines.push(format!("Untagged: {}", name.familiar()));
        }
        let left = self.store.list_all().map_err(EngineError::plain)?;
        let other = |e: &Named| e.target.digest == target && e.reference.is_some();
        if !left.iter().any(other) {
            self.store.untag_all(&target).map_err(EngineError::plain)?;
            self.collect()?;
            self.defer("image", "delete", &id, &[("name", &id)]);
            lines.push(format!("Deleted: {id}"));
        }
        self.flush_events();
        Ok(lines)
    }

    /// Removes every entry that leads to an image; its content goes with the next collection.
    fn forget(&self, manifest: &Digest) -> Result<()> {
        for entry in self.entries_of(manifest)? {
            self.store
                .untag_all(&entry.target.digest)
                .map_err(EngineError::plain)?;
        }
        Ok(())
    }

    /// Removes content that no name and no container reaches.
    fn collect(&self) -> Result<Collected> {
        self.sweep_removed()?;
        let mut pins = Pins::default();
        for id in self.ids()? {
            if let Ok(config) = self.config(&id) {
                for point in &config.host.mounts {
                    if let MountPoint::Image {
                        manifest, layers, ..
                    } = point
                    {
                        pins.manifests.extend(manifest);
                        pins.layers.extend(layers);
                    }
                }
                pins.manifests.push(config.manifest);
                pins.layers.extend(config.layers);
            }
        }
        amphora_snapshot::collect(&self.store, &self.layers, &pins, Partials::Keep)
            .map_err(EngineError::plain)
    }

    /// Collects before the first arrival since the machine started: what has no name was perhaps
    /// not on disk when the power failed, and would be taken for whole.
    pub(crate) fn collect_after_boot(&self) -> Result<()> {
        // The run root does not survive a boot.
        let done = self.options.run_root.join("collected");
        if !done.exists() && !self.collect()?.deferred {
            fs::write(&done, "").map_err(|e| EngineError::file("write", &done, e))?;
        }
        Ok(())
    }

    /// Refuses to remove an image that a container uses; it is shown as `image`.
    fn check_unused(
        &self,
        manifest: &Digest,
        image: &Digest,
        text: &str,
        force: bool,
    ) -> Result<()> {
        for id in self.ids()? {
            let Ok(config) = self.config(&id) else {
                continue;
            };
            let mounts = |point: &MountPoint| matches!(point, MountPoint::Image { manifest: Some(m), .. } if m == manifest);
            if config.manifest != *manifest && !config.host.mounts.iter().any(mounts) {
                continue;
            }
            let running = match self.view(&id) {
                Ok(view) => view.status.is_active(),
                // It ended with `--rm`; while it is on its way out it still keeps its layers.
                Err(EngineError::NoSuchContainer(_)) => {
                    self.wait_erased(&id)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            if running || !force {
                let what = if running { "running " } else { "stopped " };
                let how = if running {
                    "cannot be forced"
                } else {
                    "must be forced"
                };
                return Err(EngineError::Conflict(format!(
                    "unable to remove repository reference \"{text}\" ({how}) - container {} is using its referenced image {} ({what}container)",
                    id.short(),
                    image.short()
                )));
            }
        }
        Ok(())
    }
}

/// What is said of an entry that leads to no image.
fn damage(named: &Named) -> String {
    let name = named.reference.as_ref().map(Reference::familiar);
    format!(
        "image {} ({}) is damaged: load or pull it again, or remove it",
        name.as_deref().unwrap_or("<none>"),
        named.target.digest.short()
    )
}

/// Says whether a document is not there, or is none that can be read.
fn is_absent(error: &EngineError) -> bool {
    match error {
        EngineError::Record { .. } => true,
        EngineError::Plain { kind, .. } => matches!(
            kind,
            // Over the bound of a document it is a layer.
            ErrorKind::NotFound | ErrorKind::DataLoss | ErrorKind::InvalidArgument
        ),
        _ => false,
    }
}

/// Says whether the image itself is what failed, not the disk, the memory or the caller's rights.
fn is_its_own(error: &EngineError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::DataLoss
            | ErrorKind::InvalidArgument
            | ErrorKind::Unsupported
    )
}

/// Chooses among the images of one index: the platform asked for, else the host's Linux, else
/// Wasm, else the only one there is.
pub(crate) fn choose(
    candidates: Vec<ImageRecord>,
    platform: Option<&Platform>,
) -> Option<ImageRecord> {
    let of = |r: &ImageRecord| {
        r.manifest
            .platform
            .clone()
            .unwrap_or_else(|| r.config.platform())
    };
    let is_wasm = |r: &ImageRecord| of(r).is_wasm() || crate::image_facts::is_artifact(&r.facts);
    match platform {
        Some(want) if want.is_wasm() => {
            let exact = candidates
                .iter()
                .position(|r| of(r).os.eq_ignore_ascii_case(&want.os));
            let family = candidates.iter().position(is_wasm);
            let at = exact
                .filter(|i| candidates.get(*i).is_some_and(is_wasm))
                .or(family)?;
            candidates.into_iter().nth(at)
        }
        Some(want) => candidates.into_iter().find(|r| {
            let have = of(r);
            have.os.eq_ignore_ascii_case(&want.os)
                && have.architecture.eq_ignore_ascii_case(&want.architecture)
        }),
        None => {
            let linux = candidates.iter().position(|r| of(r).is_host_linux());
            let wasm = candidates.iter().position(is_wasm);
            let at = linux.or(wasm).unwrap_or(0);
            candidates.into_iter().nth(at)
        }
    }
}
