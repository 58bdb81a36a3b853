//! What a network is, as stored in `networks/<name>/config.json`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::{Subnet, hardware_address};
use crate::nft::BridgeFacts;

/// The network that containers join when nothing else is said.
pub const DEFAULT_NETWORK: &str = "bridge";
/// The link of the default network.
pub(crate) const DEFAULT_LINK: &str = "amphora0";
/// Version of the file's format.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const MTU_DEFAULT: u32 = 1500;

/// What the default network is made with, in place of what amphora would choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Its IPv4 subnet, whoever else uses it.
    pub bridge: Option<Subnet>,
    /// Where its IPv4 subnet is chosen from: pools, and the prefix length of a subnet in them.
    pub pools: Vec<(Subnet, u8)>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Whether it has IPv6, where the host has it.
    pub ipv6: Option<bool>,
}

impl NetworkSettings {
    /// Says whether a network is as it would be made with these settings.
    pub(crate) fn agree(&self, config: &NetworkConfig) -> bool {
        let pooled = |(pool, size): &(Subnet, u8)| {
            pool.overlaps(&config.subnet) && config.subnet.prefix() == *size
        };
        let subnet = match self.bridge {
            Some(bridge) => bridge == config.subnet,
            None => self.pools.is_empty() || self.pools.iter().any(pooled),
        };
        subnet
            && self.mtu.is_none_or(|mtu| mtu == config.mtu)
            && (self.ipv6 != Some(false) || config.subnet6.is_none())
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Version of this format.
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The bridge's link name.
    pub link: String,
    /// IPv4 subnet; the bridge has its first address.
    pub subnet: Subnet,
    /// IPv6 subnet, where this host has IPv6; likewise.
    pub subnet6: Option<Subnet>,
    /// MTU of the bridge and of every link in it.
    pub mtu: u32,
}

impl NetworkConfig {
    /// Returns the IPv4 address of the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        match self.subnet.nth(1) {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// Returns the IPv6 address of the bridge.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.address6(1)
    }

    /// Returns the IPv6 address that goes with a lease.
    pub(crate) fn address6(&self, offset: u32) -> Option<Ipv6Addr> {
        match self.subnet6?.nth(offset) {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }
    }

    pub(crate) fn bridge_addresses(&self) -> Vec<(IpAddr, u8)> {
        let v6 = self
            .subnet6
            .and_then(|s| Some((self.gateway6()?.into(), s.prefix())));
        std::iter::once((self.gateway().into(), self.subnet.prefix()))
            .chain(v6)
            .collect()
    }

    pub(crate) fn hardware_address(&self) -> [u8; 6] {
        hardware_address(self.gateway())
    }

    pub(crate) fn facts(&self) -> BridgeFacts {
        let subnets = std::iter::once(self.subnet).chain(self.subnet6).collect();
        BridgeFacts {
            link: self.link.clone(),
            subnets,
        }
    }
}
