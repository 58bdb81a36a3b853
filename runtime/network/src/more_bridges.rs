//! More bridges for a network with many containers.
//!
//! What the kernel does for a new port grows with the ports that its bridge has, and no bridge has
//! more than 1,023. So the network's own bridge serves the first [`EACH`] containers; each further
//! one is put by chance on one of as many more as are needed for all. These are ports of it, know no
//! addresses and have no rules but "let pass": it stays one network, one broadcast domain, with one
//! link that routes.
//!
//! ```text
//! am1 am2 … -> amphora0 <-> as1c5f….1 <- am77 am91 …
//!                       <-> as1c5f….2 <- am80 …
//! ```

use std::fs;
use std::path::PathBuf;

use amphora_sys::netlink::index_if_up;

use crate::config::NetworkConfig;
use crate::ensure::Host;
use crate::error::{Result, file, kernel, netlink};
use crate::networks::{Networks, names_in};
use crate::nft::{self, BridgeFacts};
use crate::route::{self, Uplink};
use crate::{store, sysctl};

/// Containers for each bridge, about.
const EACH: u64 = 64;
/// Most bridges beside the network's own.
const MOST: u64 = 256;

/// One of them.
struct Names {
    bridge: String,
    /// The link to it, at the network's own bridge.
    above: String,
    /// The same at this one.
    below: String,
}

impl Names {
    fn new(config: &NetworkConfig, number: &str) -> Self {
        let id = config.id.get(..8).unwrap_or(&config.id);
        let name = |kind| format!("{kind}{id}.{number}");
        Self {
            bridge: name("as"),
            above: name("au"),
            below: name("ad"),
        }
    }

    /// A hardware address that is nobody else's in the network.
    fn hardware_address(&self) -> [u8; 6] {
        let mut address = [0x06_u8, 0, 0, 0, 0, 0];
        for (at, byte) in self.bridge.bytes().enumerate() {
            if let Some(part) = address.get_mut(1 + at % 5) {
                *part = part.rotate_left(3) ^ byte;
            }
        }
        address
    }

    fn facts(&self) -> BridgeFacts {
        BridgeFacts {
            link: self.bridge.clone(),
            subnets: Vec::new(),
            beside: None,
            internal: false,
            icc: true,
            masquerade: false,
            more: true,
        }
    }
}

impl Networks {
    /// The bridge that a new link becomes a port of; `own` is the network's own. The letters of the
    /// link's name are drawn by chance.
    pub(crate) fn bridge_for(
        &self,
        host: &Host,
        config: &NetworkConfig,
        own: u32,
        link: &str,
    ) -> Result<u32> {
        if !config.icc() || config.overlay.is_some() {
            // Which of its ports may reach each other is said for one bridge.
            return Ok(own);
        }
        let leases = self.leases(&config.name).count(EACH)?;
        if leases < EACH {
            return Ok(own);
        }
        let number = (drawn(link) % beside(leases)).to_string();
        let names = Names::new(config, &number);
        let look = || kernel(format!("look at link \"{}\"", names.bridge));
        if let Some(index) = index_if_up(&host.route, &names.bridge).map_err(look())? {
            return Ok(index);
        }
        let _lock = store::lock(&self.lock_path())?;
        if let Some(index) = index_if_up(&host.route, &names.bridge).map_err(look())? {
            return Ok(index);
        }
        let made = self.make_more(host, config, own, &number, &names);
        made.inspect_err(|_| {
            // The failure that led here is the one to tell.
            let _ = self.remove_more(host, config, &number);
        })
    }

    fn make_more(
        &self,
        host: &Host,
        config: &NetworkConfig,
        own: u32,
        number: &str,
        names: &Names,
    ) -> Result<u32> {
        let step = || format!("create bridge \"{}\"", names.bridge);
        self.step()?;
        let marks = self.marks(&config.name);
        store::make_dir(&marks)?;
        let mark = marks.join(number);
        fs::write(&mark, []).map_err(file("write", &mark))?;

        self.step()?;
        nft::add_bridge(&host.nft, &names.facts()).map_err(netlink(step()))?;

        self.step()?;
        let mac = names.hardware_address();
        route::add_bridge(&host.route, &names.bridge, mac, config.mtu).map_err(netlink(step()))?;
        let link = route::link(&host.route, &names.bridge).map_err(netlink(step()))?;
        let index = link.map_or(0, |link| link.index);
        for (key, value) in [
            ("ipv6/conf/{}/addr_gen_mode", "1"),
            ("ipv6/conf/{}/accept_ra", "0"),
            // It is no neighbour itself, and answers for none of this host's addresses.
            ("ipv4/conf/{}/arp_ignore", "8"),
            ("ipv4/conf/{}/route_localnet", "1"),
        ] {
            let key = format!("net/{}", key.replace("{}", &names.bridge));
            sysctl::set_if_there(&key, value).map_err(kernel(format!("set {key}")))?;
        }

        self.step()?;
        let uplink = Uplink {
            above: (&names.above, own),
            below: (&names.below, index),
            mtu: config.mtu,
        };
        route::add_uplink(&host.route, &uplink).map_err(netlink(step()))?;

        self.step()?;
        route::configure_bridge(&host.route, index, &[]).map_err(netlink(step()))?;
        Ok(index)
    }

    fn marks(&self, network: &str) -> PathBuf {
        self.run_dir(network).join("bridges")
    }

    /// Names of a network's further bridges.
    pub(crate) fn more_bridges(&self, config: &NetworkConfig) -> Result<Vec<String>> {
        let facts = self.more_facts(config)?;
        Ok(facts.into_iter().map(|bridge| bridge.link).collect())
    }

    /// What the table must know of them.
    pub(crate) fn more_facts(&self, config: &NetworkConfig) -> Result<Vec<BridgeFacts>> {
        let numbers = names_in(&self.marks(&config.name))?;
        let facts = numbers.iter().map(|n| Names::new(config, n).facts());
        Ok(facts.collect())
    }

    /// Removes a network's further bridges. To be called under the lock, when no container is there.
    pub(crate) fn remove_more_bridges(&self, host: &Host, config: &NetworkConfig) -> Result<()> {
        for number in names_in(&self.marks(&config.name))? {
            self.remove_more(host, config, &number)?;
        }
        Ok(())
    }

    fn remove_more(&self, host: &Host, config: &NetworkConfig, number: &str) -> Result<()> {
        let names = Names::new(config, number);
        let step = || format!("remove bridge \"{}\"", names.bridge);
        for link in [&names.above, &names.bridge] {
            route::delete_link(&host.route, link).map_err(netlink(step()))?;
        }
        nft::remove_bridge(&host.nft, &names.facts()).map_err(netlink(step()))?;
        store::remove(&self.marks(&config.name).join(number))
    }
}

/// How many bridges there are beside the network's own: four times as many at a time, so that those
/// that come later do not stay behind for long.
fn beside(leases: u64) -> u64 {
    let mut bridges = 4;
    while bridges < MOST && bridges * EACH < leases {
        bridges *= 4;
    }
    bridges
}

/// The number in a link's name, which is hexadecimal.
fn drawn(link: &str) -> u64 {
    let digits = link.bytes().filter_map(|b| char::from(b).to_digit(16));
    digits.fold(0, |number, digit| {
        (number << 4 | u64::from(digit)) & 0xffff_ffff
    })
}
