//! A pull from beginning to end: documents, layers in parallel, the tag last.

use amphora_content::{Lease, Store};
use amphora_snapshot::{Layers, MAX_IMAGE_LAYERS};
use amphora_spec::error::chain;
use amphora_spec::image::{Descriptor, ImageConfig, Manifest};
use amphora_spec::media::{self, LayerKind};
use amphora_spec::{Digest, Platform, Reference};

use crate::error::Result;
use crate::http::{self, Http, Repo};
use crate::layers::{self, Job};
use crate::manifest::{Chosen, Documents, descend};
use crate::{ClientConfig, DistributionError, Progress, PullEvent};

/// A registry client. One client serves any number of pulls, from several threads.
#[derive(Debug)]
pub struct Client {
    http: Http,
    /// For mirrors, less patient; `None` without any.
    mirrors: Option<Http>,
}

/// Says what a pull did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullStatus {
    /// Something was downloaded, or the name points elsewhere now.
    Downloaded,
    /// Everything was here before.
    UpToDate,
}

/// Result of a pull.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// The image manifest that was chosen.
    pub manifest: Descriptor,
    /// What the name points at: that manifest, or an index.
    pub target: Descriptor,
    /// What the pull did.
    pub status: PullStatus,
}

/// An image that is here whole and verified, but not yet named. The collector stays away until
/// this is published or dropped.
#[must_use = "it has no name yet"]
pub struct Fetched<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
    reference: Reference,
    pulled: Pulled,
    _lease: Lease,
}

impl std::fmt::Debug for Fetched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched")
            .field("reference", &self.reference)
            .field("pulled", &self.pulled)
            .finish_non_exhaustive()
    }
}

impl Fetched<'_> {
    /// Returns the image manifest that was chosen.
    #[must_use]
    pub const fn manifest(&self) -> &Descriptor {
        &self.pulled.manifest
    }

    /// Writes the image to disk, then names it, and tells the progress how the pull ended.
    ///
    /// # Errors
    /// When the disk, or the index of the store, cannot be written; the name stays what it was.
    pub fn publish(self) -> Result<Pulled> {
        if self.pulled.status == PullStatus::Downloaded {
            self.store.sync()?;
            self.store.tag(&self.reference, &self.pulled.target)?;
        }
        self.progress.finished(&self.reference, &self.pulled);
        Ok(self.pulled)
    }
}

impl Client {
    /// Makes a client. No connection is opened.
    ///
    /// # Errors
    /// [`DistributionError::Roots`] when the given root certificates cannot be read.
    pub fn new(config: ClientConfig) -> Result<Self> {
        let some = (!config.mirrors.is_empty()).then(|| config.for_mirrors());
        Ok(Self {
            mirrors: some.map(Http::new).transpose()?,
            http: Http::new(config)?,
        })
    }

    /// Pulls an image or artifact. `platform` chooses the entry of an index; without it the host's
    /// Linux is taken, else a Wasm entry. [`Fetched::publish`] names it. What a failed pull has
    /// verified until then stays in the store without a name, so that the next one resumes.
    ///
    /// # Errors
    /// Those of [`DistributionError`]; Docker's words for unknown images and denied access.
    pub fn pull<'a>(
        &self,
        store: &'a Store,
        layers: &Layers,
        reference: &Reference,
        platform: Option<&Platform>,
        progress: &'a dyn Progress,
    ) -> Result<Fetched<'a>> {
        // A digest says all; Docker drops the tag beside it.
        let reference = match reference.digest() {
            Some(digest) => reference.at_digest(*digest),
            None => reference.clone().with_default_tag(),
        };
        let order = Order {
            store,
            layers,
            reference: &reference,
            platform,
            progress,
        };
        let mut failed = Vec::new();
        if let Some(http) = &self.mirrors {
            for mirror in Repo::mirrors(&http.config, &reference) {
                match order.from(http, &mirror) {
                    // It would fail the same way wherever the image came from.
                    Err(error) if error.is_own() => return Err(error),
                    // Whatever is wrong with a mirror, the registry itself has the last word.
                    Err(error) => failed.push(format!("{}: {}", mirror.base, chain(&error))),
                    fetched => return fetched,
                }
            }
        }
        let repo = Repo::new(&self.http.config, &reference);
        match order.from(&self.http, &repo) {
            Err(error) if !failed.is_empty() && !error.is_own() => {
                Err(DistributionError::Everywhere {
                    mirrors: failed.join("; "),
                    source: Box::new(error),
                })
            }
            fetched => fetched,
        }
    }
}

/// What is to be pulled, and where to.
struct Order<'o, 'a> {
    store: &'a Store,
    layers: &'o Layers,
    reference: &'o Reference,
    platform: Option<&'o Platform>,
    progress: &'a dyn Progress,
}

