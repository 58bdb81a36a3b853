//! What a network is, as stored in `networks/<name>/config.json`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::{Subnet, hardware_address};
use crate::nft::BridgeFacts;
use crate::overlay::Overlay;

/// The network that containers join when nothing else is said.
pub const DEFAULT_NETWORK: &str = "bridge";
/// The networks that are always there.
pub const PREDEFINED: [&str; 3] = [DEFAULT_NETWORK, "host", "none"];
/// The link of the default network.
pub(crate) const DEFAULT_LINK: &str = "amphora0";
/// Version of the file's format; the first one is read as well.
pub(crate) const FORMAT: u32 = 2;
pub(crate) const MTU_DEFAULT: u32 = 1500;

pub(crate) const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
pub(crate) const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
pub(crate) const OPTION_HOST_IP: &str = "com.docker.network.bridge.host_binding_ipv4";
pub(crate) const OPTION_NAME: &str = "com.docker.network.bridge.name";
pub(crate) const OPTION_DEFAULT: &str = "com.docker.network.bridge.default_bridge";
pub(crate) const OPTION_MTU: &str = "com.docker.network.driver.mtu";
pub(crate) const OPTION_PREFIX: &str = "com.docker.network.container_iface_prefix";

/// What the default network is made with, in place of what amphora would choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Its IPv4 subnet, whoever else uses it.
    pub bridge: Option<Subnet>,
    /// Where IPv4 subnets are chosen from: pools, and the prefix length of a subnet in them.
    pub pools: Vec<(Subnet, u8)>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Whether it has IPv6, where the host has it.
    pub ipv6: Option<bool>,
}

impl NetworkSettings {
    /// Says whether a network is as it would be made with these settings.
    pub(crate) fn agree(&self, config: &NetworkConfig) -> bool {
        let Some(subnet) = config.subnet else {
            return false;
        };
        let pooled =
            |(pool, size): &(Subnet, u8)| pool.overlaps(&subnet) && subnet.prefix() == *size;
        let agrees = match self.bridge {
            Some(bridge) => bridge == subnet,
            None => self.pools.is_empty() || self.pools.iter().any(pooled),
        };
        agrees
            && self.mtu.is_none_or(|mtu| mtu == config.mtu)
            && (self.ipv6 != Some(false) || config.subnet6.is_none())
    }
}

/// How a network's containers are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge on this host.
    #[default]
    Bridge,
    /// Links of their own on top of a link of the host.
    Macvlan,
    /// A bridge on each of several hosts, joined by VXLAN.
    Overlay,
    /// The host's own stack.
    Host,
    /// Nothing.
    Null,
}

impl Driver {
    /// Returns Docker's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Overlay => "overlay",
            Self::Host => "host",
            Self::Null => "null",
        }
    }

    /// Whether containers of such a network are ports of a bridge of ours.
    pub(crate) const fn bridged(self) -> bool {
        matches!(self, Self::Bridge | Self::Overlay)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::Bridge
    }
}

/// One family's addresses of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    /// The subnet; chosen when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// Where containers' addresses are taken from; the whole subnet when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Subnet>,
    /// The gateway; the first address when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Addresses that are somebody else's, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub aux: BTreeMap<String, IpAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Version of this format.
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The bridge's link name, or that of the parent; empty where there is none.
    pub link: String,
    /// IPv4 subnet; `None` for `host` and `none`.
    pub subnet: Option<Subnet>,
    /// IPv6 subnet, where the network has one.
    pub subnet6: Option<Subnet>,
    /// MTU of the bridge and of every link in it.
    pub mtu: u32,
    /// Driver.
    #[serde(default, skip_serializing_if = "Driver::is_default")]
    pub driver: Driver,
    /// When it was made, RFC 3339; empty when that is not known.
    #[serde(default)]
    pub created: String,
    /// Whether nothing leads out of it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub internal: bool,
    /// `--attachable`, kept for `inspect`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attachable: bool,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Driver options, as given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Where its other hosts are; `subnet` is this host's block then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// Addresses as given, where they are not the usual ones: IPv4 first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipam: Vec<IpamConfig>,
}

