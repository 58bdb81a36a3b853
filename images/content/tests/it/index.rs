use std::thread;

use amphora_content::{Named, WasmImage, add_wasm};
use amphora_spec::image::{Descriptor, Manifest};
use amphora_spec::{Reference, media};

use crate::support::{digest, store};

fn target(seed: &str) -> Descriptor {
    serde_json::from_value(serde_json::json!({
        "mediaType": media::OCI_MANIFEST, "digest": digest(seed.as_bytes()), "size": 3,
        "annotations": {"kept": "yes"},
    }))
    .unwrap()
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn names_resolve_move_and_go() {
    let (dir, store) = store();
    assert_eq!(store.tag(&name("app"), &target("a")).unwrap(), None);
    assert_eq!(
        store
            .resolve(&name("docker.io/library/app:latest"))
            .unwrap(),
        Some(target("a"))
    );
    assert_eq!(
        store.tag(&name("app:latest"), &target("b")).unwrap(),
        Some(target("a"))
    );
    assert_eq!(store.resolve(&name("app")).unwrap(), Some(target("b")));
    let untagged = Named {
        reference: None,
        target: target("a"),
    };
    assert!(
        store.list_all().unwrap().contains(&untagged),
        "the old image lost only its name"
    );
    assert_eq!(store.list().unwrap(), [(name("app:latest"), target("b"))]);
    assert_eq!(store.untag(&name("app")).unwrap(), Some(target("b")));
    assert_eq!(store.untag(&name("app")).unwrap(), None);
    assert_eq!(store.list_all().unwrap(), [untagged]);
    let json = std::fs::read_to_string(dir.path().join("index.json")).unwrap();
    assert!(json.contains("\"schemaVersion\":2"), "{json}");
}

#[test]
fn naming_an_untagged_image_leaves_one_entry() {
    let (_dir, store) = store();
    store.keep_untagged(&target("a")).unwrap();
    store.keep_untagged(&target("a")).unwrap();
    assert_eq!(store.list_all().unwrap().len(), 1);
    store.tag(&name("a:1"), &target("a")).unwrap();
    store.tag(&name("a:2"), &target("a")).unwrap();
    store.keep_untagged(&target("a")).unwrap();
    assert_eq!(store.list_all().unwrap().len(), 2);
    assert_eq!(
        store.untag_all(&target("a").digest).unwrap(),
        [name("a:1"), name("a:2")]
    );
    assert!(store.list_all().unwrap().is_empty());
}

#[test]
fn a_digest_finds_the_tagged_image_of_its_repository_only() {
    let (_dir, store) = store();
    let a = target("a");
    store.tag(&name("host.example/app:1"), &a).unwrap();
    let with = |repo: &str| name(&format!("{repo}@{}", a.digest));
    assert_eq!(
        store.resolve(&with("host.example/app")).unwrap(),
        Some(a.clone())
    );
    assert_eq!(
        store.resolve(&with("host.example/app:other")).unwrap(),
        Some(a.clone())
    );
    assert_eq!(store.resolve(&with("host.example/other")).unwrap(), None);
}

#[test]
fn threads_do_not_lose_each_others_names() {
    let (dir, store) = store();
    thread::scope(|scope| {
        for t in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..10 {
                    let text = format!("app{t}:{i}");
                    store.tag(&name(&text), &target(&text)).unwrap();
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 80);
    assert!(
        crate::support::content(dir.path()).is_empty(),
        "no temporary file stays"
    );
}

#[test]
fn records_are_kept_by_manifest() {
    let (_dir, store) = store();
    let hash = digest(b"m");
    assert_eq!(store.record::<Vec<u8>>(&hash).unwrap(), None);
    store.put_record(&hash, &vec![1, 2]).unwrap();
    store.put_record(&hash, &vec![3]).unwrap();
    assert_eq!(store.record::<Vec<u8>>(&hash).unwrap(), Some(vec![3]));
    assert!(store.record::<String>(&hash).is_err());
    assert_eq!(store.records().unwrap(), [hash]);
    assert!(store.remove_record(&hash).unwrap());
    assert!(!store.remove_record(&hash).unwrap());
}

#[test]
fn a_module_becomes_a_wasm_artifact() {
    let (_dir, store) = store();
    let image = WasmImage {
        bytes: b"\0asm\x01\0\0\0",
        os: "wasip1",
        component: None,
    };
    let made = add_wasm(&store, &image, Some(&name("hello-wasm"))).unwrap();
    assert_eq!(
        add_wasm(&store, &image, None).unwrap(),
        made,
        "same bytes, same image"
    );
    assert_eq!(
        store.resolve(&name("hello-wasm")).unwrap(),
        Some(made.clone())
    );
    let manifest: Manifest = store.read_json(&made.digest).unwrap();
    assert_eq!(
        manifest.config.media_type,
        "application/vnd.wasm.config.v0+json"
    );
    assert_eq!(manifest.layers.len(), 1);
    assert_eq!(manifest.layers[0].media_type, "application/wasm");
    let config: serde_json::Value = store.read_json(&manifest.config.digest).unwrap();
    assert_eq!(config["os"], "wasip1");
    assert_eq!(config["architecture"], "wasm");
    assert_eq!(config["layerDigests"][0], digest(image.bytes).to_string());
}
