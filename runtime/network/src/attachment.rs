//! What a container asks of networks, and what it has in one, as recorded.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amphora_spec::ContainerId;
use serde::{Deserialize, Serialize};

use crate::address::{Subnet, hardware_address, hardware_text, parse_hardware_address};
use crate::config::{Driver, NetworkConfig};
use crate::error::{NetworkError, Result};
use crate::lease::Lease;
use crate::nft::{self, Element};
use crate::ports::PublishedPort;
use crate::route::Inside;

/// Longest alias: it is a file's name.
const ALIAS_MAX: usize = 255;

/// Beginning of the names of options that say how a link is made.
const ENDPOINT_OPTIONS: &str = "com.docker.network.endpoint.";

/// What a container asks of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkAttachment {
    /// The network's name, or its id as far as it is unique.
    pub network: String,
    /// Further names of the container in this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `container:alias`, for `inspect`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// The network with the highest one has the default route.
    #[serde(skip_serializing_if = "is_zero")]
    pub gw_priority: i64,
    /// Driver options, for `inspect`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_opts: BTreeMap<String, String>,
    /// Name of its link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl NetworkAttachment {
    /// Returns the plain wish to be in a network.
    #[must_use]
    pub fn to(network: impl Into<String>) -> Self {
        Self {
            network: network.into(),
            ..Self::default()
        }
    }

    /// Checks what was asked against the network.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`] in Docker's words.
    pub fn check(&self, config: &NetworkConfig) -> Result<()> {
        let refuse = |why: String| {
            let name = &config.name;
            Err(NetworkError::Invalid(format!(
                "invalid config for network {name}: invalid endpoint settings:\n{why}"
            )))
        };
        if config.is_predefined() && (self.ip.is_some() || self.ip6.is_some()) {
            return refuse(
                "user specified IP address is supported on user defined networks only".to_owned(),
            );
        }
        let asked = [
            (self.ip.map(IpAddr::from), config.subnet),
            (self.ip6.map(IpAddr::from), config.subnet6),
        ];
        for (address, subnet) in asked {
            if let Some(address) = address
                && !subnet.is_some_and(|s| usable(&s, address))
            {
                return refuse(format!(
                    "no configured subnet or ip-range contain the IP address {address}"
                ));
            }
        }
        // Whatever else is given there is for drivers that are not ours, and shown.
        let ours = |key: &&String| key.starts_with(ENDPOINT_OPTIONS);
        if let Some(key) = self.driver_opts.keys().find(ours) {
            return refuse(format!("driver option \"{key}\" is not supported"));
        }
        if let Some(mac) = &self.mac
            && parse_hardware_address(mac).is_none()
        {
            return refuse(format!("invalid MAC address: {mac}"));
        }
        for alias in &self.aliases {
            let bad = alias.is_empty()
                || alias.len() > ALIAS_MAX
                || alias.starts_with('.')
                || alias.bytes().any(|b| b == b'/' || b.is_ascii_control());
            if bad {
                return refuse(format!("invalid network alias \"{alias}\""));
            }
        }
        Ok(())
    }
}

/// Whether a host may have the address.
fn usable(subnet: &Subnet, address: IpAddr) -> bool {
    let ends = [subnet.base(), subnet.last()];
    subnet.contains(address)
        && address != subnet.base()
        && (address.is_ipv6() || !ends.contains(&address))
}

fn eth0() -> String {
    "eth0".to_owned()
}

/// A container's place in a network, as recorded in `containers/<id>/endpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The container.
    pub container: ContainerId,
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// 64 hexadecimal digits; empty in records of version 1.
    #[serde(default)]
    pub id: String,
    /// The network's driver.
    #[serde(default)]
    pub driver: Driver,
    /// Whether nothing leads out of the network.
    #[serde(default, skip_serializing_if = "is_false")]
    pub internal: bool,
    /// IPv4 address.
    pub address: Ipv4Addr,
    /// IPv4 prefix length.
    pub prefix: u8,
    /// IPv4 gateway.
    pub gateway: Ipv4Addr,
    /// IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// IPv6 prefix length.
    pub prefix6: u8,
    /// IPv6 gateway.
    pub gateway6: Option<Ipv6Addr>,
    /// Hardware address of the container's link.
    pub mac: String,
    /// Name of the host's end of the link.
    pub link: String,
    /// Name of the container's end.
    #[serde(default = "eth0")]
    pub interface: String,
    /// Further names of the container in the network, as asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Those, and its host name, as they are on record below the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// The network with the highest one has the default route.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gw_priority: i64,
    /// What its gateway leads to beside the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Subnet>,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
}

/// A container's places, and the ports that lead to none of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// [`RECORD`].
    pub(crate) version: u32,
    pub(crate) endpoints: Vec<Endpoint>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parked: Vec<PublishedPort>,
}

/// The beginning of a record that another version wrote.
#[derive(Debug)]
pub(crate) struct Newer {
    version: u32,
}

