//! Images made of containers and of archives: commit, export, import.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use amphora_content::compress::decompress;
use amphora_content::tarball::{Entry, EntryKind};
use amphora_content::{Lease, Spool};
use amphora_spec::image::{Descriptor, Manifest};
use amphora_spec::media::{self, Compression};
use amphora_spec::select::ModuleLocation;
use amphora_spec::{ContainerId, Digest, Platform, Reference};
use rustix::fs::OFlags;
use serde_json::{Map, Value, json};

use crate::archive::pack::Packer;
use crate::archive::unpack::{Confine, open_in};
use crate::changes::{Change, ChangeKind, Views, changes};
use crate::config::{ContainerConfig, MountPoint};
use crate::container::Status;
use crate::image::ImageRecord;
use crate::{Engine, EngineError, Result, instructions};

/// The plain tar without entries.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// How a container becomes an image.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Author.
    pub author: String,
    /// Message.
    pub message: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// Pause the container meanwhile.
    pub pause: bool,
}

/// How an archive becomes an image.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Message.
    pub message: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// Platform of the image; the host's unless given.
    pub platform: Option<Platform>,
}

/// Lets a container go on however the commit ends.
struct Paused<'a> {
    engine: &'a Engine,
    id: ContainerId,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // One that has ended meanwhile needs nothing.
        let _ = self.engine.unpause(&self.id);
    }
}

impl Engine {
    /// Makes an image of a container: the layers of its image and one of its own changes.
    /// Returns the image's id.
    ///
    /// # Errors
    /// An instruction that changes no config; files that cannot be read; a full disk. Nothing is
    /// visible then.
    pub fn commit(
        &self,
        id: &ContainerId,
        reference: Option<&Reference>,
        options: &CommitOptions,
    ) -> Result<Digest> {
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        let config = &view.config;
        let base = self.base_of(config)?;
        let mut document = self.base_document(&base, config)?;
        let mut part = container_part(&document, config);
        instructions::apply(&mut part, &options.changes)?;
        document.insert("config".to_owned(), Value::Object(part));
        self.collect_after_boot()?;
        let lease = self.store.lease().map_err(EngineError::plain)?;
        let pause = options.pause && view.status == Status::Running && !view.paused;
        let paused = pause.then(|| self.pause(id)).transpose()?.map(|()| Paused {
            engine: self,
            id: *id,
        });
        let layer = self.change_layer(config, &base)?;
        drop(paused);
        let mut history = json!({
            "created": crate::list::now(),
            "created_by": config.cmd.join(" "),
        });
        let notes = [("author", &options.author), ("comment", &options.message)];
        for (key, value) in notes.into_iter().filter(|(_, value)| !value.is_empty()) {
            history[key] = json!(value);
        }
        let mut layers: Vec<Descriptor> = Vec::new();
        if crate::image_facts::is_artifact(&base.facts) {
            document.insert("os".to_owned(), json!(base.config.os));
        } else {
            let manifest: Manifest = self.document(&base.manifest.digest)?;
            layers.extend(manifest.layers.into_iter().map(oci_layer));
        }
        if layer.digest.to_string() == EMPTY_LAYER {
            history["empty_layer"] = json!(true);
        } else {
            push(&mut document, "rootfs", json!(layer.digest));
            layers.push(layer);
        }
        push(&mut document, "history", history);
        document.insert("created".to_owned(), json!(crate::list::now()));
        document.insert("author".to_owned(), json!(options.author));
        let image = self.write_image(&document, layers, reference, lease)?;
        let name = reference.map(Reference::familiar).unwrap_or_default();
        let (id, comment) = (image.to_string(), options.message.as_str());
        let more = [("comment", comment), ("imageID", &id), ("imageRef", &name)];
        self.note_container(config, "commit", &more);
        Ok(image)
    }

    /// Makes an image of one layer of an archive, plain or compressed. Returns the image's id.
    ///
    /// # Errors
    /// An instruction that changes no config; an archive that is none; a full disk.
    pub fn import(
        &self,
        input: impl Read + Send,
        reference: Option<&Reference>,
        options: &ImportOptions,
    ) -> Result<Digest> {
        let mut part = Map::new();
        instructions::apply(&mut part, &options.changes)?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        self.collect_after_boot()?;
        let lease = self.store.lease().map_err(EngineError::plain)?;
        let failed = EngineError::io("failed to read the archive");
        let mut spool = self.store.spool().map_err(EngineError::plain)?;
        decompress(Compression::None, input)
            .and_then(|mut plain| io::copy(&mut plain, &mut spool))
            .map_err(failed)?;
        let layer = self.store_layer(spool)?;
        let mut document = Map::new();
        let now = crate::list::now();
        let mut fields = vec![
            ("created", json!(now)),
            ("architecture", json!(platform.architecture)),
            ("os", json!(platform.os)),
            ("config", Value::Object(part)),
            (
                "rootfs",
                json!({ "type": "layers", "diff_ids": [layer.digest] }),
            ),
            (
                "history",
                json!([{ "created": now, "comment": options.message }]),
            ),
        ];
        if let Some(variant) = &platform.variant {
            fields.push(("variant", json!(variant)));
        }
        for (key, value) in fields {
            document.insert(key.to_owned(), value);
        }
        let image = self.write_image(&document, vec![layer], reference, lease)?;
        let id = image.to_string();
        self.note("image", "import", &id, &[("name", &id)]);
        Ok(image)
    }

