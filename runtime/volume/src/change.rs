//! Volumes renamed and cloned. Docker has neither.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use amphora_sys::copy::Copier;
use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Result, VolumeError, file};
use crate::mounts::own_directory;
use crate::volumes::{
    NewVolume, Users, Volume, Volumes, check_volume_name, describe, write_record,
};

impl Volumes {
    /// Gives a volume another name, unless `users` names containers that mention it or somebody
    /// holds it.
    ///
    /// # Errors
    /// Not found; a conflict when the volume is in use, or the other name is.
    pub fn rename(&self, old: &str, new: &str, users: Users<'_>) -> Result<Volume> {
        let mut volume = self.get(old)?;
        check_volume_name(new)?;
        if old == new {
            return Ok(volume);
        }
        let _lock = self.locked_unused("rename", old, users)?;
        let (from, to) = (self.path(old), self.path(new));
        // The folder's name is what counts: from here on it has the new one.
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(VolumeError::Exists(new.to_owned())),
            other => other.map_err(file("rename", &from))?,
        }
        new.clone_into(&mut volume.name);
        volume.anonymous = false;
        write_record(&to, &volume)?;
        Ok(volume)
    }

    /// Makes a volume with a copy of another's files; where the file system can, both share what is
    /// in them until one is written to. The labels are the source's and those given. Nobody is kept
    /// from writing to the source meanwhile.
    ///
    /// # Errors
    /// Not found; a conflict when the new name is taken; a source whose files are not the engine's.
    pub fn clone_volume(
        &self,
        source: &str,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        let from = self.get(source)?;
        if !from.options.is_empty() {
            return Err(VolumeError::Foreign(source.to_owned()));
        }
        let mut all = from.labels;
        all.extend(labels);
        let volume = describe(NewVolume {
            name: name.map(str::to_owned),
            labels: all,
            ..NewVolume::default()
        })?;
        if self.path(&volume.name).exists() {
            return Err(VolumeError::Exists(volume.name));
        }
        let _held = self.locked(source, FlockOperation::LockShared)?;
        self.finish_copy(source)?;
        let data = self.data_path(source);
        let passing = self.passing("new")?;
        let made = self.build(&passing, &volume, |place| copy(&data, place));
        if made.is_err() {
            let _ = fs::remove_dir_all(&passing);
        }
        made.map(|()| volume)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (own_directory(from)?, own_directory(to)?);
    Ok(Copier::default().copy(&source, &target, from)?)
}
