//! Networks over several hosts: a bridge on each with a block of addresses of its own, and between
//! them VXLAN that learns nothing. Where the blocks are stands in a file that is the same on all
//! hosts; it is read again, when it has changed, by whatever attaches a container.
//!
//! ```text
//! # host's address  its block
//! 192.0.2.1         10.40.1.0/24
//! 192.0.2.2         10.40.2.0/24
//! ```

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

use crate::address::Subnet;
use crate::config::{Driver, NetworkConfig};
use crate::create::CreateNetwork;
use crate::ensure::{Host, look};
use crate::error::{NetworkError, Result, file, netlink};
use crate::networks::Networks;
use crate::route::{self, Beyond};
use crate::store;

const PEERS: &str = "peers";
const VNI: &str = "vni";
const PORT: &str = "port";
/// The port that IANA gives.
const PORT_USUAL: u16 = 4789;
const VNI_MAX: u32 = (1 << 24) - 1;
/// Most hosts of a network.
const HOSTS_MAX: usize = 256;
/// What VXLAN puts before a frame.
const HEADERS: u32 = 50;

/// What a network knows of its other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The addresses of all blocks.
    pub subnet: Subnet,
    /// Number of the network on the wire.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// This host's address.
    pub local: Ipv4Addr,
}

/// One host of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    host: Ipv4Addr,
    block: Subnet,
}

impl Peer {
    /// What the kernel is told of it. The hardware address of a host's end follows from its block.
    fn beyond(&self, index: u32) -> Option<Beyond> {
        let IpAddr::V4(via) = self.block.base() else {
            return None;
        };
        Some(Beyond {
            index,
            block: self.block,
            via,
            mac: hardware_address(via),
            host: self.host,
        })
    }
}

fn hardware_address(base: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = base.octets();
    [0x02, 0x43, a, b, c, d]
}

/// Whether the driver knows an option with this value.
pub(crate) fn knows(option: &str, value: &str) -> bool {
    match option {
        PEERS => Path::new(value).is_absolute(),
        VNI => value.parse().is_ok_and(|n| (1..=VNI_MAX).contains(&n)),
        PORT => value.parse::<u16>().is_ok_and(|n| n > 0),
        _ => false,
    }
}

/// Checks what the driver needs beside its options.
pub(crate) fn check(wanted: &CreateNetwork) -> Result<()> {
    let subnets = wanted.ipam.iter().filter_map(|i| i.subnet);
    let v4 = subnets.clone().any(|s| s.base().is_ipv4());
    let needs = |what: &str| {
        let text = format!("a network of driver \"overlay\" {what}");
        Err(NetworkError::Unsupported(text))
    };
    if !wanted.options.contains_key(PEERS) {
        return needs("without -o peers= is not supported: the file of its hosts");
    }
    if !v4 {
        return needs("without --subnet is not supported: it is the same on all hosts");
    }
    if wanted.ipv6 == Some(true) || subnets.clone().any(|s| s.base().is_ipv6()) {
        return needs("with IPv6 is not supported");
    }
    let said = |i: &crate::config::IpamConfig| {
        i.ip_range.is_some() || i.gateway.is_some() || !i.aux.is_empty()
    };
    if wanted.ipam.iter().any(said) {
        return needs(
            "takes its range and gateway from the block of each host: neither can be set",
        );
    }
    Ok(())
}

