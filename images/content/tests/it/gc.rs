use amphora_content::{Partials, Pins, archive};

use crate::archive::{docker_archive, oci_archive};
use crate::support::{Image, content, store};

#[test]
fn what_nothing_names_goes_and_the_rest_stays() {
    let (dir, store) = store();
    let (a, b) = (Image::new("a"), Image::new("b"));
    let options = archive::LoadOptions::default();
    let kept = archive::load(&store, &*docker_archive(&a, &["kept:1"]), &options).unwrap();
    let gone = archive::load(&store, &*oci_archive(&b, Some("gone:1")), &options).unwrap();
    assert!(store.list_all().unwrap().is_empty(), "names come last");
    for loaded in [&kept, &gone] {
        archive::publish(&store, loaded).unwrap();
    }
    store.put_record(&kept[0].manifest.digest, &1).unwrap();
    store.put_record(&gone[0].manifest.digest, &2).unwrap();
    store.write_blob(b"orphan").unwrap();
    drop(store.spool().unwrap());
    store.untag(gone[0].reference.as_ref().unwrap()).unwrap();

    let proof = store.try_exclusive().unwrap().unwrap();
    let pins = Pins {
        manifests: vec![gone[0].manifest.digest],
        layers: vec![],
    };
    let pinned = store
        .sweep(&proof, &store.live(&pins).unwrap(), Partials::Keep)
        .unwrap();
    assert_eq!(
        pinned.blobs.len(),
        1,
        "only the orphan: the other image is pinned"
    );

    let live = store.live(&Pins::default()).unwrap();
    assert_eq!(live.layers.len(), 1);
    let swept = store.sweep(&proof, &live, Partials::Keep).unwrap();
    assert_eq!(swept.blobs.len(), 3);
    assert!(swept.bytes > 500);
    assert_eq!(
        content(dir.path()).len(),
        4,
        "config, layer, manifest and record of the other"
    );
}

#[test]
fn a_lease_keeps_the_collector_away() {
    let (_dir, store) = store();
    let (one, two) = (store.lease().unwrap(), store.lease().unwrap());
    assert!(store.try_exclusive().unwrap().is_none());
    drop(one);
    assert!(store.try_exclusive().unwrap().is_none());
    drop(two);
    let proof = store.try_exclusive().unwrap();
    assert!(proof.is_some());
    assert!(store.try_exclusive().unwrap().is_none());
}

#[test]
fn leftovers_of_killed_processes_go_and_partials_as_asked() {
    let (dir, store) = store();
    let hash = crate::support::digest(b"x");
    store.ingest(&hash, 10).unwrap().put(b"x").unwrap();
    // No process has this pid: the kernel's limit is 4 million.
    std::fs::write(dir.path().join("ingest/spool-99999999-0-0.tmp"), b"x").unwrap();
    let spool = store.spool().unwrap();
    let proof = store.try_exclusive().unwrap().unwrap();
    let live = store.live(&Pins::default()).unwrap();
    store.sweep(&proof, &live, Partials::Keep).unwrap();
    assert_eq!(
        content(dir.path()).len(),
        2,
        "the partial and the spool of a living process"
    );
    store.sweep(&proof, &live, Partials::Remove).unwrap();
    assert_eq!(content(dir.path()).len(), 1);
    drop(spool);
    assert!(content(dir.path()).is_empty());
}

/// An index may name the blob of a layer: too large to be a document, and no reason to stop.
#[test]
fn a_large_blob_that_an_index_names_leads_nowhere() {
    let (_dir, store) = store();
    let large = vec![b' '; usize::try_from(amphora_content::MAX_DOCUMENT_BYTES).unwrap() + 1];
    let layer = store.write_blob(&large).unwrap();
    let below = store.write_blob(b"{}").unwrap();
    let entry = |digest, size| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": size,
        })
    };
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [entry(layer, large.len()), entry(below, 2)],
    })
    .to_string();
    let top = store.write_blob(index.as_bytes()).unwrap();
    let pins = Pins {
        manifests: vec![top],
        layers: vec![],
    };
    let live = store.live(&pins).unwrap();
    assert_eq!(live.blobs, [top, layer, below].into());
}
