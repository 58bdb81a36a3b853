//! What an image's entry point is: looked at once, when the image arrives.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use amphora_artifact::{Entry, FactsInput, MAX_MODULE_BYTES};
use amphora_executor::Module;
use amphora_spec::Digest;
use amphora_spec::image::{Descriptor, ImageConfig, Manifest};
use amphora_spec::media::{LayerKind, layer_kind};
use amphora_spec::select::{Executor, Facts, Magic, ModuleLocation, Options, select};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

use crate::config::ModuleConfig;
use crate::image::{ImageRecord, LayerRecord};
use crate::{Engine, EngineError, Result};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Says whether the module is a layer of its own, so that the image has no root file system.
pub(crate) fn is_artifact(facts: &Facts) -> bool {
    facts
        .layers
        .iter()
        .any(|l| layer_kind(l) == LayerKind::Wasm)
}

/// Gathers an image's facts.
pub(crate) fn gather(
    engine: &Engine,
    target: &Descriptor,
    manifest: &Manifest,
    config: &ImageConfig,
    layers: &[LayerRecord],
) -> Result<Facts> {
    let found = match amphora_artifact::module_layer(manifest) {
        Some(layer) => {
            let bytes = engine
                .store
                .read_blob(&layer.digest, MAX_MODULE_BYTES)
                .map_err(EngineError::plain)?;
            Some(Found {
                location: ModuleLocation::Layer(layer.digest),
                bytes,
                digest: layer.digest,
            })
        }
        None => {
            let ids: Vec<Digest> = layers.iter().filter_map(|l| l.diff_id).collect();
            let (program, _) = amphora_artifact::entrypoint(&config.config);
            look(engine, &ids, config, &program)?
        }
    };
    let input = |entry| FactsInput {
        manifest,
        config: Some(config),
        annotations: &target.annotations,
        entry,
    };
    match amphora_artifact::facts(input(found.as_ref().map(Found::entry))) {
        Ok(facts) => Ok(facts),
        // Damaged or too large to be looked into: recorded without a module, refused at create.
        Err(_) => {
            let entry = found.as_ref().map(|f| Entry {
                digest: None,
                ..f.entry()
            });
            amphora_artifact::facts(input(entry)).map_err(EngineError::plain)
        }
    }
}

/// Returns an image's facts with another program in place of its entry point.
pub(crate) fn with_program(engine: &Engine, record: &ImageRecord, program: &str) -> Result<Facts> {
    let mut facts = record.facts.clone();
    let (path, function) = amphora_artifact::split_function(program);
    let suspicious = path.ends_with(".wasm") || path.ends_with(".wat") || function.is_some();
    if facts.module.is_none() && !record.config.platform().is_wasm() && !suspicious {
        // A Linux image runs Linux programs; the kernel has the last word on the file.
        facts.magic = Magic::Other;
        return Ok(facts);
    }
    let ids: Vec<Digest> = record.layers.iter().filter_map(|l| l.diff_id).collect();
    let found = look(engine, &ids, &record.config, path)?;
    let seen = amphora_artifact::program_facts(found.as_ref().map(Found::entry))
        .map_err(EngineError::plain)?;
    (facts.magic, facts.module) = seen;
    Ok(facts)
}

/// Returns where the module of a container is.
pub(crate) fn module(facts: &Facts, program: &str) -> Result<ModuleConfig> {
    let module = facts.module.as_ref().ok_or_else(|| {
        EngineError::Unsupported(format!("\"{program}\" is not a WebAssembly module"))
    })?;
    let (_, function) = amphora_artifact::split_function(program);
    Ok(ModuleConfig {
        digest: module.digest,
        path: match &module.location {
            ModuleLocation::Rootfs(path) => Some(path.clone()),
            ModuleLocation::Layer(_) => None,
        },
        function: function.map(str::to_owned),
    })
}

