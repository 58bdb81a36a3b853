//! The image store: what fails changes nothing, what is odd stops nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures::{Blob, Image, Wrap, busybox_image, digest, file, tarball};
use crate::registry::Registry;
use crate::sandbox::{Sandbox, path};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes an OCI archive of blobs with these entries in its index.
fn archive(to: &Path, tops: &[(&str, Value)], blobs: &[Blob]) {
    let named = |(name, top): &(&str, Value)| {
        let mut top = top.clone();
        let name = format!("docker.io/library/{name}");
        top["annotations"] = json!({ "io.containerd.image.name": name });
        top
    };
    let tops: Vec<Value> = tops.iter().map(named).collect();
    let index = json!({ "schemaVersion": 2, "manifests": tops });
    let mut entries = vec![
        file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", 0o644, index.to_string()),
    ];
    for blob in blobs {
        let hex = digest(&blob.bytes).trim_start_matches("sha256:").to_owned();
        let name = format!("blobs/sha256/{hex}");
        entries.push(file(&name, 0o644, blob.bytes.clone()));
    }
    std::fs::write(to, tarball(&entries)).unwrap();
}

fn load(s: &Sandbox, tops: &[(&str, Value)], blobs: &[Blob]) -> crate::sandbox::Output {
    let to = s.dir.join("archive.tar");
    archive(&to, tops, blobs);
    s.run(&["load", "-i", path(&to)])
}

fn index(entries: &[Value]) -> Blob {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    Blob::new(INDEX, index.to_string())
}

fn small(name: &str, text: &str) -> Vec<Blob> {
    Image::new(name, json!({ "Cmd": ["/x"] }))
        .layer(&[file("x", 0o755, text)], Wrap::Plain)
        .blobs()
}

/// An artifact whose module is well formed and does not compile: it adds what is not there.
fn broken_module() -> Vec<Blob> {
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\
        \x07\x0a\x01\x06_start\0\0\x0a\x05\x01\x03\0\x6a\x0b";
    let config = Blob::new(
        "application/vnd.wasm.config.v0+json",
        r#"{"os":"wasip1","architecture":"wasm"}"#,
    );
    let layer = Blob::new("application/wasm", module.to_vec());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": config.media_type,
        "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    vec![Blob::new(MANIFEST, manifest.to_string()), config, layer]
}

fn listed(s: &Sandbox) -> Vec<String> {
    let text = s
        .run(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])
        .ok();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn blobs_held(s: &Sandbox) -> usize {
    let dir = s.root().join("blobs/sha256");
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_failed_load_leaves_every_name_what_it_was() {
    let s = Sandbox::new();
    let (base, web) = (busybox_image("base:1").blobs(), small("web:latest", "good"));
    load(&s, &[("base:1", base[0].descriptor())], &base).ok();
    load(&s, &[("web:latest", web[0].descriptor())], &web).ok();
    s.run(&["tag", "base:1", "mine:keep"]).ok();
    let (before, held) = (listed(&s), blobs_held(&s));
    assert_eq!(before.len(), 3, "{before:?}");

    let bad = broken_module();
    let tops = [
        ("base:1", base[0].descriptor()),
        ("web:latest", bad[0].descriptor()),
        ("web:bad", bad[0].descriptor()),
    ];
    let blobs: Vec<Blob> = base.into_iter().chain(bad).collect();
    let failed = load(&s, &tops, &blobs);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert_eq!(listed(&s), before);
    assert_eq!(blobs_held(&s), held, "what came with the bad image goes");
    s.run(&["run", "--rm", "mine:keep", "true"]).ok();
}

#[test]
fn a_failed_pull_leaves_the_name_what_it_was() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    registry.push("app", "latest", &busybox_image("app").blobs());
    s.run(&["pull", "-q", "localhost:5000/app"]).ok();
    let before = listed(&s);
    registry.push("app", "latest", &broken_module());
    let failed = s.run(&["pull", "localhost:5000/app"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(
        !failed.stdout.contains("Downloaded newer image"),
        "{failed:?}"
    );
    assert_eq!(listed(&s), before);
    s.run(&["run", "--rm", "localhost:5000/app", "true"]).ok();
}

#[test]
fn an_index_that_was_not_fetched_stops_nothing() {
    let s = Sandbox::new();
    let mut blobs = small("multi:1", "here");
    let elsewhere = index(&[]);
    let top = index(&[blobs[0].descriptor(), elsewhere.descriptor()]);
    blobs.push(top.clone());
    load(&s, &[("multi:1", top.descriptor())], &blobs).ok();
    let other = small("other:1", "other");
    load(&s, &[("other:1", other[0].descriptor())], &other).ok();
    assert_eq!(listed(&s).len(), 2);
    s.run(&["rmi", "other:1"]).ok();
    s.run(&["rmi", "multi:1"]).ok();
    assert_eq!(blobs_held(&s), 0);
}

#[test]
fn a_dangling_index_is_removed_by_its_image_id() {
    let s = Sandbox::new();
    let old = small("multi:1", "old");
    let variant = small("variant", "another");
    let top = index(&[old[0].descriptor(), variant[0].descriptor()]);
    let id = digest(&old[1].bytes);
    let all: Vec<Blob> = old
        .into_iter()
        .chain(variant)
        .chain([top.clone()])
        .collect();
    load(&s, &[("multi:1", top.descriptor())], &all).ok();
    let new = small("multi:1", "new");
    load(&s, &[("multi:1", new[0].descriptor())], &new).ok();
    assert_eq!(listed(&s).len(), 2, "{:?}", listed(&s));
    assert_eq!(s.run(&["rmi", &id]).ok(), format!("Deleted: {id}\n"));
    assert_eq!(listed(&s).len(), 1, "{:?}", listed(&s));
    assert_eq!(blobs_held(&s), 3);
}

/// Four levels of indexes that each name the next one 300 times.
#[test]
fn what_is_named_often_is_looked_into_once() {
    let s = Sandbox::new();
    let mut blobs = small("deep:1", "x");
    let mut top = blobs[0].descriptor();
    for _ in 0..4 {
        let level = index(&vec![top; 300]);
        top = level.descriptor();
        blobs.push(level);
    }
    load(&s, &[("deep:1", top)], &blobs).ok();
    assert_eq!(listed(&s).len(), 1);
    s.run(&["rmi", "deep:1"]).ok();
    assert_eq!(blobs_held(&s), 0);
}

#[test]
fn as_many_layers_run_as_the_kernel_stacks_and_no_more_are_taken_in() {
    let s = Sandbox::new();
    let mut image = busybox_image("many:1");
    for n in image.layers.len()..499 {
        image = image.layer(&[file(&format!("f{n}"), 0o644, "x")], Wrap::Plain);
    }
    let blobs = image.blobs();
    load(&s, &[("many:1", blobs[0].descriptor())], &blobs).ok();
    s.run(&["run", "--rm", "many:1", "cat", "/f1", "/f498"])
        .ok();
    let blobs = image
        .layer(&[file("f499", 0o644, "x")], Wrap::Plain)
        .blobs();
    load(&s, &[("many:2", blobs[0].descriptor())], &blobs)
        .fails(1, "image has 500 layers, more than the 499");
    assert_eq!(listed(&s).len(), 1);
}
