//! Save: images as an archive that Docker and this engine load.

use std::io::Write;

use amphora_content::archive::{self, Saved};
use amphora_spec::image::Descriptor;
use amphora_spec::{Platform, Reference};

use crate::image::choose;
use crate::{Engine, EngineError, Result};

impl Engine {
    /// Writes images as one archive. A repository without a tag stands for all its tags.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`]; an image that is not there for `platform`, or not whole.
    pub fn save(
        &self,
        names: &[String],
        platform: Option<&Platform>,
        out: impl Write,
    ) -> Result<()> {
        let _lease = self.store.lease().map_err(EngineError::plain)?;
        let mut images: Vec<Saved> = Vec::new();
        let mut ids = Vec::new();
        for text in names {
            for (name, target) in self.to_save(text)? {
                let (saved, id) = self.saved(text, target, platform)?;
                ids.push(id);
                let same = images
                    .iter_mut()
                    .find(|have| have.target.digest == saved.target.digest);
                let entry = match same {
                    Some(entry) => entry,
                    None => {
                        images.push(saved);
                        let Some(entry) = images.last_mut() else {
                            continue;
                        };
                        entry
                    }
                };
                if let Some(name) = name
                    && !entry.names.contains(&name)
                {
                    entry.names.push(name);
                }
            }
        }
        archive::save(&self.store, &images, out).map_err(EngineError::plain)?;
        ids.sort();
        ids.dedup();
        for id in &ids {
            self.note("image", "save", id, &[("name", id)]);
        }
        Ok(())
    }

    /// What one argument stands for: names with what they point at, or an image without a name.
    fn to_save(&self, text: &str) -> Result<Vec<(Option<Reference>, Descriptor)>> {
        let reference = text.parse::<Reference>().ok();
        if let Some(reference) = reference.as_ref().filter(|r| r.digest().is_none()) {
            let wanted = |have: &Reference| match reference.tag() {
                Some(tag) => have.tag() == Some(tag),
                None => true,
            };
            let mut found: Vec<_> = self
                .store
                .list_all()
                .map_err(EngineError::plain)?
                .into_iter()
                .filter_map(|named| Some((named.reference?, named.target)))
                .filter(|(have, _)| have.repository() == reference.repository() && wanted(have))
                .map(|(have, target)| (Some(have), target))
                .collect();
            if !found.is_empty() {
                found.sort_by_key(|(have, _)| have.as_ref().map(ToString::to_string));
                return Ok(found);
            }
        }
        let found = self.image_targets(text)?;
        if found.is_empty() {
            let shown = reference.map_or_else(
                || text.to_owned(),
                |reference| reference.with_default_tag().familiar(),
            );
            return Err(EngineError::NoSuchImage(shown));
        }
        Ok(found.into_iter().map(|target| (None, target)).collect())
    }

    /// The image of a platform where one is asked for, else all that is here; and its id.
    fn saved(
        &self,
        text: &str,
        target: Descriptor,
        platform: Option<&Platform>,
    ) -> Result<(Saved, String)> {
        let records = self.records_of(&target)?;
        let record = choose(records, platform).ok_or_else(|| match platform {
            Some(platform) => EngineError::Invalid(format!(
                "image with reference {text} was found but does not provide the specified platform ({platform})"
            )),
            None => EngineError::NoSuchImage(text.to_owned()),
        })?;
        let target = match platform {
            Some(_) => record.manifest.clone(),
            None => target,
        };
        let saved = Saved {
            target,
            names: Vec::new(),
            manifest: record.manifest,
        };
        Ok((saved, record.image_id.to_string()))
    }
}