impl<'a> Order<'_, 'a> {
    fn from(&self, http: &Http, repo: &Repo) -> Result<Fetched<'a>> {
        let (store, layers, progress) = (self.store, self.layers, self.progress);
        let (reference, platform) = (self.reference.clone(), self.platform);
        let lease = store.lease()?;
        let before = store.resolve(&reference)?;
        let documents = Documents::new(http, repo, store);
        let top = documents.top(&reference, before.as_ref())?;
        let target = top.descriptor.clone();
        let chosen = descend(top, platform, &documents)?;
        let jobs = plan(&chosen, &documents)?;
        progress.started(&reference);

        let site = layers::Site {
            http,
            repo,
            store,
            layers,
            progress,
        };
        let missing = site.missing(&jobs)?;
        let named = before.is_some_and(|before| before.digest == target.digest);
        let unchanged = named && missing.is_empty() && documents.nothing_new();
        if !unchanged {
            for job in &jobs {
                let missing = missing.contains(&job);
                let event = if missing {
                    PullEvent::PullingFsLayer
                } else {
                    PullEvent::AlreadyExists
                };
                progress.event(&job.blob.short(), event);
            }
            site.fetch(&missing)?;
            documents.keep()?;
        }
        let status = if unchanged {
            PullStatus::UpToDate
        } else {
            PullStatus::Downloaded
        };
        Ok(Fetched {
            store,
            progress,
            reference,
            pulled: Pulled {
                manifest: chosen.descriptor,
                target,
                status,
            },
            _lease: lease,
        })
    }
}

/// Says what is to be done with each layer of an image, base first, none twice.
fn plan(chosen: &Chosen, documents: &Documents<'_>) -> Result<Vec<Job>> {
    let config = &chosen.manifest.config;
    let bytes = documents.config(config)?;
    let image = matches!(
        config.media_type.as_str(),
        media::OCI_CONFIG | media::DOCKER_CONFIG
    );
    let diff_ids = if image {
        let parsed = serde_json::from_slice::<ImageConfig>(&bytes);
        let parsed = parsed.map_err(|source| DistributionError::Malformed {
            what: "config",
            name: config.digest.to_string(),
            source,
        })?;
        Some(parsed.rootfs.diff_ids)
    } else {
        None
    };
    jobs(
        &chosen.manifest,
        chosen.descriptor.digest,
        diff_ids.as_deref(),
    )
}

fn jobs(manifest: &Manifest, digest: Digest, diff_ids: Option<&[Digest]>) -> Result<Vec<Job>> {
    let count = manifest.layers.len();
    if count > MAX_IMAGE_LAYERS {
        let limit = MAX_IMAGE_LAYERS;
        return Err(DistributionError::TooManyLayers {
            digest,
            layers: count,
            limit,
        });
    }
    let wasm = is_wasm_form(manifest);
    let spin = is_spin(manifest);
    let unpacks =
        |layer: &Descriptor| matches!(media::layer_kind(&layer.media_type), LayerKind::Tar(_));
    let tars = manifest.layers.iter().filter(|l| unpacks(l)).count();
    let mut ids = Ids {
        all: diff_ids.unwrap_or_default(),
        at: 0,
        each: false,
    };
    if let Some(diff_ids) = diff_ids.filter(|_| !spin) {
        // An image of raw Wasm layers lists them among the diff-ids, or leaves them out.
        ids.each = diff_ids.len() == count;
        let tars_alone = wasm && diff_ids.len() == tars;
        if !(ids.each || tars_alone) {
            let diff_ids = diff_ids.len();
            return Err(DistributionError::LayerCount {
                digest,
                layers: count,
                diff_ids,
            });
        }
    }
    let mut jobs: Vec<Job> = Vec::with_capacity(count);
    for layer in &manifest.layers {
        let kind = check_type(layer, wasm)?;
        let diff_id = match kind {
            LayerKind::Tar(label) if diff_ids.is_some() && !spin => {
                ids.next().map(|diff_id| (diff_id, label))
            }
            _ if ids.each => {
                ids.next();
                None
            }
            _ => None,
        };
        let job = Job {
            blob: layer.digest,
            size: layer.size,
            diff_id,
        };
        if !jobs.contains(&job) {
            jobs.push(job);
        }
    }
    Ok(jobs)
}

/// The diff-ids of a config, handed out layer by layer.
struct Ids<'a> {
    all: &'a [Digest],
    at: usize,
    /// There is one for every layer, not for tars alone.
    each: bool,
}

impl Ids<'_> {
    fn next(&mut self) -> Option<Digest> {
        self.at += 1;
        self.all.get(self.at - 1).copied()
    }
}