impl<'de> Deserialize<'de> for Newer {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let Any { version } = Any::deserialize(from)?;
        if version > RECORD {
            return Ok(Self { version });
        }
        Err(serde::de::Error::custom("not of another version"))
    }
}

/// The file's two forms, and those to come.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Record {
    Newer(Newer),
    Many(Listing),
    One(Box<Endpoint>),
}

impl Record {
    /// What is in it; one of a version that is not known tells the version.
    pub(crate) fn into_listing(self) -> std::result::Result<Listing, u32> {
        match self {
            Self::Many(listing) => Ok(listing),
            Self::One(one) => Ok(Listing {
                version: 1,
                endpoints: vec![*one],
                parked: Vec::new(),
            }),
            Self::Newer(Newer { version }) => Err(version),
        }
    }
}

/// Version of the record.
pub(crate) const RECORD: u32 = 2;

/// Says whose gateway is the default route: of the networks that lead anywhere the one with the
/// highest priority, then one with both families, then the first by name. As Docker.
pub(crate) fn gateway_of(endpoints: &[Endpoint]) -> Option<usize> {
    first_of(endpoints, |e| !e.internal)
}

/// The same for IPv6, which not all networks have.
fn gateway6_of(endpoints: &[Endpoint]) -> Option<usize> {
    first_of(endpoints, |e| !e.internal && e.way_out6().is_some())
}

fn first_of(endpoints: &[Endpoint], leads: impl Fn(&Endpoint) -> bool) -> Option<usize> {
    let rank = |e: &Endpoint| {
        (
            std::cmp::Reverse(e.gw_priority),
            e.gateway6.is_none(),
            e.network.clone(),
        )
    };
    let all = endpoints.iter().enumerate().filter(|(_, e)| leads(e));
    all.min_by_key(|(_, e)| rank(e)).map(|(at, _)| at)
}

/// The default routes of a container, one a family: whose link they go through, and the gateway.
pub(crate) fn ways_out(endpoints: &[Endpoint]) -> impl Iterator<Item = (usize, IpAddr)> {
    let v4 = gateway_of(endpoints).and_then(|at| Some((at, endpoints.get(at)?.gateway.into())));
    let v6 =
        gateway6_of(endpoints).and_then(|at| Some((at, endpoints.get(at)?.way_out6()?.into())));
    v4.into_iter().chain(v6)
}

impl Endpoint {
    /// `id` is drawn anew for every start, and the link's name with it: the link of the last one
    /// may still be on its way out with its namespace.
    pub(crate) fn new(
        container: ContainerId,
        config: &NetworkConfig,
        asked: &NetworkAttachment,
        lease: &Lease,
        address6: Option<Ipv6Addr>,
        id: String,
    ) -> Self {
        let mac = asked.mac.as_deref().and_then(parse_hardware_address);
        let mac = mac.unwrap_or_else(|| hardware_address(lease.address));
        Self {
            container,
            network: config.name.clone(),
            network_id: config.id.clone(),
            driver: config.driver,
            internal: config.internal,
            address: lease.address,
            prefix: config.subnet.map_or(0, |subnet| subnet.prefix()),
            gateway: config.gateway(),
            address6,
            prefix6: config.subnet6.map_or(0, |subnet| subnet.prefix()),
            gateway6: config.gateway6(),
            mac: hardware_text(mac),
            link: format!("am{}", id.get(..11).unwrap_or(&id)),
            id,
            interface: String::new(),
            aliases: asked.aliases.clone(),
            dns_names: asked.aliases.clone(),
            gw_priority: asked.gw_priority,
            reach: config.overlay.as_ref().map(|o| o.subnet),
            ports: Vec::new(),
        }
    }

    /// Whether its ports can be published: packets for it pass through our bridge.
    pub(crate) const fn publishes(&self) -> bool {
        self.driver.bridged() && !self.internal
    }

    /// The entries of this endpoint in the port maps.
    pub(crate) fn elements(&self) -> Vec<Element> {
        let entry = |port: &PublishedPort| {
            if port.host_ip.is_ipv4() {
                nft::port_element(port, self.address.into())
            } else {
                nft::port_element(port, self.address6?.into())
            }
        };
        self.ports.iter().filter_map(entry).collect()
    }

    /// What its namespace is told of it; `gateways`: where default routes lead through it.
    pub(crate) fn inside(&self, index: u32, gateways: Vec<IpAddr>) -> Inside {
        let v6 = self.address6.map(|a| (a, self.prefix6));
        Inside {
            index,
            address: (self.address, self.prefix),
            v6,
            gateways,
            reach: self.reach.map(|subnet| (subnet, self.gateway)),
        }
    }

    /// Its IPv6 gateway, if it has an address to come from.
    fn way_out6(&self) -> Option<Ipv6Addr> {
        self.gateway6.filter(|_| self.address6.is_some())
    }
}

