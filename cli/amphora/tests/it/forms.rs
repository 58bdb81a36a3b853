//! The forms in which Wasm travels in OCI registries, each as a real artifact: run, or refused
//! with the reason, which `inspect` shows.

use serde_json::{Value, json};

use crate::fixtures::{Blob, Image, Wrap, file, probe, write_oci};
use crate::sandbox::{Sandbox, path};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn module() -> Vec<u8> {
    std::fs::read(probe("wasm32-wasip1")).unwrap()
}

fn component() -> Vec<u8> {
    std::fs::read(probe("wasm32-wasip2")).unwrap()
}

fn artifact(config: &Blob, layers: &[Blob], extra: &Value) -> Vec<Blob> {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        manifest[key] = value.clone();
    }
    let mut all = vec![Blob::new(MANIFEST, manifest.to_string()), config.clone()];
    all.extend(layers.iter().cloned());
    all
}

fn load(s: &Sandbox, name: &str, blobs: &[Blob]) {
    let archive = s.dir.join("form.tar");
    write_oci(&archive, name, blobs);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
}

fn runs(s: &Sandbox, name: &str, args: &[&str], reason: &str) {
    let mut words = vec!["run", "--rm", name];
    words.extend(args);
    assert_eq!(s.run(&words).ok(), "Hello from Wasm!\n", "{name}");
    let shown = s.inspect(name);
    assert_eq!(shown["Executor"]["Kind"], "wasm", "{name}: {shown}");
    let text = shown["Executor"]["Reason"].as_str().unwrap();
    assert!(text.contains(reason), "{name}: \"{text}\"");
}

fn refused(s: &Sandbox, name: &str, part: &str) {
    let text = s.run(&["run", "--rm", name]).fails(125, part);
    assert!(!text.is_empty());
    let shown = s.inspect(name);
    assert!(shown["Executor"]["Kind"].is_null(), "{name}: {shown}");
    assert!(
        shown["Executor"]["Reason"].as_str().unwrap().contains(part),
        "{name}: {shown}"
    );
}

fn app(os: &str, arch: &str, wasm: Vec<u8>) -> Image {
    Image::new("app", json!({ "Entrypoint": ["/app.wasm"] }))
        .platform(os, arch)
        .layer(&[file("app.wasm", 0o755, wasm)], Wrap::Gzip)
}

#[test]
fn a_cncf_artifact() {
    let s = Sandbox::ready();
    let kind = "application/vnd.wasm.config.v0+json";
    for (os, wasm) in [("wasip1", module()), ("wasip2", component())] {
        let config = Blob::new(
            kind,
            json!({ "created": "2026-01-01T00:00:00Z", "os": os, "architecture": "wasm" })
                .to_string(),
        );
        let layer = Blob::new("application/wasm", wasm);
        load(
            &s,
            "form-a",
            &artifact(
                &config,
                std::slice::from_ref(&layer),
                &json!({ "artifactType": kind }),
            ),
        );
        runs(&s, "form-a", &[], "artifact");
        let two = artifact(
            &config,
            &[layer.clone(), Blob::new("application/wasm", module())],
            &json!({}),
        );
        load(&s, "form-a2", &two);
        refused(&s, "form-a2", "exactly one");
        s.run(&["rmi", "form-a", "form-a2"]).ok();
    }
}

#[test]
fn b_image_made_from_scratch() {
    let s = Sandbox::ready();
    for (os, arch) in [
        ("wasi", "wasm"),
        ("wasi", "wasm32"),
        ("wasip1", "wasm"),
        ("linux", "wasm"),
        ("Wasip1", "wasm"),
    ] {
        load(&s, "form-b", &app(os, arch, module()).blobs());
        runs(&s, "form-b", &[], "");
        s.run(&["rmi", "form-b"]).ok();
    }
    load(&s, "form-b", &app("wasip2", "wasm", component()).blobs());
    runs(&s, "form-b", &[], "");
    s.run(&["rmi", "form-b"]).ok();
}