    /// Writes all files of a container, without its volumes, as a tar stream.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; a file that cannot be read; what writing answers.
    pub fn export(&self, id: &ContainerId, out: impl Write) -> Result<()> {
        self.reconcile_one(id)?;
        let config = self.config(id)?;
        let views = self.views(&config)?;
        self.note_container(&config, "export", &[]);
        let mut packer = Packer::new(out);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        open_in(views.merged.as_fd(), b".", Confine::NoLinks, flags)
            .map_err(io::Error::from)
            .and_then(|root| packer.contents(&root))
            .and_then(|()| packer.finish())
            .map(drop)
            .map_err(EngineError::io(format!("failed to export container {id}")))
    }

    fn base_of(&self, config: &ContainerConfig) -> Result<ImageRecord> {
        self.recorded(&config.manifest)?
            .ok_or_else(|| EngineError::NoSuchImage(config.image.clone()))
    }

    /// The config of the container's image with all its fields, also those we do not know.
    fn base_document(
        &self,
        base: &ImageRecord,
        config: &ContainerConfig,
    ) -> Result<Map<String, Value>> {
        if !crate::image_facts::is_artifact(&base.facts) {
            return self.document(&base.image_id);
        }
        let mut document = Map::new();
        document.insert("architecture".to_owned(), json!("wasm"));
        document.insert("os".to_owned(), json!(base.config.os));
        let entrypoint: Vec<String> = config.entrypoint.iter().map(|e| in_root(e)).collect();
        document.insert("config".to_owned(), json!({ "Entrypoint": entrypoint }));
        Ok(document)
    }

    /// Writes the container's changes as a layer.
    fn change_layer(&self, config: &ContainerConfig, base: &ImageRecord) -> Result<Descriptor> {
        let failed = || {
            EngineError::io(format!(
                "failed to read the changes of container {}",
                config.id
            ))
        };
        let views = self.views(config)?;
        let list = changes(&views).map_err(failed())?;
        let spool = self.store.spool().map_err(EngineError::plain)?;
        let mut packer = Packer::new(spool);
        if crate::image_facts::is_artifact(&base.facts) {
            self.pack_module(config, base, &mut packer)?;
        }
        pack_changes(&views, &list, &mut packer).map_err(failed())?;
        let (spool, _) = packer.finish().map_err(failed())?;
        self.store_layer(spool)
    }

    /// An image of a bare module has no files: the module becomes the first one.
    fn pack_module(
        &self,
        config: &ContainerConfig,
        base: &ImageRecord,
        packer: &mut Packer<Spool>,
    ) -> Result<()> {
        let Some(ModuleLocation::Layer(digest)) = base.facts.module.as_ref().map(|m| &m.location)
        else {
            return Ok(());
        };
        let program = config.entrypoint.first().map(|e| in_root(e));
        let name = program.unwrap_or_else(|| "/module.wasm".to_owned());
        let name = amphora_artifact::split_function(&name).0.to_owned();
        let file = self.store.open_blob(digest).map_err(EngineError::plain)?;
        let size = self.store.has(digest).map_err(EngineError::plain)?;
        let entry = Entry {
            path: name.trim_start_matches('/').as_bytes().to_vec(),
            link: Vec::new(),
            kind: EntryKind::File,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: size.unwrap_or(0),
            device: (0, 0),
            xattrs: Vec::new(),
        };
        packer
            .data(&entry, &mut io::BufReader::new(file))
            .map_err(EngineError::io(format!("failed to copy module {digest}")))
    }

    fn store_layer(&self, spool: Spool) -> Result<Descriptor> {
        let spooled = spool.finish();
        let size = spooled.size();
        let digest = spooled.commit(&self.store).map_err(EngineError::plain)?;
        Ok(descriptor(media::OCI_LAYER, digest, size))
    }

