//! Forms A to L: generated manifests, configs and modules, taken to the decision.

use std::collections::BTreeMap;

use amphora_artifact::{Entry, Facts, FactsInput, ModuleLocation, entrypoint, facts, module_layer};
use amphora_spec::image::{ContainerConfig, Descriptor, ImageConfig, Manifest};
use amphora_spec::select::{Executor, Options, SelectError, Selection, select};
use amphora_spec::{Digest, media};

const COMMAND: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
    (func (export "_start")))"#;

/// An image to be: documents and the one file that matters.
struct Image {
    config_type: &'static str,
    os: &'static str,
    arch: &'static str,
    layers: Vec<&'static str>,
    annotations: Vec<(&'static str, &'static str)>,
    entrypoint: &'static str,
    content: Vec<u8>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            config_type: media::OCI_CONFIG,
            os: "linux",
            arch: "amd64",
            layers: vec![media::OCI_LAYER_GZIP],
            annotations: Vec::new(),
            entrypoint: "/app.wasm",
            content: wat::parse_str(COMMAND).unwrap(),
        }
    }
}

fn descriptor(media_type: &str, fill: u8) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::from_sha256([fill; 32]),
        size: 1,
        platform: None,
        annotations: BTreeMap::new(),
        artifact_type: None,
    }
}

impl Image {
    fn artifact(config_type: &'static str, layer: &'static str) -> Self {
        Self {
            config_type,
            layers: vec![layer],
            os: "",
            arch: "",
            entrypoint: "",
            ..Self::default()
        }
    }

    fn facts(&self) -> Facts {
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: descriptor(self.config_type, 1),
            layers: self
                .layers
                .iter()
                .map(|layer| descriptor(layer, 2))
                .collect(),
            annotations: self
                .annotations
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        };
        let mut container = ContainerConfig::default();
        if !self.entrypoint.is_empty() {
            container.entrypoint.push(self.entrypoint.to_owned());
        }
        let config = ImageConfig {
            os: self.os.to_owned(),
            architecture: self.arch.to_owned(),
            config: container,
            ..ImageConfig::default()
        };
        let location = match module_layer(&manifest) {
            Some(layer) => ModuleLocation::Layer(layer.digest),
            None => ModuleLocation::Rootfs(entrypoint(&config.config).0),
        };
        let digest = Some(Digest::from_sha256([3; 32]));
        facts(FactsInput {
            manifest: &manifest,
            config: Some(&config),
            annotations: &BTreeMap::new(),
            entry: Some(Entry {
                location,
                bytes: &self.content,
                digest,
            }),
        })
        .unwrap()
    }

    fn select(&self) -> Result<Selection, SelectError> {
        select(&self.facts(), &Options::default())
    }

    #[track_caller]
    fn runs_as_wasm(&self) {
        assert_eq!(self.select().unwrap().executor, Executor::Wasm);
    }

    #[track_caller]
    fn is_refused(&self, part: &str) {
        let text = self.select().unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_cncf_artifact() {
    let mut image = Image::artifact(media::WASM_CONFIG_V0, media::WASM_LAYER);
    image.runs_as_wasm();
    image.layers.push(media::WASM_LAYER);
    image.is_refused("has 2 layers");
}

#[test]
fn b_image_for_a_wasm_platform() {
    for (os, arch) in [
        ("wasi", "wasm"),
        ("wasi", "wasm32"),
        ("wasip1", "wasm"),
        ("wasip2", "wasm"),
    ] {
        Image {
            os,
            arch,
            ..Image::default()
        }
        .runs_as_wasm();
    }
}

#[test]
fn c_raw_layers_under_an_image_config() {
    for layer in [media::WASM_LAYER, media::WASM_COMPONENT_LAYER] {
        let image = Image {
            os: "wasip1",
            arch: "wasm",
            layers: vec![layer],
            ..Image::default()
        };
        assert!(matches!(
            image.facts().module.unwrap().location,
            ModuleLocation::Layer(_)
        ));
        image.runs_as_wasm();
    }
}

#[test]
fn d_crun_annotations() {
    for annotation in [
        ("module.wasm.image/variant", "compat"),
        ("run.oci.handler", "wasm-smart"),
    ] {
        Image {
            annotations: vec![annotation],
            ..Image::default()
        }
        .runs_as_wasm();
    }
}

#[test]
fn e_legacy_artifact() {
    Image::artifact(media::WASM_CONFIG_V1, media::WASM_CONTENT_LAYER).runs_as_wasm();
}

#[test]
fn f_and_g_proxy_wasm() {
    let mut image = Image::artifact(media::PROXY_WASM_CONFIG, media::MODULE_WASM_LAYER);
    image.is_refused("Envoy proxy-wasm plugin");
    image = Image {
        annotations: vec![("module.wasm.image/variant", "compat")],
        entrypoint: "",
        content: wat::parse_str(r#"(module (func (export "proxy_on_log")))"#).unwrap(),
        ..Image::default()
    };
    image.is_refused("Envoy proxy-wasm plugin");
    image = Image {
        content: wat::parse_str(r#"(module (func (export "proxy_abi_version_0_2_0")))"#).unwrap(),
        ..Image::default()
    };
    image.is_refused("Envoy proxy-wasm plugin");
}

#[test]
fn h_wasmcloud_module() {
    let mut image = Image::artifact(media::WASMCLOUD_CONFIG, media::MODULE_WASM_LAYER);
    image.runs_as_wasm();
    let guest = r#"(module (import "wapc" "__host_call" (func)) (func (export "_start")))"#;
    image.content = wat::parse_str(guest).unwrap();
    image.is_refused("module imports unknown functions: wapc.__host_call");
}

#[test]
fn i_spin_application() {
    let image = Image {
        os: "Wasip1",
        arch: "wasm",
        layers: vec![media::SPIN_APPLICATION, media::WASM_CONTENT_LAYER],
        ..Image::default()
    };
    image.is_refused("Spin application");
    Image::artifact(media::SPIN_APPLICATION, media::WASM_LAYER).is_refused("Spin application");
}

#[test]
fn j_each_entry_of_an_index_on_its_own() {
    let linux = Image {
        content: b"\x7fELF\x02\x01\x01\0".to_vec(),
        ..Image::default()
    };
    assert_eq!(linux.select().unwrap().executor, Executor::Linux);
    Image {
        os: "wasi",
        arch: "wasm",
        ..Image::default()
    }
    .runs_as_wasm();
}

#[test]
fn k_a_module_under_a_linux_platform() {
    Image::default().runs_as_wasm();
    assert_eq!(
        Image::default().select().unwrap().reason,
        "the entrypoint is a Wasm module"
    );
}

#[test]
fn l_modules_for_other_hosts() {
    for import in [
        "\"env\" \"emscripten_resize_heap\"",
        "\"wasix_32v1\" \"fd_dup\"",
        "\"gojs\" \"x\"",
    ] {
        let text = format!(r#"(module (import {import} (func)) (func (export "_start")))"#);
        let image = Image {
            content: wat::parse_str(&text).unwrap(),
            ..Image::default()
        };
        image.is_refused("module imports unknown functions: ");
    }
    Image {
        os: "js",
        arch: "wasm",
        ..Image::default()
    }
    .is_refused("JavaScript host");
}

#[test]
fn precompiled_and_text_are_refused() {
    let content = b"\x7fELF\x02\x01\x01\xc8\0\0\0\0\0\0\0\0".to_vec();
    Image {
        content,
        ..Image::default()
    }
    .is_refused("never loaded from an image");
    Image {
        content: b"(module)".to_vec(),
        ..Image::default()
    }
    .is_refused("text form");
}