#[test]
fn c_raw_layers_under_an_image_config() {
    let s = Sandbox::ready();
    let config = Blob::new(
        "application/vnd.oci.image.config.v1+json",
        json!({ "os": "wasip1", "architecture": "wasm", "config": {}, "rootfs": { "type": "layers", "diff_ids": [] } }).to_string(),
    );
    for (kind, wasm) in [
        ("application/wasm", module()),
        (
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
            component(),
        ),
    ] {
        load(
            &s,
            "form-c",
            &artifact(&config, &[Blob::new(kind, wasm)], &json!({})),
        );
        runs(&s, "form-c", &[], "");
        s.run(&["rmi", "form-c"]).ok();
    }
}

#[test]
fn d_annotated_linux_images() {
    let s = Sandbox::ready();
    for (key, value) in [
        ("module.wasm.image/variant", "compat"),
        ("run.oci.handler", "wasm"),
        ("module.wasm.image/variant", "compat-smart"),
    ] {
        let image = app("linux", "amd64", module()).blobs();
        let mut manifest: Value = serde_json::from_slice(&image[0].bytes).unwrap();
        manifest["annotations"] = json!({ key: value });
        let mut blobs = image.clone();
        blobs[0] = Blob::new(MANIFEST, manifest.to_string());
        load(&s, "form-d", &blobs);
        runs(&s, "form-d", &[], "");
        s.run(&["rmi", "form-d"]).ok();
    }
}

#[test]
fn e_legacy_artifact_and_h_actor() {
    let s = Sandbox::ready();
    let legacy = Blob::new("application/vnd.wasm.config.v1+json", "{}");
    load(
        &s,
        "form-e",
        &artifact(
            &legacy,
            &[Blob::new(
                "application/vnd.wasm.content.layer.v1+wasm",
                module(),
            )],
            &json!({}),
        ),
    );
    runs(&s, "form-e", &[], "");
    let actor = Blob::new("application/vnd.wasmcloud.actor.archive.config", "{}");
    load(
        &s,
        "form-h",
        &artifact(
            &actor,
            &[Blob::new(
                "application/vnd.module.wasm.content.layer.v1+wasm",
                module(),
            )],
            &json!({}),
        ),
    );
    runs(&s, "form-h", &[], "");
    s.run(&["rmi", "form-e", "form-h"]).ok();
}

#[test]
fn f_and_g_proxy_plugins_are_refused() {
    let s = Sandbox::ready();
    let plugin = wat::parse_str(
        r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")))"#,
    )
    .unwrap();
    let config = Blob::new("application/vnd.module.wasm.config.v1+json", "{}");
    load(
        &s,
        "form-f",
        &artifact(
            &config,
            &[Blob::new(
                "application/vnd.module.wasm.content.layer.v1+wasm",
                plugin.clone(),
            )],
            &json!({}),
        ),
    );
    refused(&s, "form-f", "proxy-wasm");
    let compat = Image::new("g", json!({}))
        .layer(&[file("plugin.wasm", 0o644, plugin)], Wrap::Gzip)
        .blobs();
    let mut manifest: Value = serde_json::from_slice(&compat[0].bytes).unwrap();
    manifest["annotations"] = json!({ "module.wasm.image/variant": "compat" });
    let mut blobs = compat.clone();
    blobs[0] = Blob::new(MANIFEST, manifest.to_string());
    load(&s, "form-g", &blobs);
    refused(&s, "form-g", "proxy-wasm");
    s.run(&["rmi", "form-f", "form-g"]).ok();
}

#[test]
fn i_spin_applications_are_refused() {
    let s = Sandbox::ready();
    let config = Blob::new("application/vnd.oci.image.config.v1+json", json!({ "os": "Wasip1", "architecture": "wasm", "rootfs": { "type": "layers", "diff_ids": [] } }).to_string());
    let layers = [
        Blob::new("application/vnd.fermyon.spin.application.v1+config", "{}"),
        Blob::new("application/vnd.wasm.content.layer.v1+wasm", component()),
    ];
    load(&s, "form-i", &artifact(&config, &layers, &json!({})));
    refused(&s, "form-i", "Spin");
    s.run(&["rmi", "form-i"]).ok();
}