/// Says whether a manifest is one of the known forms of Wasm artifacts: then layers of any kind
/// are stored beside the module. Whether it can run is decided later, with a reason.
fn is_wasm_form(manifest: &Manifest) -> bool {
    let config = [
        media::WASM_CONFIG_V0,
        media::WASM_CONFIG_V1,
        media::PROXY_WASM_CONFIG,
        media::WASMCLOUD_CONFIG,
    ];
    config.contains(&manifest.config.media_type.as_str())
        || manifest
            .layers
            .iter()
            .any(|l| media::layer_kind(&l.media_type) == LayerKind::Wasm)
        || is_spin(manifest)
}

fn is_spin(manifest: &Manifest) -> bool {
    manifest.config.media_type == media::SPIN_APPLICATION
        || manifest
            .layers
            .iter()
            .any(|l| l.media_type == media::SPIN_APPLICATION)
}

fn check_type(layer: &Descriptor, wasm: bool) -> Result<LayerKind> {
    let kind = media::layer_kind(&layer.media_type);
    // Their content is not in the registry, or must not be handed on.
    let foreign =
        layer.media_type.contains(".foreign.") || layer.media_type.contains(".nondistributable.");
    if foreign || (kind == LayerKind::Other && !wasm) {
        let media_type = http::quote(&layer.media_type);
        return Err(DistributionError::LayerType {
            media_type,
            digest: layer.digest,
        });
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn id(n: u8) -> Digest {
        Digest::from_sha256([n; 32])
    }

    fn manifest(config: &str, layers: &[&str]) -> Manifest {
        let descriptor = |n: usize, media_type: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest: id(u8::try_from(n).unwrap()),
            size: 1,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        };
        Manifest {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            config: descriptor(99, config),
            layers: layers
                .iter()
                .enumerate()
                .map(|(n, t)| descriptor(n, t))
                .collect(),
            annotations: BTreeMap::new(),
        }
    }

    fn diffs(config: &str, types: &[&str], ids: Option<&[Digest]>) -> Result<Vec<Option<Digest>>> {
        let jobs = jobs(&manifest(config, types), id(1), ids)?;
        Ok(jobs.iter().map(|j| j.diff_id.map(|(d, _)| d)).collect())
    }

    #[test]
    fn every_tar_layer_has_its_diff_id() {
        let types = [media::OCI_LAYER_GZIP, media::DOCKER_LAYER];
        let ids = [id(10), id(11)];
        let got = diffs(media::OCI_CONFIG, &types, Some(&ids)).unwrap();
        assert_eq!(got, [Some(id(10)), Some(id(11))]);
        let error = diffs(media::OCI_CONFIG, &types, Some(&ids[..1])).unwrap_err();
        assert!(matches!(
            error,
            DistributionError::LayerCount {
                layers: 2,
                diff_ids: 1,
                ..
            }
        ));
    }

    #[test]
    fn raw_wasm_layers_are_stored_and_may_be_counted_or_not() {
        let types = [media::OCI_LAYER, media::WASM_LAYER];
        for ids in [&[id(10), id(11)][..], &[id(10)]] {
            let got = diffs(media::OCI_CONFIG, &types, Some(ids)).unwrap();
            assert_eq!(got, [Some(id(10)), None]);
        }
        assert_eq!(
            diffs(media::WASM_CONFIG_V0, &[media::WASM_LAYER], None).unwrap(),
            [None]
        );
    }

    #[test]
    fn known_wasm_forms_may_carry_other_layers() {
        let spin = [
            media::SPIN_APPLICATION,
            "application/vnd.wasm.content.bundle.v1.tar+gzip",
        ];
        assert_eq!(
            diffs(media::OCI_CONFIG, &spin, Some(&[])).unwrap(),
            [None, None]
        );
    }

    #[test]
    fn foreign_and_unknown_layers_are_named() {
        for bad in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.in-toto+json",
        ] {
            let error = diffs(media::OCI_CONFIG, &[bad], Some(&[id(1)])).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn a_layer_that_comes_twice_is_one_job() {
        let mut twice = manifest(media::OCI_CONFIG, &[media::OCI_LAYER, media::OCI_LAYER]);
        twice.layers[1].digest = twice.layers[0].digest;
        assert_eq!(jobs(&twice, id(1), Some(&[id(5), id(5)])).unwrap().len(), 1);
    }

    #[test]
    fn the_number_of_layers_is_bounded() {
        let many = vec![media::OCI_LAYER; 200];
        assert!(diffs(media::OCI_CONFIG, &many, Some(&vec![id(1); 200])).is_ok());
        let mut more = manifest(media::OCI_CONFIG, &many);
        let one = more.layers[0].clone();
        // The skeleton of every root file system is one of the 500 that overlayfs stacks.
        more.layers.resize(499, one.clone());
        assert!(jobs(&more, id(1), None).is_ok());
        more.layers.push(one);
        assert!(matches!(
            jobs(&more, id(1), None),
            Err(DistributionError::TooManyLayers {
                layers: 500,
                limit: 499,
                ..
            })
        ));
    }
}