impl NetworkConfig {
    /// Says whether it is one of the networks that are always there.
    #[must_use]
    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// Everything that its containers may have for addresses, on this host and others.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        let whole = self.overlay.as_ref().map(|o| o.subnet).or(self.subnet);
        whole.into_iter().chain(self.subnet6)
    }

    /// Returns the addresses of each family, whole: subnet, range, gateway, others'.
    #[must_use]
    pub fn ipam(&self) -> Vec<IpamConfig> {
        let whole = |subnet: Subnet, gateway: Option<IpAddr>| {
            let given = self.given(subnet);
            IpamConfig {
                subnet: Some(subnet),
                ip_range: given.and_then(|g| g.ip_range),
                gateway,
                aux: given.map(|g| g.aux.clone()).unwrap_or_default(),
            }
        };
        let v4 = self.subnet.map(|s| whole(s, Some(self.gateway().into())));
        let v6 = self
            .subnet6
            .map(|s| whole(s, self.gateway6().map(IpAddr::from)));
        v4.into_iter().chain(v6).collect()
    }

    fn given(&self, subnet: Subnet) -> Option<&IpamConfig> {
        self.ipam.iter().find(|g| g.subnet == Some(subnet))
    }

    /// Returns the gateway of a subnet: the one that was given, or the first address.
    fn gateway_of(&self, subnet: Subnet) -> IpAddr {
        let given = self.given(subnet).and_then(|g| g.gateway);
        given.unwrap_or_else(|| subnet.nth(1))
    }

    /// Returns the IPv4 address of the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        match self.subnet.map(|s| self.gateway_of(s)) {
            Some(IpAddr::V4(v4)) => v4,
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// Returns the IPv6 address of the bridge.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        match self.gateway_of(self.subnet6?) {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }
    }

    /// Returns the range that addresses of a subnet are taken from, and those that are not free.
    pub(crate) fn room(&self, subnet: Subnet) -> (Subnet, Vec<IpAddr>) {
        let given = self.given(subnet);
        let range = given.and_then(|g| g.ip_range).unwrap_or(subnet);
        let mut taken = vec![self.gateway_of(subnet)];
        taken.extend(given.into_iter().flat_map(|g| g.aux.values().copied()));
        (range, taken)
    }

    /// Returns the IPv6 address that goes with a lease.
    pub(crate) fn address6(&self, offset: u32) -> Option<Ipv6Addr> {
        match self.subnet6?.nth(offset) {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }
    }

    pub(crate) fn bridge_addresses(&self) -> Vec<(IpAddr, u8)> {
        let v4 = self.subnet.map(|s| (self.gateway().into(), s.prefix()));
        let v6 = self
            .subnet6
            .and_then(|s| Some((self.gateway6()?.into(), s.prefix())));
        v4.into_iter().chain(v6).collect()
    }

    pub(crate) fn hardware_address(&self) -> [u8; 6] {
        hardware_address(self.gateway())
    }

    fn flag(&self, option: &str, default: bool) -> bool {
        let value = self.options.get(option).map(String::as_str);
        value.and_then(parse_flag).unwrap_or(default)
    }

    /// Whether its containers may talk to each other.
    pub(crate) fn icc(&self) -> bool {
        self.flag(OPTION_ICC, true)
    }

    /// First letters of the names of its links in containers.
    pub(crate) fn prefix(&self) -> &str {
        self.options.get(OPTION_PREFIX).map_or("eth", |p| p)
    }

    /// Host address that ports are published on when none is said.
    pub(crate) fn host_ip(&self) -> Option<IpAddr> {
        let ip: IpAddr = self.options.get(OPTION_HOST_IP)?.parse().ok()?;
        (!ip.is_unspecified()).then_some(ip)
    }

    pub(crate) fn facts(&self) -> BridgeFacts {
        BridgeFacts {
            link: self.link.clone(),
            subnets: self.subnet.into_iter().chain(self.subnet6).collect(),
            beside: self.tunnel(),
            internal: self.internal,
            icc: self.icc(),
            masquerade: !self.internal && self.flag(OPTION_MASQUERADE, true),
            more: false,
        }
    }
}

/// Reads what Go's `strconv.ParseBool` takes.
pub(crate) fn parse_flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
