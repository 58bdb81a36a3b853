//! Manifests, indexes and configs: fetched, verified, parsed, and the right one chosen.

use std::cell::RefCell;

use amphora_content::{ContentError, Store};
use amphora_spec::choose::choose;
use amphora_spec::image::{Descriptor, ImageConfig, Index, Manifest};
use amphora_spec::{Digest, Platform, Reference, media};
use sha2::{Digest as _, Sha256};
use ureq::http::HeaderMap;

use crate::error::Result;
use crate::http::{self, Ask, Http, Method, Repo};
use crate::{DistributionError, RegistryProblem};

/// Largest manifest, index or config.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Indexes within indexes.
const MAX_INDEX_DEPTH: usize = 4;
/// Entries of an index without a platform that are looked into.
const MAX_UNNAMED_ENTRIES: usize = 16;

/// What is asked for where a manifest is expected.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A verified document.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// Media type, digest and size.
    pub(crate) descriptor: Descriptor,
    pub(crate) parsed: Parsed,
}

#[derive(Debug, Clone)]
pub(crate) enum Parsed {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// A document that is an image manifest.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Box<Manifest>,
}

/// Gives the documents an index leads to.
pub(crate) trait Source {
    /// Returns a manifest or index.
    fn document(&self, descriptor: &Descriptor) -> Result<Document>;
    /// Returns the platform that a manifest's config declares.
    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>>;
}

/// The documents of one pull: out of the store, else out of the registry. What comes from the
/// registry stays in memory until the whole image is there.
pub(crate) struct Documents<'a> {
    http: &'a Http,
    repo: &'a Repo,
    store: &'a Store,
    fetched: RefCell<Vec<(Digest, Vec<u8>)>>,
}

/// Computes the digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// Makes a descriptor without annotations.
fn descriptor(media_type: String, digest: Digest, size: usize) -> Descriptor {
    Descriptor {
        media_type,
        digest,
        size: size as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
        artifact_type: None,
    }
}

/// Parses a manifest or index. The document's own media type counts before the declared one; a
/// document that can be read as both kinds is refused.
pub(crate) fn parse(bytes: &[u8], declared: &str) -> Result<Document> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
    }
    let digest = digest_of(bytes);
    let name = || digest.to_string();
    let malformed = |what| {
        move |source| DistributionError::Malformed {
            what,
            name: digest.to_string(),
            source,
        }
    };
    let shape: Shape = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    let (list, image) = (
        shape.manifests.is_some(),
        shape.config.is_some() || shape.layers.is_some(),
    );
    if list && image {
        return Err(DistributionError::Ambiguous { name: name() });
    }
    let declared = declared.split(';').next().unwrap_or("").trim();
    let media_type = match shape.media_type {
        Some(own) if !own.is_empty() => own,
        _ if media::is_index(declared) || media::is_manifest(declared) => declared.to_owned(),
        _ if list => media::OCI_INDEX.to_owned(),
        _ if shape.config.is_some() => media::OCI_MANIFEST.to_owned(),
        _ => declared.to_owned(),
    };
    let parsed = if media::is_index(&media_type) && !image {
        Parsed::Index(serde_json::from_slice(bytes).map_err(malformed("index"))?)
    } else if media::is_manifest(&media_type) && !list {
        Parsed::Manifest(serde_json::from_slice(bytes).map_err(malformed("manifest"))?)
    } else if media::is_index(&media_type) || media::is_manifest(&media_type) {
        return Err(DistributionError::Ambiguous { name: name() });
    } else {
        let media_type = http::quote(&media_type);
        return Err(DistributionError::ManifestType {
            media_type,
            name: name(),
        });
    };
    Ok(Document {
        descriptor: descriptor(media_type, digest, bytes.len()),
        parsed,
    })
}

impl<'a> Documents<'a> {
    pub(crate) fn new(http: &'a Http, repo: &'a Repo, store: &'a Store) -> Self {
        Self {
            http,
            repo,
            store,
            fetched: RefCell::new(Vec::new()),
        }
    }

