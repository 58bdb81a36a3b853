//! What driver options say, mounted: a file system of its own, or a path of the host.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_sys::mount::{MountAttr, RDONLY, clone_tree, new_fs_told, set_attr};
use rustix::fs::{Mode, OFlags, open};

use crate::error::{Result, VolumeError, small};
use crate::options::{self, Below, Device};
use crate::volumes::{Volume, Volumes};

/// What a volume's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A directory of the engine's.
    Own,
    /// A path of the host.
    Bind,
    /// A file system that is mounted once, for all who use it at a time.
    Shared,
}

impl Volume {
    /// Says what the volume's options make of it.
    ///
    /// # Errors
    /// Options that another version took.
    pub fn content(&self) -> Result<Content> {
        Ok(match self.device()? {
            None => Content::Own,
            Some(device) if device.bind.is_some() => Content::Bind,
            Some(_) => Content::Shared,
        })
    }

    fn device(&self) -> Result<Option<Device>> {
        options::parse(&self.options).map_err(|problem| VolumeError::Options {
            name: self.name.clone(),
            problem,
        })
    }
}

impl Volumes {
    /// Mounts what a volume's options say, detached: a new mount each time.
    ///
    /// # Errors
    /// Not found; or what the kernel answers, with the volume and the device.
    pub fn mount_device(&self, volume: &Volume) -> Result<OwnedFd> {
        let place = self.data_path(&volume.name);
        let Some(mut device) = volume.device()? else {
            return Err(VolumeError::NoDevice(volume.name.clone()));
        };
        let unknown = device.resolve(options::look_up);
        if let Err(source) = unknown {
            let device = device.shown(&place);
            return Err(VolumeError::Address {
                place,
                device,
                source,
            });
        }
        let made = match device.bind {
            Some(below) => bind(&device, below),
            None => file_system(&device),
        };
        made.map_err(|source| VolumeError::Mount {
            device: device.shown(&place),
            place,
            source: small(&source),
        })
    }
}

fn bind(device: &Device, below: Below) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let source = open(&*device.device, flags, Mode::empty())?;
    let all = below == Below::All;
    let mount = clone_tree(source.as_fd(), Path::new(""), all)?;
    let attr_set = device.attr | if device.readonly { RDONLY } else { 0 };
    if attr_set != 0 {
        let attr = MountAttr {
            attr_set,
            ..MountAttr::default()
        };
        set_attr(mount.as_fd(), all, &attr)?;
    }
    Ok(mount)
}

fn file_system(device: &Device) -> io::Result<OwnedFd> {
    let kind = CString::new(device.kind.as_str())?;
    let mut options: Vec<(&str, Option<&str>)> = device
        .data
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()))
        .collect();
    if device.readonly {
        // Of the file system too: its device may be read-only.
        options.push(("ro", None));
    }
    let attr = device.attr | if device.readonly { RDONLY } else { 0 };
    new_fs_told(&kind, Some(&device.device), &options, attr)
}
