//! Address leases: one symbolic link per address, named by it, pointing at the container's id.
//! Making it is exclusive and tells the owner in the same call, so a lease is never half there.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use amphora_spec::ContainerId;

use crate::address::Subnet;
use crate::error::{Result, file};
use crate::store;

/// The leases of one network.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    hint: PathBuf,
}

/// An address that was leased.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) offset: u32,
    pub(crate) path: PathBuf,
}

/// The first address for a container: after the network's own and the gateway's.
const FIRST: u32 = 2;

impl Leases {
    /// `run` is the network's folder in the run directory.
    pub(crate) fn at(run: &Path) -> Self {
        Self {
            dir: run.join("leases"),
            hint: run.join("next"),
        }
    }

    pub(crate) fn path(&self, address: Ipv4Addr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    /// Leases the next free address; `None` when there is none. Addresses rotate, so that one is
    /// not used again while neighbours or connections remember it.
    pub(crate) fn take(&self, subnet: &Subnet, id: &ContainerId) -> Result<Option<Lease>> {
        store::make_dir(&self.dir)?;
        let count = subnet.leasable();
        let hint: u32 = fs::read_to_string(&self.hint)
            .ok()
            .and_then(|t| t.parse().ok())
            .unwrap_or(0);
        for step in 0..count {
            let place = (u64::from(hint) + u64::from(step)) % u64::from(count);
            let offset = FIRST + u32::try_from(place).unwrap_or(0);
            let IpAddr::V4(address) = subnet.nth(offset) else {
                return Ok(None);
            };
            let path = self.path(address);
            match std::os::unix::fs::symlink(id.hex(), &path) {
                Ok(()) => {
                    // A lost hint costs a few tries, nothing else.
                    let _ = fs::write(&self.hint, (offset - FIRST + 1).to_string());
                    return Ok(Some(Lease {
                        address,
                        offset,
                        path,
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file("create", &path)(error)),
            }
        }
        Ok(None)
    }

    /// Says who holds an address.
    pub(crate) fn holder(&self, address: Ipv4Addr) -> Option<ContainerId> {
        let target = fs::read_link(self.path(address)).ok()?;
        target.to_str()?.parse().ok()
    }

    /// Says whether an address is held, in a time that does not grow with their number.
    pub(crate) fn any(&self) -> Result<bool> {
        let first = self.entries()?.and_then(|mut entries| entries.next());
        first
            .transpose()
            .map(|entry| entry.is_some())
            .map_err(file("read", &self.dir))
    }

    fn entries(&self) -> Result<Option<fs::ReadDir>> {
        match fs::read_dir(&self.dir) {
            Ok(entries) => Ok(Some(entries)),
            // No leases yet, or no network: files of ours lie beside the networks' folders.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(file("read", &self.dir)(error)),
        }
    }

    /// Lists leases: path and holder (`None` for what is no lease of ours).
    pub(crate) fn list(&self) -> Result<Vec<(PathBuf, Option<ContainerId>)>> {
        let mut all = Vec::new();
        for entry in self.entries()?.into_iter().flatten() {
            let path = entry.map_err(file("read", &self.dir))?.path();
            let holder = fs::read_link(&path).ok();
            let holder = holder.and_then(|target| target.to_str()?.parse().ok());
            all.push((path, holder));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ContainerId {
        ContainerId::from_random([n; 32])
    }

    #[test]
    fn addresses_rotate_and_run_out() {
        let dir = std::env::temp_dir().join(format!("amphora-lease-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let leases = Leases::at(&dir);
        let subnet: Subnet = "10.9.0.0/29".parse().unwrap();
        let mut got = Vec::new();
        while let Some(lease) = leases.take(&subnet, &id(1)).unwrap() {
            got.push(lease);
        }
        let texts: Vec<_> = got.iter().map(|l| l.address.to_string()).collect();
        assert_eq!(
            texts,
            ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]
        );
        fs::remove_file(&got[1].path).unwrap();
        assert_eq!(leases.holder(got[1].address), None);
        let again = leases.take(&subnet, &id(2)).unwrap().unwrap();
        assert_eq!(again.address, got[1].address);
        assert_eq!(leases.holder(again.address), Some(id(2)));
        fs::remove_dir_all(&dir).unwrap();
    }
}