#[test]
fn j_index_with_both() {
    let s = Sandbox::ready();
    let linux = crate::fixtures::probe_image().blobs();
    let wasm = app("wasi", "wasm", module()).blobs();
    let entry = |blobs: &[Blob], os: &str, arch: &str| {
        let mut d = blobs[0].descriptor();
        d["platform"] = json!({ "os": os, "architecture": arch });
        d
    };
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&wasm, "wasi", "wasm"), entry(&linux, "linux", host)] });
    let mut blobs = vec![Blob::new(INDEX, index.to_string())];
    blobs.extend(linux);
    blobs.extend(wasm.clone());
    load(&s, "form-j", &blobs);
    assert_eq!(
        s.run(&["run", "--rm", "form-j"]).ok(),
        "Hello from Linux!\n"
    );
    for platform in ["wasi/wasm", "wasip1/wasm", "wasm"] {
        assert_eq!(
            s.run(&["run", "--rm", "--platform", platform, "form-j"])
                .ok(),
            "Hello from Wasm!\n"
        );
    }
    assert_eq!(
        s.run(&[
            "run",
            "--rm",
            "--platform",
            &format!("linux/{host}"),
            "form-j"
        ])
        .ok(),
        "Hello from Linux!\n"
    );
    // Only Wasm inside: no flag is needed.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&wasm, "wasi", "wasm")] });
    let mut blobs = vec![Blob::new(INDEX, index.to_string())];
    blobs.extend(wasm);
    load(&s, "form-j2", &blobs);
    runs(&s, "form-j2", &[], "");
    s.run(&["rmi", "form-j", "form-j2"]).ok();
}

#[test]
fn k_module_in_an_image_that_says_linux() {
    let s = Sandbox::ready();
    load(&s, "form-k", &app("linux", "amd64", module()).blobs());
    runs(&s, "form-k", &[], "");
    // The same by --entrypoint in an image that has another.
    let image = Image::new("k2", json!({ "Entrypoint": ["/none"] }))
        .layer(&[file("app.wasm", 0o755, component())], Wrap::Zstd);
    load(&s, "form-k2", &image.blobs());
    assert_eq!(
        s.run(&["run", "--rm", "--entrypoint", "/app.wasm", "form-k2"])
            .ok(),
        "Hello from Wasm!\n"
    );
    s.run(&["run", "--rm", "--runtime", "linux", "form-k"])
        .fails(125, "linux");
    s.run(&["rmi", "form-k", "form-k2"]).ok();
}

#[test]
fn l_modules_for_other_hosts_are_refused() {
    let s = Sandbox::ready();
    let go = wat::parse_str(
        r#"(module (import "gojs" "runtime.wasmExit" (func (param i32))) (func (export "run")))"#,
    )
    .unwrap();
    load(&s, "form-l", &app("js", "wasm", go.clone()).blobs());
    let text = s.run(&["run", "--rm", "form-l"]);
    assert_eq!(text.code, 125, "{text:?}");
    load(&s, "form-l2", &app("wasi", "wasm", go).blobs());
    refused(&s, "form-l2", "gojs.runtime.wasmExit");
    s.run(&["rmi", "form-l", "form-l2"]).ok();
}

#[test]
fn native_code_from_an_image_is_never_loaded() {
    let s = Sandbox::ready();
    // What a Wasm compiler writes is an ELF object of a private ABI.
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 200];
    elf.resize(4096, 0);
    load(&s, "form-x", &app("wasi", "wasm", elf).blobs());
    let text = s.run(&["run", "--rm", "form-x"]);
    assert_eq!(text.code, 125, "{text:?}");
    s.run(&["rmi", "form-x"]).ok();
}