    /// Returns what a reference names now. `known` is what it named at the last pull: when the
    /// registry still says so, one request without a body suffices.
    pub(crate) fn top(
        &self,
        reference: &Reference,
        known: Option<&Descriptor>,
    ) -> Result<Document> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => {
                if let Some(bytes) = self.stored(digest)? {
                    let declared = known.map_or("", |k| k.media_type.as_str());
                    return parse(&bytes, declared);
                }
                digest.to_string()
            }
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let url = self.repo.url("manifests", &name);
        if reference.digest().is_none()
            && let Some(known) = known
            && let Some(bytes) = self.stored(&known.digest)?
            && self.unchanged(&url, known)?
        {
            return parse(&bytes, &known.media_type);
        }
        let what = reference.familiar();
        let (bytes, declared) = self.get(&url, &name, &what)?;
        let document = parse(&bytes, &declared)?;
        let found = document.descriptor.digest;
        if let Some(digest) = reference.digest().filter(|d| **d != found) {
            return Err(DistributionError::WrongDigest {
                what: "manifest",
                digest: *digest,
                found,
            });
        }
        if self.stored(&found)?.is_none() {
            self.remember(found, bytes);
        }
        Ok(document)
    }

    /// Asks whether a tag still names what it named. The answer's header is only believed when it
    /// says that nothing changed.
    fn unchanged(&self, url: &str, known: &Descriptor) -> Result<bool> {
        let ask = Ask {
            method: Method::Head,
            url,
            accept: ACCEPT,
            from: 0,
        };
        let response = self.http.send_patiently(self.repo, ask)?;
        let digest = http::header_text(response.headers(), "docker-content-digest");
        Ok(response.status().is_success()
            && digest.and_then(|d| d.parse::<Digest>().ok()) == Some(known.digest))
    }

    /// Gets a manifest by tag or digest; returns it with its `Content-Type`.
    fn get(&self, url: &str, name: &str, familiar: &str) -> Result<(Vec<u8>, String)> {
        let ask = Ask {
            method: Method::Get,
            url,
            accept: ACCEPT,
            from: 0,
        };
        let response = self.http.send_patiently(self.repo, ask)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => {
                let logged_in = self.http.knows_credentials(self.repo);
                let problem = http::denial(http::problem(response), logged_in);
                return Err(self.repo.denied(problem));
            }
            404 => return Err(self.unknown(http::problem(response), familiar)),
            _ => return Err(http::unexpected(ask, response)),
        }
        let declared = content_type(response.headers());
        let bytes = self.body(ask, response, "manifest", name)?;
        Ok((bytes, declared))
    }

    fn unknown(&self, problem: RegistryProblem, reference: &str) -> DistributionError {
        let repository = self.repo.familiar.clone();
        match problem.code.as_str() {
            "NAME_UNKNOWN" => DistributionError::RepositoryUnknown {
                repository,
                problem,
            },
            "DENIED" => DistributionError::AccessDenied {
                repository,
                problem,
            },
            "" => {
                let problem = RegistryProblem::new("MANIFEST_UNKNOWN", "manifest unknown");
                DistributionError::ManifestUnknown {
                    reference: reference.to_owned(),
                    problem,
                }
            }
            _ => DistributionError::ManifestUnknown {
                reference: reference.to_owned(),
                problem,
            },
        }
    }

    fn body(
        &self,
        ask: Ask<'_>,
        response: ureq::http::Response<ureq::Body>,
        what: &'static str,
        name: &str,
    ) -> Result<Vec<u8>> {
        let bytes =
            http::read_at_most(response, MAX_DOCUMENT_BYTES).map_err(|e| http::broken(ask, &e))?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            let name = name.to_owned();
            return Err(DistributionError::TooLarge {
                what,
                name,
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        Ok(bytes)
    }

    /// Returns the bytes of a manifest's config, verified.
    pub(crate) fn config(&self, config: &Descriptor) -> Result<Vec<u8>> {
        let what = "config";
        limit(what, config)?;
        if let Some(bytes) = self.stored(&config.digest)? {
            return Ok(bytes);
        }
        let name = config.digest.to_string();
        let url = self.repo.url("blobs", &name);
        let ask = Ask {
            method: Method::Get,
            url: &url,
            accept: "*/*",
            from: 0,
        };
        let response = self.http.send_patiently(self.repo, ask)?;
        match response.status().as_u16() {
            200 => {}
            404 => {
                let (digest, repository) = (config.digest, self.repo.familiar.clone());
                return Err(DistributionError::BlobUnknown { digest, repository });
            }
            _ => return Err(http::unexpected(ask, response)),
        }
        let bytes = self.body(ask, response, what, &name)?;
        verify(what, config, &bytes)?;
        self.remember(config.digest, bytes.clone());
        Ok(bytes)
    }

    fn stored(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        if let Some((_, bytes)) = self.fetched.borrow().iter().find(|(d, _)| d == digest) {
            return Ok(Some(bytes.clone()));
        }
        match self.store.has(digest)? {
            Some(size) if size <= MAX_DOCUMENT_BYTES => {
                match self.store.read_blob(digest, MAX_DOCUMENT_BYTES) {
                    Ok(bytes) => Ok(Some(bytes)),
                    // Torn by a power failure: fetched again and written anew.
                    Err(ContentError::DigestMismatch { .. } | ContentError::BlobNotFound(_)) => {
                        Ok(None)
                    }
                    Err(e) => Err(e.into()),
                }
            }
            _ => Ok(None),
        }
    }

    fn remember(&self, digest: Digest, bytes: Vec<u8>) {
        self.fetched.borrow_mut().push((digest, bytes));
    }

    /// Says whether everything came out of the store.
    pub(crate) fn nothing_new(&self) -> bool {
        self.fetched.borrow().is_empty()
    }

    /// Writes what was fetched to the store: each was absent there, or damaged.
    pub(crate) fn keep(&self) -> Result<()> {
        for (_, bytes) in self.fetched.borrow().iter() {
            self.store.rewrite_blob(bytes)?;
        }
        Ok(())
    }
}

impl Source for Documents<'_> {
    fn document(&self, wanted: &Descriptor) -> Result<Document> {
        let what = "manifest";
        limit(what, wanted)?;
        if let Some(bytes) = self.stored(&wanted.digest)? {
            return parse(&bytes, &wanted.media_type);
        }
        let name = wanted.digest.to_string();
        let url = self.repo.url("manifests", &name);
        let familiar = format!("{}@{name}", self.repo.familiar);
        let (bytes, _) = self.get(&url, &name, &familiar)?;
        verify(what, wanted, &bytes)?;
        let document = parse(&bytes, &wanted.media_type)?;
        self.remember(wanted.digest, bytes);
        Ok(document)
    }

    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>> {
        let bytes = self.config(&manifest.config)?;
        let platform = serde_json::from_slice::<ImageConfig>(&bytes)
            .ok()
            .map(|c| c.platform());
        let legacy = manifest.config.media_type == media::WASM_CONFIG_V1;
        Ok(match platform {
            Some(platform) if !platform.architecture.is_empty() => Some(platform),
            _ => legacy.then(|| Platform::new("wasi", "wasm")),
        })
    }
}

