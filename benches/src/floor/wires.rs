//! The floor of a network alone: a namespace, its loopback, a veth pair on a bridge, addresses and
//! default routes of both families.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::kernel::unshare;

use super::netlink::{Addresses, Namespace, Socket};

const BRIDGE: &str = "amphora-wires";

/// The addresses of the `n`th end; the bridge is the first.
fn addresses(n: u32) -> Addresses {
    let [_, _, high, low] = n.to_be_bytes();
    let last = u16::from_be_bytes([high, low]);
    Addresses {
        v4: Ipv4Addr::new(10, 124, high, low),
        v6: Some(Ipv6Addr::new(0xfd00, 0x124, 0, 0, 0, 0, 0, last)),
    }
}

/// A bridge in the namespace of the calling thread, which all that is made is wired to.
#[derive(Debug)]
pub struct Wires {
    route: Socket,
    home: OwnedFd,
    bridge: u32,
    count: u32,
}

fn current() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    open(c"/proc/thread-self/ns/net", flags, Mode::empty())
}

impl Wires {
    /// Makes the bridge.
    ///
    /// # Errors
    /// What the kernel refuses; root is needed.
    pub fn new() -> Result<Self> {
        let route = Socket::open()?;
        let gateway = addresses(1);
        let bridge = route.add_bridge(BRIDGE, gateway.v4).context("the bridge")?;
        if let Some(v6) = gateway.v6 {
            route.add_address6(bridge, v6).context("its IPv6 address")?;
        }
        Ok(Self {
            route,
            home: current()?,
            bridge,
            count: 1,
        })
    }

    /// Makes a namespace that is on the bridge; what is on it goes with its descriptor.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn add(&mut self) -> Result<OwnedFd> {
        self.count = self.count % 60_000 + 1;
        unshare(libc::CLONE_NEWNET).context("unshare")?;
        let made = self.wire();
        move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network))?;
        made
    }

    fn wire(&self) -> Result<OwnedFd> {
        let netns = current()?;
        let inside = Socket::open()?;
        inside.loopback_up().context("loopback")?;
        let [_, _, high, low] = self.count.to_be_bytes();
        let name = format!("amfw{high:02x}{low:02x}");
        self.route
            .add_veth(&name, self.bridge, Namespace::Open(netns.as_fd()))
            .context("the veth pair")?;
        inside
            .configure(addresses(self.count), addresses(1))
            .context("addresses")?;
        Ok(netns)
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        let _gone_with_the_namespace = self.route.remove_link(BRIDGE);
    }
}
