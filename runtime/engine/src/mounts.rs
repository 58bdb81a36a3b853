//! Volumes, binds and images of a container as detached mounts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_executor::BundleMount;
use amphora_volume::{Content, NewVolume, Volume, VolumeError};
use rustix::fs::{FileType, fstat};

use crate::config::{ContainerConfig, MountPoint};
use crate::kept::Guard;
use crate::{Engine, EngineError, Result};

/// What was mounted, and what it leans on.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    pub(crate) mounts: Vec<BundleMount>,
    /// Kept as long as the container runs.
    pub(crate) hold: Vec<OwnedFd>,
    /// Kept until somebody answers for what `hold` keeps mounted; with the namespace that it is in.
    pub(crate) guards: Vec<(Guard, OwnedFd)>,
}

/// A volume of a container, looked at and held.
struct Held {
    volume: Volume,
    content: Content,
    /// Keeps its file system, if it is one of its own.
    kept: Option<OwnedFd>,
}

impl Engine {
    /// Mounts everything of a container but what its specification says.
    pub(crate) fn mount_volumes(
        &self,
        config: &ContainerConfig,
        root: BorrowedFd<'_>,
    ) -> Result<Mounted> {
        let mut done = Mounted::default();
        let mut volumes = Vec::with_capacity(config.host.mounts.len());
        for point in &config.host.mounts {
            volumes.push(self.hold_volume(point, &mut done)?);
        }
        self.keep_file_systems(config, &mut volumes, &mut done)?;
        for (point, volume) in config.host.mounts.iter().zip(volumes) {
            let fd = match (point, volume) {
                (MountPoint::Volume { .. }, Some(held)) => self.mount_held(point, &held, root)?,
                (MountPoint::Bind { .. }, _) => mount_bind(point)?,
                (MountPoint::Image { .. }, _) => self.mount_image(point)?,
                _ => continue,
            };
            done.mounts.push(BundleMount {
                destination: point.destination().to_owned(),
                fd,
            });
        }
        Ok(done)
    }

    /// From here on the volume cannot be removed.
    fn hold_volume(&self, point: &MountPoint, done: &mut Mounted) -> Result<Option<Held>> {
        let Some(new) = new_volume(point) else {
            return Ok(None);
        };
        let name = new.name.clone().unwrap_or_default();
        let (volume, _) = self.volumes.ensure_with(new).map_err(EngineError::plain)?;
        let content = volume.content().map_err(EngineError::plain)?;
        done.hold
            .push(self.volumes.hold(&name).map_err(EngineError::plain)?);
        Ok(Some(Held {
            volume,
            content,
            kept: None,
        }))
    }

    /// Always in the order of names, so that two starts never wait for one another.
    fn keep_file_systems(
        &self,
        config: &ContainerConfig,
        volumes: &mut [Option<Held>],
        done: &mut Mounted,
    ) -> Result<()> {
        let mut shared: Vec<&mut Held> = volumes
            .iter_mut()
            .flatten()
            .filter(|held| held.content == Content::Shared)
            .collect();
        shared.sort_by(|a, b| a.volume.name.cmp(&b.volume.name));
        if !shared.is_empty() {
            let names: Vec<&str> = shared
                .iter()
                .map(|held| held.volume.name.as_str())
                .collect();
            self.settle_users(&config.id, &names)?;
        }
        let mut last: Option<(String, OwnedFd)> = None;
        for held in shared {
            let again = last.as_ref().filter(|(name, _)| *name == held.volume.name);
            let kept = match again {
                Some((_, kept)) => copy(kept)?,
                None => {
                    let (guard, kept) = self.keep_volume(&config.id, &held.volume)?;
                    done.hold.push(copy(&kept)?);
                    done.guards.push((guard, copy(&kept)?));
                    kept
                }
            };
            last = Some((held.volume.name.clone(), copy(&kept)?));
            held.kept = Some(kept);
        }
        Ok(())
    }

