//! Address leases: one symbolic link per address, named by it, pointing at the container's id.
//! Making it is exclusive and tells the owner in the same call, so a lease is never half there.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use amphora_spec::ContainerId;

use crate::config::NetworkConfig;
use crate::error::{Result, file};
use crate::store;

/// The leases of one network.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    hint: PathBuf,
}

/// An IPv4 address that was leased.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) offset: u32,
    pub(crate) path: PathBuf,
}

/// Most IPv6 addresses that are tried when the one beside the IPv4 address is taken.
const TRIES6: u32 = 65_536;

impl Leases {
    /// `run` is the network's folder in the run directory.
    pub(crate) fn at(run: &Path) -> Self {
        Self {
            dir: run.join("leases"),
            hint: run.join("next"),
        }
    }

    pub(crate) fn path(&self, address: impl Into<IpAddr>) -> PathBuf {
        self.dir.join(address.into().to_string())
    }

    /// Leases the next free address; `None` when there is none. Addresses rotate, so that one is
    /// not used again while neighbours or connections remember it.
    pub(crate) fn take(&self, config: &NetworkConfig, id: &ContainerId) -> Result<Option<Lease>> {
        let Some(subnet) = config.subnet else {
            return Ok(None);
        };
        store::make_dir(&self.dir)?;
        let (range, taken) = config.room(subnet);
        let (first, count) = subnet.places(&range);
        // The usual network leases from its third address on: its gateway has the second one.
        let usual = range == subnet && taken.as_slice() == [subnet.nth(1)];
        let (first, count) = if usual {
            (first + 1, count.saturating_sub(1))
        } else {
            (first, count)
        };
        let hint: u32 = fs::read_to_string(&self.hint)
            .ok()
            .and_then(|t| t.parse().ok())
            .unwrap_or(0);
        for step in 0..count {
            let place = (u64::from(hint) + u64::from(step)) % u64::from(count);
            let place = u32::try_from(place).unwrap_or(0);
            let offset = first + place;
            let IpAddr::V4(address) = subnet.nth(offset) else {
                return Ok(None);
            };
            if !usual && taken.contains(&address.into()) {
                continue;
            }
            let path = self.path(address);
            if claim(&path, id)? {
                // A lost hint costs a few tries, nothing else.
                let _ = fs::write(&self.hint, (place + 1).to_string());
                return Ok(Some(Lease {
                    address,
                    offset,
                    path,
                }));
            }
        }
        Ok(None)
    }

    /// Leases one address; `false` when somebody has it.
    pub(crate) fn take_this(&self, address: IpAddr, id: &ContainerId) -> Result<bool> {
        store::make_dir(&self.dir)?;
        claim(&self.path(address), id)
    }

    /// Leases an IPv6 address, the one at `offset` at best; `None` when there is none.
    pub(crate) fn take6(
        &self,
        config: &NetworkConfig,
        offset: u32,
        id: &ContainerId,
    ) -> Result<Option<Ipv6Addr>> {
        let Some(subnet) = config.subnet6 else {
            return Ok(None);
        };
        let (range, taken) = config.room(subnet);
        let start = if range == subnet { offset } else { 0 };
        for step in 0..TRIES6 {
            let address = range.nth(start.wrapping_add(step));
            let IpAddr::V6(v6) = address else {
                return Ok(None);
            };
            if !taken.contains(&address)
                && address != subnet.base()
                && claim(&self.path(address), id)?
            {
                return Ok(Some(v6));
            }
        }
        Ok(None)
    }

    /// Says who holds an address.
    pub(crate) fn holder(&self, address: impl Into<IpAddr>) -> Option<ContainerId> {
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

    /// Counts the addresses that are held; `few`: less than that many may be told as none. On tmpfs
    /// their number stands in the directory's size.
    pub(crate) fn count(&self, few: u64) -> Result<u64> {
        /// What each entry adds to the size, and what an empty directory has.
        const ENTRY: u64 = 20;
        const TMPFS: u64 = 0x0102_1994;
        let size = fs::metadata(&self.dir).map_or(0, |found| found.len());
        let entries = (size / ENTRY).saturating_sub(2);
        if entries < few {
            return Ok(0);
        }
        let kind = rustix::fs::statfs(&self.dir).map_or(0, |found| found.f_type as u64);
        if kind == TMPFS {
            return Ok(entries);
        }
        let entries = self.entries()?.map_or(0, Iterator::count);
        Ok(u64::try_from(entries).unwrap_or(0))
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

/// Makes the link; `false` when it is there.
fn claim(path: &Path, id: &ContainerId) -> Result<bool> {
    match std::os::unix::fs::symlink(id.hex(), path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(file("create", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IpamConfig;

    fn id(n: u8) -> ContainerId {
        ContainerId::from_random([n; 32])
    }

    fn all(leases: &Leases, config: &NetworkConfig) -> Vec<String> {
        let next = || leases.take(config, &id(1)).unwrap();
        std::iter::from_fn(next)
            .map(|lease| lease.address.to_string())
            .collect()
    }

    fn in_dir(name: &str, test: impl FnOnce(&Leases)) {
        let dir = std::env::temp_dir().join(format!("amphora-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        test(&Leases::at(&dir));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn addresses_rotate_and_run_out() {
        let config = NetworkConfig {
            subnet: Some("10.9.0.0/29".parse().unwrap()),
            ..NetworkConfig::default()
        };
        in_dir("lease", |leases| {
            assert_eq!(
                all(leases, &config),
                ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]
            );
            let address = Ipv4Addr::new(10, 9, 0, 3);
            fs::remove_file(leases.path(address)).unwrap();
            assert_eq!(leases.holder(address), None);
            let again = leases.take(&config, &id(2)).unwrap().unwrap();
            assert_eq!(again.address, address);
            assert_eq!(leases.holder(again.address), Some(id(2)));
        });
    }

    #[test]
    fn ranges_gateways_and_others_addresses_are_kept_to() {
        let mut given = IpamConfig {
            subnet: Some("10.9.0.0/24".parse().unwrap()),
            ip_range: Some("10.9.0.248/29".parse().unwrap()),
            gateway: Some("10.9.0.254".parse().unwrap()),
            ..IpamConfig::default()
        };
        given
            .aux
            .insert("router".to_owned(), "10.9.0.250".parse().unwrap());
        let config = NetworkConfig {
            subnet: given.subnet,
            ipam: vec![given],
            ..NetworkConfig::default()
        };
        in_dir("lease-range", |leases| {
            assert_eq!(
                all(leases, &config),
                [
                    "10.9.0.248",
                    "10.9.0.249",
                    "10.9.0.251",
                    "10.9.0.252",
                    "10.9.0.253"
                ]
            );
        });
    }

    #[test]
    fn addresses_of_ipv6_go_with_those_of_ipv4_where_they_can() {
        let config = NetworkConfig {
            subnet6: Some("fd00:5::/64".parse().unwrap()),
            ..NetworkConfig::default()
        };
        in_dir("lease6", |leases| {
            fs::create_dir_all(&leases.dir).unwrap();
            let take = |offset| leases.take6(&config, offset, &id(1)).unwrap().unwrap();
            assert_eq!(take(7).to_string(), "fd00:5::7");
            assert_eq!(take(7).to_string(), "fd00:5::8");
            assert_eq!(take(1).to_string(), "fd00:5::2");
        });
    }
}