    /// Writes config and manifest, unpacks the layers and names the image.
    fn write_image(
        &self,
        document: &Map<String, Value>,
        layers: Vec<Descriptor>,
        reference: Option<&Reference>,
        lease: Lease,
    ) -> Result<Digest> {
        let config = self.write_document(media::OCI_CONFIG, &json!(document))?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: config.clone(),
            layers,
            annotations: BTreeMap::new(),
        };
        let target = self.write_document(media::OCI_MANIFEST, &json!(manifest))?;
        if let Err(error) = self.arrive(&target) {
            return Err(self.give_up(lease, error));
        }
        // A name leads to whole content, the unpacked layer too, after a power cut too.
        let named = self.store.sync().and_then(|()| match reference {
            Some(name) => self.store.tag(name, &target).map(drop),
            None => self.store.keep_untagged(&target),
        });
        named.map_err(EngineError::plain)?;
        Ok(config.digest)
    }

    fn write_document(&self, media_type: &str, value: &Value) -> Result<Descriptor> {
        let bytes = value.to_string().into_bytes();
        let digest = self.store.write_blob(&bytes).map_err(EngineError::plain)?;
        Ok(descriptor(media_type, digest, bytes.len() as u64))
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
        artifact_type: None,
    }
}

/// The same layer under its name in an OCI manifest.
fn oci_layer(mut layer: Descriptor) -> Descriptor {
    let name = match layer.media_type.as_str() {
        media::DOCKER_LAYER_GZIP => media::OCI_LAYER_GZIP,
        media::DOCKER_LAYER => media::OCI_LAYER,
        _ => return layer,
    };
    name.clone_into(&mut layer.media_type);
    layer
}

fn in_root(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Adds to `history`, or to the diff ids in `rootfs`.
fn push(document: &mut Map<String, Value>, key: &str, value: Value) {
    let slot = document.entry(key).or_insert(Value::Null);
    let list = if key == "rootfs" {
        if !slot.is_object() {
            *slot = json!({ "type": "layers" });
        }
        &mut slot["diff_ids"]
    } else {
        slot
    };
    match list.as_array_mut() {
        Some(list) => list.push(value),
        None => *list = json!([value]),
    }
}

/// The image's defaults as the container has them.
fn container_part(document: &Map<String, Value>, config: &ContainerConfig) -> Map<String, Value> {
    let base = document.get("config").and_then(Value::as_object);
    let mut part = base.cloned().unwrap_or_default();
    let artifact = !document.contains_key("rootfs");
    let set: BTreeMap<&str, Value> = [
        ("Env", json!(config.env)),
        ("Cmd", json!(config.cmd)),
        ("Entrypoint", json!(config.entrypoint)),
        ("User", json!(config.user)),
        ("WorkingDir", json!(config.workdir)),
        ("Labels", json!(config.labels)),
        ("StopSignal", json!(config.stop_signal)),
        ("Healthcheck", json!(config.health)),
    ]
    .into_iter()
    .filter(|(key, _)| !(artifact && *key == "Entrypoint"))
    .collect();
    for (key, value) in set {
        let empty = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty() || (key == "StopSignal" && text == "SIGTERM"),
            _ => false,
        };
        if empty {
            part.remove(key);
        } else {
            part.insert(key.to_owned(), value);
        }
    }
    let keys = |list: Vec<&String>| -> Map<String, Value> {
        list.into_iter().map(|k| (k.clone(), json!({}))).collect()
    };
    let ports = keys(config.exposed.iter().collect());
    let volumes = keys(
        config
            .host
            .mounts
            .iter()
            .filter_map(|m| match m {
                MountPoint::Volume {
                    destination,
                    anonymous: true,
                    ..
                } => Some(destination),
                _ => None,
            })
            .collect(),
    );
    for (key, map) in [("ExposedPorts", ports), ("Volumes", volumes)] {
        if map.is_empty() {
            part.remove(key);
        } else {
            part.insert(key.to_owned(), Value::Object(map));
        }
    }
    part
}

/// Writes changes as the entries of a layer: what is there now, and whiteouts.
fn pack_changes(views: &Views, list: &[Change], packer: &mut Packer<Spool>) -> io::Result<()> {
    let mut open: Option<(Vec<u8>, OwnedFd)> = None;
    for change in list {
        let path = change.path.strip_prefix(b"/").unwrap_or(&change.path);
        let cut = path.iter().rposition(|b| *b == b'/');
        let (above, name) = match cut {
            Some(at) => path.split_at(at + 1),
            None => (&b""[..], path),
        };
        if change.kind == ChangeKind::Deleted {
            let path = [above, b".wh.", name].concat();
            packer.entry(&whiteout(path))?;
            continue;
        }
        if open.as_ref().is_none_or(|(at, _)| at != above) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let from = if above.is_empty() { b"." } else { above };
            let dir = open_in(views.merged.as_fd(), from, Confine::NoLinks, flags)?;
            open = Some((above.to_vec(), dir));
        }
        if let Some((_, dir)) = &open {
            packer.single(dir.as_fd(), name, path)?;
        }
    }
    Ok(())
}

fn whiteout(path: Vec<u8>) -> Entry {
    Entry {
        path,
        link: Vec::new(),
        kind: EntryKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 0,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}