fn content_type(headers: &HeaderMap) -> String {
    http::header_text(headers, "content-type")
        .unwrap_or("")
        .to_owned()
}

fn limit(what: &'static str, descriptor: &Descriptor) -> Result<()> {
    if descriptor.size > MAX_DOCUMENT_BYTES {
        let name = descriptor.digest.to_string();
        return Err(DistributionError::TooLarge {
            what,
            name,
            limit: MAX_DOCUMENT_BYTES,
        });
    }
    Ok(())
}

/// Verifies bytes against their descriptor.
fn verify(what: &'static str, wanted: &Descriptor, bytes: &[u8]) -> Result<()> {
    let (digest, found) = (wanted.digest, digest_of(bytes));
    if found != digest {
        return Err(DistributionError::WrongDigest {
            what,
            digest,
            found,
        });
    }
    if bytes.len() as u64 != wanted.size {
        let (expected, found) = (wanted.size, bytes.len() as u64);
        return Err(DistributionError::WrongSize {
            what,
            digest,
            expected,
            found,
        });
    }
    Ok(())
}

/// Finds the image manifest to use, down through indexes.
pub(crate) fn descend(
    top: Document,
    wanted: Option<&Platform>,
    source: &dyn Source,
) -> Result<Chosen> {
    let index = match top.parsed {
        Parsed::Manifest(manifest) => {
            return Ok(Chosen {
                descriptor: top.descriptor,
                manifest,
            });
        }
        Parsed::Index(index) => index,
    };
    let mut above = Vec::new();
    let found = search(&index, top.descriptor.digest, wanted, source, &mut above)?;
    found.ok_or_else(|| DistributionError::NoMatch(wanted.cloned().unwrap_or_else(Platform::host)))
}

fn search(
    index: &Index,
    digest: Digest,
    wanted: Option<&Platform>,
    source: &dyn Source,
    above: &mut Vec<Digest>,
) -> Result<Option<Chosen>> {
    if above.len() >= MAX_INDEX_DEPTH || above.contains(&digest) {
        return Err(DistributionError::Nesting(digest));
    }
    above.push(digest);
    let mut found = None;
    if let Some(entry) = choose(&index.manifests, wanted) {
        found = enter(source.document(entry)?, wanted, source, above)?;
    }
    if found.is_none() {
        found = search_unnamed(index, wanted, source, above)?;
    }
    above.pop();
    Ok(found)
}

fn enter(
    document: Document,
    wanted: Option<&Platform>,
    source: &dyn Source,
    above: &mut Vec<Digest>,
) -> Result<Option<Chosen>> {
    match document.parsed {
        Parsed::Manifest(manifest) => Ok(Some(Chosen {
            descriptor: document.descriptor,
            manifest,
        })),
        Parsed::Index(inner) => search(&inner, document.descriptor.digest, wanted, source, above),
    }
}

/// Looks into the entries that name no platform: their configs say what they are for.
fn search_unnamed(
    index: &Index,
    wanted: Option<&Platform>,
    source: &dyn Source,
    above: &mut Vec<Digest>,
) -> Result<Option<Chosen>> {
    let unnamed = index.manifests.iter().filter(|entry| {
        let known = media::is_index(&entry.media_type) || media::is_manifest(&entry.media_type);
        entry.platform.is_none() && known
    });
    let (mut entries, mut manifests) = (Vec::new(), Vec::new());
    for entry in unnamed.take(MAX_UNNAMED_ENTRIES) {
        let document = source.document(entry)?;
        match document.parsed {
            Parsed::Index(_) => {
                let found = enter(document, wanted, source, above)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Parsed::Manifest(manifest) => {
                let platform = source.platform(&manifest)?;
                entries.push(Descriptor {
                    platform,
                    ..document.descriptor.clone()
                });
                manifests.push((document.descriptor, manifest));
            }
        }
    }
    let Some(digest) = choose(&entries, wanted).map(|entry| entry.digest) else {
        return Ok(None);
    };
    let found = manifests
        .into_iter()
        .find(|(descriptor, _)| descriptor.digest == digest);
    Ok(found.map(|(descriptor, manifest)| Chosen {
        descriptor,
        manifest,
    }))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