    fn mount_held(&self, point: &MountPoint, held: &Held, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        let MountPoint::Volume {
            destination,
            read_only,
            no_copy,
            subpath,
            ..
        } = point
        else {
            return Err(EngineError::State("no volume".to_owned()));
        };
        let name = held.volume.name.as_str();
        let (path, subpath) = (Path::new(destination), subpath.as_deref().map(Path::new));
        if held.content == Content::Own && subpath.is_none() {
            if !no_copy {
                let copied = self.volumes.copy_up(name, root, path);
                copied.map_err(EngineError::plain)?;
            }
            let mount = self.volumes.mount_volume(name, None, *read_only);
            return mount.map_err(EngineError::plain);
        }
        let mount = match &held.kept {
            Some(kept) => self.volumes.mount_kept(name, kept, subpath),
            None => self.volumes.mount_volume(name, subpath, false),
        }
        .map_err(EngineError::plain)?;
        if !no_copy && is_directory(mount.as_fd()) {
            match self.volumes.copy_up_into(name, mount.as_fd(), root, path) {
                // Nothing can be put into it, whoever tries.
                Err(VolumeError::File { source, .. })
                    if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
                copied => drop(copied.map_err(EngineError::plain)?),
            }
        }
        if *read_only {
            let shown = self.volume_path(name);
            amphora_volume::protect(mount.as_fd(), true, &shown).map_err(EngineError::plain)?;
        }
        Ok(mount)
    }

    fn mount_image(&self, point: &MountPoint) -> Result<OwnedFd> {
        let MountPoint::Image {
            source,
            subpath,
            layers,
            ..
        } = point
        else {
            return Err(EngineError::State("no image".to_owned()));
        };
        let mount = self
            .layers
            .rootfs(layers, None)
            .map_err(EngineError::plain)?;
        let Some(subpath) = subpath else {
            return Ok(mount);
        };
        // Shown as it was asked for: the layers lie in no one place.
        amphora_volume::folder_of(mount, Path::new(subpath), Path::new(source))
            .map_err(EngineError::plain)
    }

    /// Finds the images that are to be mounted.
    pub(crate) fn resolve_images(&self, mounts: &mut [MountPoint]) -> Result<()> {
        for point in mounts {
            let MountPoint::Image {
                source,
                manifest,
                layers,
                ..
            } = point
            else {
                continue;
            };
            let found = self.find_image(source, None).map_err(|e| match e {
                // Not the container's own, which a caller would pull.
                EngineError::NoSuchImage(name) => {
                    EngineError::Invalid(format!("No such image: {name}"))
                }
                other => other,
            })?;
            let record = &found.record;
            *manifest = Some(record.manifest.digest);
            *layers = record.layers.iter().filter_map(|l| l.diff_id).collect();
            if layers.is_empty() {
                return Err(EngineError::Invalid(format!(
                    "invalid mount config for type \"image\": image \"{source}\" has no files"
                )));
            }
        }
        Ok(())
    }
}

/// The volume that a mount names, as it would be made now.
pub(crate) fn new_volume(point: &MountPoint) -> Option<NewVolume> {
    match point {
        MountPoint::Volume {
            name,
            labels,
            options,
            ..
        } => Some(NewVolume {
            name: Some(name.clone()),
            labels: labels.clone(),
            options: options.clone(),
        }),
        _ => None,
    }
}

fn mount_bind(point: &MountPoint) -> Result<OwnedFd> {
    let MountPoint::Bind { source, idmap, .. } = point else {
        return Err(EngineError::State("no bind".to_owned()));
    };
    let options = crate::mount_spec::bind_options(point);
    let mount =
        amphora_volume::mount_bind_with(Path::new(source), options).map_err(EngineError::plain)?;
    if let Some(map) = idmap {
        crate::id_map::apply(mount.as_fd(), map, source)?;
    }
    Ok(mount)
}

fn is_directory(mount: BorrowedFd<'_>) -> bool {
    fstat(mount).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone()
        .map_err(EngineError::io("failed to hold a volume"))
}
