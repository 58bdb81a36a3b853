//! Image archives: what `docker save` writes, and tars of an OCI image layout.
//!
//! The stream is read once, its entries in any order. Everything is spooled beside the blobs first
//! and becomes blobs only when the whole archive was read and each image in it is complete and
//! verified: a bad archive leaves nothing. Names come last, by [`publish`].

mod docker;
mod files;
mod oci;
mod save;

use std::io::Read;

use amphora_spec::image::Descriptor;
use amphora_spec::{Reference, media::Compression};

use crate::compress::{Ratio, decompress_within};
use crate::tarball::{TarLimits, TarReader};
use crate::{ContentError, Result, Store};
use files::Files;

pub use save::{Saved, save};

/// Most entries of an image archive.
pub const MAX_ARCHIVE_ENTRIES: u64 = 100_000;
/// Most images in one archive.
pub const MAX_ARCHIVE_IMAGES: usize = 10_000;

/// Bounds of an image archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Bounds of the outer tar.
    pub limits: TarLimits,
    /// What a compressed archive may grow to.
    pub ratio: Ratio,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            limits: TarLimits {
                entries: MAX_ARCHIVE_ENTRIES,
                ..TarLimits::default()
            },
            ratio: Ratio::default(),
        }
    }
}

/// An image that came out of an archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Its name, when the archive has one.
    pub reference: Option<Reference>,
    /// What the name points at: a manifest, or an index.
    pub manifest: Descriptor,
}

/// An image to be made visible.
#[derive(Debug)]
struct Image {
    names: Vec<Reference>,
    target: Descriptor,
}

/// Takes in all images of an archive, plain or compressed with gzip or zstd. Nothing names them
/// yet: until [`publish`] the caller holds a [`Lease`](crate::Lease), else the collector takes them.
///
/// # Errors
/// When the archive is malformed, incomplete, exceeds a bound or cannot be stored; nothing of it
/// is visible then.
pub fn load(store: &Store, reader: impl Read + Send, options: &LoadOptions) -> Result<Vec<Loaded>> {
    let _lease = store.lease()?;
    let plain = decompress_within(Compression::None, reader, options.ratio).map_err(|source| {
        ContentError::Read {
            what: "image archive",
            source,
        }
    })?;
    let mut files = Files::read(store, TarReader::new(plain, options.limits))?;
    let images = if files.document("oci-layout").is_some() && files.document("index.json").is_some()
    {
        oci::plan(&mut files)?
    } else if files.document("manifest.json").is_some() {
        docker::plan(&mut files)?
    } else {
        let why = "it has neither a manifest.json nor an OCI layout's index.json";
        return Err(ContentError::Archive(why.to_owned()));
    };
    files.commit()?;
    Ok(loaded(images))
}

/// Writes what was loaded to disk, then names it.
///
/// # Errors
/// When the disk, or the index, cannot be written; names may be missing then, none is wrong.
pub fn publish(store: &Store, loaded: &[Loaded]) -> Result<()> {
    store.sync()?;
    for image in loaded {
        match &image.reference {
            Some(name) => drop(store.tag(name, &image.manifest)?),
            None => store.keep_untagged(&image.manifest)?,
        }
    }
    Ok(())
}

fn loaded(images: Vec<Image>) -> Vec<Loaded> {
    let mut loaded = Vec::new();
    for Image { names, target } in images {
        let mut add = |reference| {
            loaded.push(Loaded {
                reference,
                manifest: target.clone(),
            });
        };
        if names.is_empty() {
            add(None);
        }
        names.into_iter().for_each(|name| add(Some(name)));
    }
    loaded
}

fn parse_name(name: &str) -> Result<Reference> {
    let parsed: Reference = name.parse().map_err(|source| ContentError::Name {
        name: name.chars().take(300).collect(),
        source,
    })?;
    Ok(parsed.with_default_tag())
}