struct Found {
    location: ModuleLocation,
    bytes: Vec<u8>,
    digest: Digest,
}

impl Found {
    fn entry(&self) -> Entry<'_> {
        Entry {
            location: self.location.clone(),
            bytes: &self.bytes,
            digest: Some(self.digest),
        }
    }
}

/// Reads the program in the merged root file system; `None` when there is none.
fn look(
    engine: &Engine,
    layers: &[Digest],
    config: &ImageConfig,
    program: &str,
) -> Result<Option<Found>> {
    if layers.is_empty() || program.is_empty() {
        return Ok(None);
    }
    let root = merged(engine, layers)?;
    for path in candidates(config, program) {
        let Ok(file) = open_beneath(&root, &path) else {
            continue;
        };
        let file = File::from(file);
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            continue;
        }
        let failed = || format!("failed to read \"{path}\" of the image");
        let mut bytes = Vec::new();
        let head = u64::try_from(amphora_artifact::MAGIC_LEN).unwrap_or(4096);
        (&file)
            .take(head)
            .read_to_end(&mut bytes)
            .map_err(EngineError::io(failed()))?;
        let magic = amphora_artifact::classify(&bytes);
        if matches!(magic, Magic::WasmCore | Magic::WasmComponent) {
            (&file)
                .take(MAX_MODULE_BYTES)
                .read_to_end(&mut bytes)
                .map_err(EngineError::io(failed()))?;
        }
        let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
        return Ok(Some(Found {
            location: ModuleLocation::Rootfs(path),
            bytes,
            digest,
        }));
    }
    Ok(None)
}

fn candidates(config: &ImageConfig, program: &str) -> Vec<String> {
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    let dir = config.config.working_dir.trim_end_matches('/');
    let beside = format!("{dir}/{}", program.trim_start_matches("./"));
    if program.contains('/') {
        return vec![beside];
    }
    let path = config
        .config
        .env
        .iter()
        .find_map(|e| e.strip_prefix("PATH="));
    let mut out: Vec<String> = path
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|dir| format!("{}/{program}", dir.trim_end_matches('/')))
        .collect();
    // `ENTRYPOINT ["app.wasm"]` of a scratch image names a file of the working directory.
    out.push(beside);
    out
}

fn merged(engine: &Engine, layers: &[Digest]) -> Result<OwnedFd> {
    let skeleton = engine.skeleton()?;
    engine
        .layers
        .rootfs_over(Some(&skeleton), layers, None)
        .map_err(EngineError::plain)
}

pub(crate) fn open_beneath(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root.as_fd(),
        path.trim_start_matches('/'),
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens a file of an image's layers.
pub(crate) fn open_in_layers(engine: &Engine, layers: &[Digest], path: &str) -> Result<OwnedFd> {
    let root = merged(engine, layers)?;
    open_beneath(&root, path).map_err(EngineError::io(format!(
        "failed to open module \"{path}\" of the image"
    )))
}

impl Engine {
    /// Does what the first start would otherwise do: compiles a module that will be run.
    pub(crate) fn warm(&self, record: &ImageRecord) -> Result<()> {
        let Ok(selection) = select(&record.facts, &Options::default()) else {
            return Ok(());
        };
        let (Executor::Wasm, Some(found)) = (selection.executor, &record.facts.module) else {
            return Ok(());
        };
        let file: OwnedFd = match &found.location {
            ModuleLocation::Layer(digest) => self
                .store
                .open_blob(digest)
                .map_err(EngineError::plain)?
                .into(),
            ModuleLocation::Rootfs(path) => {
                let ids: Vec<Digest> = record.layers.iter().filter_map(|l| l.diff_id).collect();
                open_in_layers(self, &ids, path)?
            }
        };
        let module = Module {
            file,
            digest: found.digest,
            name: String::new(),
            function: None,
        };
        self.workload(Executor::Wasm)?
            .warm(&module)
            .map_err(EngineError::plain)
    }
}