/// The same number on every host: made of what is the same.
fn number(name: &str, subnet: Subnet) -> u32 {
    let text = format!("{name}/{subnet}");
    let sum = text.bytes().fold(0x811c_9dc5_u32, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (sum % VNI_MAX) + 1
}

/// Reads the file of hosts.
fn parse(text: &str, whole: Subnet, path: &str) -> Result<Vec<Peer>> {
    let mut peers: Vec<Peer> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(host) = words.next() else { continue };
        let bad = |why: &str| {
            let text = format!("line {} of \"{path}\" {why}", at + 1);
            NetworkError::Invalid(text)
        };
        let form = || bad("is not an IPv4 address of a host and its block");
        let peer = Peer {
            host: host.parse().map_err(|_| form())?,
            block: words.next().and_then(|w| w.parse().ok()).ok_or_else(form)?,
        };
        if words.next().is_some() {
            return Err(form());
        }
        if !whole.holds(&peer.block) || peer.block.prefix() > 30 {
            return Err(bad("has a block that is no part of the network's subnet"));
        }
        if peers.len() == HOSTS_MAX {
            return Err(bad("is one host too many: a network has 256 at most"));
        }
        if peers
            .iter()
            .any(|p| p.block.overlaps(&peer.block) || p.host == peer.host)
        {
            return Err(bad("has a host or a block that stands in another line too"));
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn peers_path(config: &NetworkConfig) -> &str {
    config.options.get(PEERS).map_or("", |p| p)
}

/// The bytes of a file of hosts; what is no file is not waited for.
fn bytes(path: &str) -> Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let failed = || file("read", Path::new(path));
    let opened = open(path, flags, Mode::empty()).map_err(|e| failed()(e.into()))?;
    let mut opened = File::from(opened);
    if !opened.metadata().map_err(failed())?.is_file() {
        let text = format!("\"{path}\" is no regular file");
        return Err(NetworkError::Invalid(text));
    }
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).map_err(failed())?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>, path: &str) -> Result<String> {
    let bad = |_| NetworkError::Invalid(format!("\"{path}\" is not text in UTF-8"));
    String::from_utf8(bytes).map_err(bad)
}

fn read(path: &str) -> Result<String> {
    text(bytes(path)?, path)
}

/// Decides what a network is on this host: its block becomes its subnet.
pub(crate) fn plan(config: &mut NetworkConfig) -> Result<()> {
    let Some(whole) = config.subnet.filter(|_| config.driver == Driver::Overlay) else {
        return Ok(());
    };
    let path = peers_path(config).to_owned();
    let peers = parse(&read(&path)?, whole, &path)?;
    // Only an address of this host can be bound.
    let here = |p: &&Peer| UdpSocket::bind((p.host, 0)).is_ok();
    let own = peers.iter().find(here).ok_or_else(|| {
        NetworkError::Invalid(format!("no line of \"{path}\" has an address of this host"))
    })?;
    let option = |key: &str| config.options.get(key).and_then(|v| v.parse().ok());
    config.overlay = Some(Overlay {
        subnet: whole,
        vni: option(VNI).unwrap_or_else(|| number(&config.name, whole)),
        port: option(PORT).map_or(PORT_USUAL, |n| u16::try_from(n).unwrap_or(PORT_USUAL)),
        local: own.host,
    });
    config.subnet = Some(own.block);
    config.subnet6 = None;
    if !config.options.contains_key(crate::config::OPTION_MTU) {
        config.mtu = config.mtu.saturating_sub(HEADERS);
    }
    Ok(())
}

impl NetworkConfig {
    /// The link to the other hosts.
    pub(crate) fn tunnel(&self) -> Option<String> {
        let id = self.id.get(..12).unwrap_or(&self.id);
        self.overlay.as_ref().map(|_| format!("vx-{id}"))
    }
}

impl Networks {
    /// Has the kernel know where the other hosts are, as the file says it now.
    pub(crate) fn ensure_peers(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        let Some(name) = config.tunnel() else {
            return Ok(());
        };
        let there = route::link(&host.route, &name).map_err(netlink(look(&name)))?;
        let applied = std::fs::read(self.run_dir(&config.name).join("peers"));
        let bytes = bytes(peers_path(config))?;
        // What was found wrong was told then; what the kernel knows stays.
        let refused = std::fs::read(self.refused(config));
        if there.is_some() && [applied, refused].iter().flatten().any(|t| *t == bytes) {
            return Ok(());
        }
        store::make_dir(&self.run_dir(""))?;
        let _lock = store::lock(&self.lock_path())?;
        self.tell_peers(config, host)
    }

    fn refused(&self, config: &NetworkConfig) -> PathBuf {
        self.run_dir(&config.name).join("peers.refused")
    }

    /// Has the kernel know what has changed in a network's file of hosts, now. Returns the network,
    /// and what failed: the kernel keeps what it knows then. A file that is wrong is noted, and nobody
    /// is told twice; anything else may pass.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn follow_peers(&self, name: &str) -> Result<(NetworkConfig, Result<()>)> {
        let config = self.find(name)?;
        let _lock = store::lock(&self.lock_path())?;
        let bytes = bytes(peers_path(&config));
        let told = Host::open().and_then(|host| self.tell_peers(&config, &host));
        let refused = self.refused(&config);
        let noted = match (&told, bytes) {
            (Err(NetworkError::Invalid(_)), Ok(bytes)) => store::replace(&refused, &bytes),
            _ => store::remove(&refused),
        };
        Ok((config, told.and(noted)))
    }

    /// The same; the caller holds the lock.
    pub(crate) fn tell_peers(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        let (Some(overlay), Some(name)) = (&config.overlay, config.tunnel()) else {
            return Ok(());
        };
        let path = peers_path(config);
        let text = read(path)?;
        let applied = self.run_dir(&config.name).join("peers");
        let before = std::fs::read_to_string(&applied).unwrap_or_default();
        let find = || route::link(&host.route, &name).map_err(netlink(look(&name)));
        let there = find()?;
        if there.is_some() && before == text {
            return Ok(());
        }
        let now = parse(&text, overlay.subnet, path)?;
        let own = |p: &Peer| p.host == overlay.local && Some(p.block) == config.subnet;
        if let (false, Some(block)) = (now.iter().any(own), config.subnet) {
            let text = format!(
                "no line of \"{path}\" says that {} has {block}, as it had when the network was made",
                overlay.local
            );
            return Err(NetworkError::Invalid(text));
        }
        self.step()?;
        let link = if let Some(link) = there {
            link
        } else {
            let own = config.subnet.map(|s| s.base());
            let Some(IpAddr::V4(own)) = own else {
                return Ok(());
            };
            let step = format!("create VXLAN link \"{name}\"");
            let made = route::add_vxlan(
                &host.route,
                &name,
                (overlay.vni, overlay.port, overlay.local),
                hardware_address(own),
                config.mtu,
            );
            made.map_err(netlink(step))?;
            find()?.ok_or_else(|| NetworkError::NotFound(name.clone()))?
        };
        let last = parse(&before, overlay.subnet, path).unwrap_or_default();
        let elsewhere = |p: &&Peer| p.host != overlay.local;
        for gone in last.iter().filter(|p| !now.contains(p)).filter(elsewhere) {
            if let Some(beyond) = gone.beyond(link.index) {
                let step = format!("forget host {}", gone.host);
                route::forget_beyond(&host.route, &beyond).map_err(netlink(step))?;
            }
        }
        self.step()?;
        for peer in now.iter().filter(elsewhere) {
            if let Some(beyond) = peer.beyond(link.index) {
                let step = format!("reach host {}", peer.host);
                route::add_beyond(&host.route, &beyond).map_err(netlink(step))?;
            }
        }
        store::make_dir(&self.run_dir(&config.name))?;
        store::replace(&applied, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_hosts_are_understood_and_what_is_wrong_is_told() {
        let whole: Subnet = "10.40.0.0/16".parse().unwrap();
        let good = "# hosts\n192.0.2.1 10.40.1.0/24 # one\n\n192.0.2.2\t10.40.2.0/24\n";
        let peers = parse(good, whole, "/p").unwrap();
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[1].host, Ipv4Addr::new(192, 0, 2, 2));
        for (text, why) in [
            ("192.0.2.1", "line 1 of \"/p\" is not an IPv4 address"),
            ("x 10.40.1.0/24", "is not an IPv4 address"),
            ("192.0.2.1 10.41.1.0/24", "no part of the network's subnet"),
            (
                "192.0.2.1 10.40.1.0/24\n192.0.2.2 10.40.1.128/25",
                "line 2 of \"/p\" has a host or a block that stands in another line",
            ),
        ] {
            let told = parse(text, whole, "/p").unwrap_err().to_string();
            assert!(told.contains(why), "{text}: {told}");
        }
        assert_ne!(number("a", whole), number("b", whole));
    }
}