/// Gives links their names, as `eth0`: the lowest number that is free.
pub(crate) fn name_link(prefix: &str, asked: Option<&str>, taken: &[Endpoint]) -> String {
    if let Some(asked) = asked {
        return asked.to_owned();
    }
    let free = |name: &String| !taken.iter().any(|e| e.interface == *name);
    let mut names = (0..=taken.len()).map(|n| format!("{prefix}{n}"));
    names.find(free).unwrap_or_else(eth0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(network: &str, priority: i64, internal: bool) -> Endpoint {
        let config = NetworkConfig {
            name: network.to_owned(),
            subnet: Some("10.0.0.0/24".parse().unwrap()),
            internal,
            ..NetworkConfig::default()
        };
        let asked = NetworkAttachment {
            gw_priority: priority,
            ..NetworkAttachment::to(network)
        };
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 0, 2),
            offset: 2,
            path: std::path::PathBuf::new(),
        };
        let id = ContainerId::from_random([1; 32]);
        Endpoint::new(id, &config, &asked, &lease, None, "ab".repeat(32))
    }

    #[test]
    fn the_default_route_goes_by_priority_and_name() {
        let lead = |all: &[Endpoint]| gateway_of(all).map(|at| all[at].network.clone());
        let (a, b) = (endpoint("a", 0, false), endpoint("b", 0, false));
        assert_eq!(lead(&[b.clone(), a.clone()]).unwrap(), "a");
        assert_eq!(lead(&[a.clone(), endpoint("c", 3, false)]).unwrap(), "c");
        assert_eq!(lead(&[endpoint("c", 3, true), b]).unwrap(), "b");
        assert_eq!(lead(&[endpoint("c", 3, true)]), None);
        let dual = Endpoint {
            gateway6: Some("fd00::1".parse().unwrap()),
            ..endpoint("z", 0, false)
        };
        assert_eq!(lead(&[a, dual]).unwrap(), "z");
    }

    #[test]
    fn each_family_has_a_default_route_of_its_own() {
        let dual = |name: &str, priority, internal| Endpoint {
            address6: Some("fd00::2".parse().unwrap()),
            gateway6: Some("fd00::1".parse().unwrap()),
            ..endpoint(name, priority, internal)
        };
        let ways = |all: &[Endpoint]| {
            let found = ways_out(all).map(|(at, to)| (all[at].network.clone(), to.is_ipv6()));
            let texts = found.map(|(name, v6)| format!("{name}{}", if v6 { '6' } else { '4' }));
            texts.collect::<Vec<_>>().join(" ")
        };
        let (a, z) = (endpoint("a", 1, false), dual("z", 0, false));
        assert_eq!(ways(&[a.clone(), z.clone()]), "a4 z6");
        assert_eq!(ways(&[a.clone(), dual("y", 0, true), z.clone()]), "a4 z6");
        assert_eq!(ways(&[a.clone(), dual("b", 0, false), z.clone()]), "a4 b6");
        assert_eq!(
            ways(&[dual("b", 0, false), dual("c", 2, false), z]),
            "c4 c6"
        );
        assert_eq!(ways(&[a]), "a4");
        assert_eq!(ways(&[dual("y", 0, true)]), "");
    }

    #[test]
    fn records_of_both_versions_are_read() {
        let old = r#"{"container":"ID","network":"bridge","network_id":"x","address":"172.17.0.2","prefix":16,"gateway":"172.17.0.1","address6":null,"prefix6":0,"gateway6":null,"mac":"02:42:ac:11:00:02","link":"am0123456789a","ports":[]}"#;
        let old = old.replace("ID", &"a1".repeat(32));
        let one: Record = serde_json::from_str(&old).unwrap();
        let mut one = one.into_listing().unwrap();
        assert_eq!((one.version, one.endpoints.len()), (1, 1));
        assert_eq!(one.endpoints[0].interface, "eth0");
        one.version = RECORD;
        let written = serde_json::to_string(&one).unwrap();
        let read: Record = serde_json::from_str(&written).unwrap();
        assert_eq!(read.into_listing().unwrap(), one);
        // What a version to come writes is not taken for ours, whatever it looks like.
        let next = written.replacen(":2", ":3", 1);
        for text in [next.as_str(), r#"{"version":3,"other":[]}"#] {
            let read: Record = serde_json::from_str(text).unwrap();
            assert_eq!(read.into_listing().unwrap_err(), 3, "{text}");
        }
        serde_json::from_str::<Record>(r#"{"version":2}"#).unwrap_err();
    }

    #[test]
    fn links_take_the_lowest_free_name() {
        let mut first = endpoint("a", 0, false);
        first.interface = name_link("eth", None, &[]);
        assert_eq!(first.interface, "eth0");
        let mut second = endpoint("b", 0, false);
        second.interface = name_link("eth", None, &[first.clone()]);
        assert_eq!(second.interface, "eth1");
        assert_eq!(name_link("eth", None, &[second]), "eth0");
        assert_eq!(name_link("eth", Some("wan"), &[first]), "wan");
    }
}
