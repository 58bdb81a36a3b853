//! Networks over several hosts: who answers for the containers there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::records::{read, read_json};

/// Most hosts of a network.
const HOSTS_MAX: usize = 256;
/// The option that names the file of hosts.
const PEERS: &str = "peers";
/// Digits of a network's id in the name of its link.
const LINK_DIGITS: usize = 12;

/// A network over several hosts, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Its name.
    pub network: String,
    /// The link to the other hosts.
    pub link: String,
    /// This host's own address in it.
    pub own: Ipv4Addr,
    /// The file of hosts, which a user may change at any time.
    pub file: PathBuf,
    /// The same as the kernel was last told of it.
    pub applied: PathBuf,
}

/// Another host of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its own address in the network.
    pub(crate) gateway: Ipv4Addr,
    block: Block<u32>,
    block6: Option<Block<u128>>,
}

/// Addresses with a common beginning: the first one, and the bits that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block<T> {
    base: T,
    hosts: T,
}

impl Peer {
    /// Whether a container there may have this address.
    pub(crate) fn may_have(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let Block { base, hosts } = self.block;
                let bits = v4.to_bits();
                bits & !hosts == base && bits != base && v4 != self.gateway
            }
            IpAddr::V6(v6) => self.block6.is_some_and(|Block { base, hosts }| {
                let offset = v6.to_bits() & hosts;
                v6.to_bits() & !hosts == base && offset > 1
            }),
        }
    }
}

/// What is on record of a network.
#[derive(Deserialize)]
struct Network {
    id: String,
    subnet: Option<String>,
    #[serde(default)]
    options: HashMap<String, String>,
}

/// Reads what is known of a network.
pub(crate) fn of(data: &Path, run: &Path, network: &str) -> Option<Overlay> {
    let config = data.join("networks").join(network).join("config.json");
    let config: Network = read_json(&config)?;
    let block = block(config.subnet.as_deref()?)?;
    Some(Overlay {
        network: network.to_owned(),
        link: format!("vx-{}", config.id.get(..LINK_DIGITS)?),
        own: Ipv4Addr::from_bits(block.base | 1),
        file: config.options.get(PEERS)?.into(),
        applied: run.join("networks").join(network).join(PEERS),
    })
}

impl Overlay {
    /// The other hosts, as the kernel was last told of them.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let text = read(&self.applied).and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.unwrap_or_default();
        let all = text.lines().filter_map(peer);
        all.filter(|p| p.gateway != self.own)
            .take(HOSTS_MAX)
            .collect()
    }
}

/// A line of the file of hosts, which was found right before it was told to the kernel.
pub(crate) fn peer(line: &str) -> Option<Peer> {
    let line = line.split('#').next()?;
    let mut words = line.split_whitespace().skip(1);
    let block = block(words.next()?)?;
    Some(Peer {
        gateway: Ipv4Addr::from_bits(block.base | 1),
        block,
        block6: words.next().and_then(block_of_6),
    })
}

fn block(text: &str) -> Option<Block<u32>> {
    let (base, prefix) = text.split_once('/')?;
    let base = base.parse::<Ipv4Addr>().ok()?.to_bits();
    let prefix = prefix.parse::<u32>().ok().filter(|p| *p <= 30)?;
    let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
    Some(Block {
        base: base & !hosts,
        hosts,
    })
}

fn block_of_6(text: &str) -> Option<Block<u128>> {
    let (base, prefix) = text.split_once('/')?;
    let base = base.parse::<Ipv6Addr>().ok()?.to_bits();
    let prefix = prefix.parse::<u32>().ok().filter(|p| *p <= 126)?;
    let hosts = u128::MAX.checked_shr(prefix).unwrap_or(0);
    Some(Block {
        base: base & !hosts,
        hosts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_a_container_there_may_have_are_its_own() {
        let peer = peer("192.0.2.2\t10.40.2.0/24 fd00:2::/64 # two").unwrap();
        assert_eq!(peer.gateway, Ipv4Addr::new(10, 40, 2, 1));
        for (address, may) in [
            ("10.40.2.2", true),
            ("10.40.2.1", false),
            ("10.40.2.0", false),
            ("10.40.3.2", false),
            ("192.0.2.2", false),
            ("fd00:2::5", true),
            ("fd00:2::1", false),
            ("fd00:2:0:1::5", false),
        ] {
            assert_eq!(peer.may_have(address.parse().unwrap()), may, "{address}");
        }
        assert_eq!(super::peer("# nothing"), None);
        assert_eq!(super::peer("192.0.2.2 10.40.2.0/31"), None);
    }
}
