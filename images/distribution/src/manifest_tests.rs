//! Parsing and choosing, against a source in memory.

use std::collections::BTreeMap;

use amphora_spec::Classify;

use super::*;

#[derive(Default)]
struct Fake {
    documents: BTreeMap<Digest, Document>,
    platforms: BTreeMap<Digest, Platform>,
}

impl Source for Fake {
    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        Ok(self
            .documents
            .get(&descriptor.digest)
            .cloned()
            .expect("document asked for"))
    }

    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>> {
        Ok(self.platforms.get(&manifest.config.digest).cloned())
    }
}

fn id(n: u8) -> Digest {
    Digest::from_sha256([n; 32])
}

fn entry(n: u8, media_type: &str, platform: Option<&str>) -> Descriptor {
    let platform = platform.map(|text| {
        let (os, arch) = text.split_once('/').unwrap();
        Platform::new(os, arch)
    });
    Descriptor {
        platform,
        ..descriptor(media_type.to_owned(), id(n), 1)
    }
}

impl Fake {
    fn manifest(&mut self, n: u8) {
        let config = entry(n + 100, media::OCI_CONFIG, None);
        let manifest = Manifest {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            config,
            layers: Vec::new(),
            annotations: BTreeMap::new(),
        };
        let descriptor = entry(n, media::OCI_MANIFEST, None);
        self.documents.insert(
            id(n),
            Document {
                descriptor,
                parsed: Parsed::Manifest(Box::new(manifest)),
            },
        );
    }

    fn index(&mut self, n: u8, manifests: Vec<Descriptor>) -> Document {
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests,
            annotations: BTreeMap::new(),
        };
        let descriptor = entry(n, media::OCI_INDEX, None);
        let document = Document {
            descriptor,
            parsed: Parsed::Index(index),
        };
        self.documents.insert(id(n), document.clone());
        document
    }
}

#[test]
fn nested_indexes_are_descended() {
    let mut fake = Fake::default();
    fake.manifest(3);
    fake.index(2, vec![entry(3, media::OCI_MANIFEST, Some("linux/amd64"))]);
    let top = fake.index(1, vec![entry(2, media::OCI_INDEX, None)]);
    let wanted = Platform::new("linux", "amd64");
    assert_eq!(
        descend(top, Some(&wanted), &fake)
            .unwrap()
            .descriptor
            .digest,
        id(3)
    );
}

#[test]
fn an_index_that_contains_itself_is_refused() {
    let mut fake = Fake::default();
    fake.index(2, vec![entry(1, media::OCI_INDEX, None)]);
    let top = fake.index(1, vec![entry(2, media::OCI_INDEX, Some("linux/amd64"))]);
    let wanted = Platform::new("linux", "amd64");
    let error = descend(top, Some(&wanted), &fake).unwrap_err();
    assert!(
        matches!(error, DistributionError::Nesting(d) if d == id(1)),
        "{error}"
    );
}

#[test]
fn nesting_is_bounded() {
    let mut fake = Fake::default();
    fake.manifest(9);
    let linux = Some("linux/amd64");
    fake.index(8, vec![entry(9, media::OCI_MANIFEST, linux)]);
    for n in (1..8).rev() {
        fake.index(n, vec![entry(n + 1, media::OCI_INDEX, linux)]);
    }
    let wanted = Platform::new("linux", "amd64");
    let at = |n: u8| descend(fake.documents[&id(n)].clone(), Some(&wanted), &fake);
    assert!(at(5).is_ok(), "{MAX_INDEX_DEPTH} indexes are fine");
    assert!(matches!(at(4), Err(DistributionError::Nesting(_))));
}

#[test]
fn entries_without_platform_are_judged_by_their_config() {
    let mut fake = Fake::default();
    fake.manifest(2);
    fake.manifest(3);
    fake.platforms
        .insert(id(102), Platform::new("linux", "s390x"));
    fake.platforms
        .insert(id(103), Platform::new("wasip1", "wasm"));
    let top = fake.index(
        1,
        vec![
            entry(2, media::OCI_MANIFEST, None),
            entry(3, media::OCI_MANIFEST, None),
        ],
    );
    assert_eq!(descend(top, None, &fake).unwrap().descriptor.digest, id(3));
}

#[test]
fn no_match_says_it_in_dockers_words() {
    let mut fake = Fake::default();
    let top = fake.index(1, vec![entry(2, media::OCI_MANIFEST, Some("linux/s390x"))]);
    let wanted = Platform::new("linux", "amd64");
    let error = descend(top, Some(&wanted), &fake).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no matching manifest for linux/amd64 in the manifest list entries"
    );
    assert_eq!(error.kind(), amphora_spec::ErrorKind::NotFound);
}

#[test]
fn a_document_of_two_kinds_is_refused() {
    let both = br#"{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}"#;
    assert!(matches!(
        parse(both, media::OCI_INDEX),
        Err(DistributionError::Ambiguous { .. })
    ));
    let list = br#"{"schemaVersion":2,"manifests":[]}"#;
    assert!(matches!(
        parse(list, media::OCI_MANIFEST),
        Err(DistributionError::Ambiguous { .. })
    ));
    assert!(matches!(
        parse(list, "text/plain").unwrap().parsed,
        Parsed::Index(_)
    ));
    let own = format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media::DOCKER_LIST);
    let document = parse(own.as_bytes(), media::OCI_INDEX).unwrap();
    assert_eq!(document.descriptor.media_type, media::DOCKER_LIST);
}

#[test]
fn foreign_manifests_are_named() {
    let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
    let error = parse(
        old,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("manifest.v1+prettyjws"),
        "{error}"
    );
    assert!(matches!(
        parse(b"<html>", ""),
        Err(DistributionError::Malformed { .. })
    ));
}
