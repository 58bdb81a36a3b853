//! The facts of an image, from its documents and the first file that would run.

use std::collections::BTreeMap;

use amphora_spec::image::{ContainerConfig, Descriptor, ImageConfig, Manifest};
use amphora_spec::media::{self, LayerKind};
use amphora_spec::select::{Facts, Magic, ModuleFacts, ModuleLocation, PROXY_PLUGIN};
use amphora_spec::{Digest, Platform};

use crate::{ArtifactError, classify, inspect_wasm, is_precompiled};

/// The file that would run: the raw layer, or the entrypoint in the merged root file system.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Where it is.
    pub location: ModuleLocation,
    /// All of its bytes when [`classify`] says Wasm or ELF; the first [`crate::MAGIC_LEN`] do
    /// for everything else.
    pub bytes: &'a [u8],
    /// SHA-256 of all its bytes; only looked at when it is a Wasm module.
    pub digest: Option<Digest>,
}

/// What [`facts`] is made from.
#[derive(Debug, Clone)]
pub struct FactsInput<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The image config, when the config is one.
    pub config: Option<&'a ImageConfig>,
    /// Annotations of the index entry that named the manifest.
    pub annotations: &'a BTreeMap<String, String>,
    /// What would run; `None` when there is no such file.
    pub entry: Option<Entry<'a>>,
}

/// Collects the facts that the choice of an executor needs.
///
/// # Errors
/// What [`inspect_wasm`] refuses the module for.
pub fn facts(input: FactsInput<'_>) -> Result<Facts, ArtifactError> {
    let FactsInput {
        manifest,
        config,
        annotations,
        entry,
    } = input;
    let mut merged = annotations.clone();
    merged.extend(manifest.annotations.clone());
    let (magic, module) = match entry {
        None => (Magic::Missing, None),
        Some(entry) => entry_facts(entry)?,
    };
    Ok(Facts {
        config_media_type: manifest.config.media_type.clone(),
        artifact_type: manifest.artifact_type.clone(),
        platform: config.map_or_else(Platform::default, ImageConfig::platform),
        annotations: merged,
        labels: config
            .map(|config| config.config.labels.clone())
            .unwrap_or_default(),
        layers: manifest
            .layers
            .iter()
            .map(|layer| layer.media_type.clone())
            .collect(),
        magic,
        module,
    })
}

/// Classifies one program alone, for a command line that replaces the entry point.
///
/// # Errors
/// What [`inspect_wasm`] refuses the module for.
pub fn program_facts(
    entry: Option<Entry<'_>>,
) -> Result<(Magic, Option<ModuleFacts>), ArtifactError> {
    entry.map_or(Ok((Magic::Missing, None)), entry_facts)
}

fn entry_facts(entry: Entry<'_>) -> Result<(Magic, Option<ModuleFacts>), ArtifactError> {
    let magic = match classify(entry.bytes) {
        Magic::Elf if is_precompiled(entry.bytes) => Magic::Precompiled,
        magic => magic,
    };
    let wasm = matches!(magic, Magic::WasmCore | Magic::WasmComponent);
    let module = match entry.digest.filter(|_| wasm) {
        Some(digest) => {
            let wasm = inspect_wasm(entry.bytes)?;
            Some(ModuleFacts {
                digest,
                location: entry.location,
                wasm,
            })
        }
        None => None,
    };
    Ok((magic, module))
}

/// Finds the layer that is the module itself, not a tar.
#[must_use]
pub fn module_layer(manifest: &Manifest) -> Option<&Descriptor> {
    manifest
        .layers
        .iter()
        .find(|layer| media::layer_kind(&layer.media_type) == LayerKind::Wasm)
}

/// Returns the path of the file that a container of this config starts with, and the export to
/// call when it is written `path#function`. An image without a command may be a proxy-wasm
/// plugin, whose module has a fixed name; the caller sees whether it is there.
#[must_use]
pub fn entrypoint(config: &ContainerConfig) -> (String, Option<String>) {
    match config.entrypoint.first().or_else(|| config.cmd.first()) {
        Some(first) => {
            let (path, function) = split_function(first);
            (path.to_owned(), function.map(str::to_owned))
        }
        None => (format!("/{PROXY_PLUGIN}"), None),
    }
}

/// Splits `path#function`; only a path that ends in `.wasm` can name a function.
#[must_use]
pub fn split_function(argument: &str) -> (&str, Option<&str>) {
    match argument.rsplit_once('#') {
        Some((path, function)) if path.ends_with(".wasm") && !function.is_empty() => {
            (path, Some(function))
        }
        _ => (argument, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ContainerConfig {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        ContainerConfig {
            entrypoint: own(entrypoint),
            cmd: own(cmd),
            ..Default::default()
        }
    }

    #[test]
    fn a_function_is_named_behind_a_wasm_path_only() {
        assert_eq!(split_function("/a.wasm#go"), ("/a.wasm", Some("go")));
        assert_eq!(split_function("/a.wasm#"), ("/a.wasm#", None));
        assert_eq!(split_function("/bin/x#y"), ("/bin/x#y", None));
        assert_eq!(split_function("/a.wasm"), ("/a.wasm", None));
    }

    #[test]
    fn the_entrypoint_comes_before_the_command() {
        assert_eq!(
            entrypoint(&config(&["/a.wasm"], &["x"])),
            ("/a.wasm".to_owned(), None)
        );
        let (path, function) = entrypoint(&config(&[], &["/b.wasm#f", "x"]));
        assert_eq!((path.as_str(), function.as_deref()), ("/b.wasm", Some("f")));
        assert_eq!(entrypoint(&config(&[], &[])).0, "/plugin.wasm");
    }
}
