//! Brings the host to where a network works: bridge, settings, table. Each check is cheap and
//! each step may be repeated; what is made stays until [`Networks::teardown_all`].

use std::cell::Cell;
use std::fs;

use amphora_sys::netlink::{Socket, index_if_up};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::error::Category;

use crate::address::{Subnet, choose, choose_in, is_free, unique_local};
use crate::config::{DEFAULT_LINK, DEFAULT_NETWORK, FORMAT, MTU_DEFAULT, NetworkConfig};
use crate::error::{NetworkError, Result, kernel, netlink};
use crate::networks::Networks;
use crate::nft;
use crate::route::{self, Survey};
use crate::{firewall, store, sysctl};

/// The sockets an operation works with.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) route: Socket,
    pub(crate) nft: Socket,
    /// Whether our rules had gone from under running containers.
    pub(crate) repaired: Cell<bool>,
}

impl Host {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            route: Socket::open(amphora_sys::netlink::ROUTE).map_err(kernel("open netlink"))?,
            nft: nft::open().map_err(kernel("open nftables"))?,
            repaired: Cell::new(false),
        })
    }
}

const FORWARD4: &str = "net/ipv4/ip_forward";
const FORWARD6: &str = "net/ipv6/conf/all/forwarding";

impl Networks {
    /// Makes the network work on this host and returns what it is, with the index of its bridge.
    pub(crate) fn ensure(&self, name: &str, host: &Host) -> Result<(NetworkConfig, u32)> {
        let stored = self.usable(name)?;
        if let Some(config) = &stored
            && !config.driver.bridged()
        {
            return self.ensure_other(config, host);
        }
        if let Some(config) = &stored
            && (name != DEFAULT_NETWORK || self.settings.agree(config) || self.is_used(name)?)
            && let Some(bridge) = ready(config, &host.route)?
            && nft::is_current(&host.nft).map_err(netlink("look at table \"amphora\""))?
        {
            return Ok((config.clone(), bridge));
        }
        store::make_dir(&self.run_dir(name))?;
        let _lock = store::lock(&self.lock_path())?;
        self.ensure_bridge(name, host)
    }

    /// Whether somebody has an address of a network.
    fn is_used(&self, name: &str) -> Result<bool> {
        self.leases(name).any()
    }

    /// A network's configuration. That of the default network is made again when a power cut
    /// tore it; one that is whole and not understood is another version's.
    pub(crate) fn usable(&self, name: &str) -> Result<Option<NetworkConfig>> {
        match self.stored(name) {
            Err(NetworkError::Config { source, .. })
                if name == DEFAULT_NETWORK
                    && matches!(source.classify(), Category::Eof | Category::Syntax) =>
            {
                Ok(None)
            }
            other => other,
        }
    }

    /// The same under the lock.
    fn ensure_bridge(&self, name: &str, host: &Host) -> Result<(NetworkConfig, u32)> {
        self.step()?;
        let stored = self.usable(name)?;
        let link = stored.as_ref().map_or(DEFAULT_LINK, |c| &c.link);
        let found = route::link(&host.route, link).map_err(netlink(look(link)))?;
        let config = if name == DEFAULT_NETWORK {
            let survey = self.survey(host, found.map_or(0, |l| l.index), name)?;
            self.settle_default(stored, found.is_some(), host, &survey)?
        } else {
            stored.ok_or_else(|| NetworkError::NotFound(name.to_owned()))?
        };
        self.forwarding(&config)?;
        let bridge = self.bring_up(&config, host)?;
        Ok((config, bridge))
    }

    /// Rules, then the bridge: one that is up has its rules. Rules of ours that were flushed come
    /// back with every port.
    pub(crate) fn bring_up(&self, config: &NetworkConfig, host: &Host) -> Result<u32> {
        if nft::is_current(&host.nft).map_err(netlink("look at table \"amphora\""))? {
            self.step()?;
            let step = format!("tell table \"amphora\" of bridge \"{}\"", config.link);
            nft::add_bridge(&host.nft, &config.facts()).map_err(netlink(step))?;
        } else {
            let gone = self.rebuild_table(&host.nft, config)?;
            host.repaired.set(gone || host.repaired.get());
        }
        self.make_bridge(config, host)
    }

    /// Every subnet that somebody uses: the host, but for the link `except`, and other networks.
    pub(crate) fn survey(&self, host: &Host, except: u32, name: &str) -> Result<Survey> {
        let mut survey = route::survey(&host.route, except).map_err(netlink("list routes"))?;
        for other in self.stored_all()?.iter().filter(|c| c.name != name) {
            survey.used.extend(other.subnets());
        }
        Ok(survey)
    }

    fn settle_default(
        &self,
        stored: Option<NetworkConfig>,
        exists: bool,
        host: &Host,
        survey: &Survey,
    ) -> Result<NetworkConfig> {
        let exists = exists && stored.is_some();
        let wanted = |config: &NetworkConfig| self.settings.agree(config);
        let stale = exists && !stored.as_ref().is_some_and(wanted);
        match stored {
            // Who uses it keeps it; the settings hold when nobody does.
            Some(config) if stale && self.is_used(DEFAULT_NETWORK)? => Ok(config),
            Some(config) if stale => self.remake(config, host, survey),
            // An address range that has since been taken by somebody else is given up, unless
            // the bridge stands and uses it.
            Some(config) if exists => Ok(config),
            Some(config) if wanted(&config) && self.may_have(config.subnet, survey) => Ok(config),
            Some(config) => {
                let step = format!("forget bridge \"{}\"", config.link);
                nft::remove_bridge(&host.nft, &config.facts()).map_err(netlink(step))?;
                self.configure_default(config.id, survey)
            }
            None => self.configure_default(random_hex()?, survey),
        }
    }

    /// Whether nobody else uses a subnet, or the settings say that nobody does.
    fn may_have(&self, subnet: Option<Subnet>, survey: &Survey) -> bool {
        subnet.is_some_and(|s| self.settings.bridge == Some(s) || is_free(&s, &survey.used))
    }

    /// Takes a bridge away that stands and is not as the settings say, with the rules made for it.
    fn remake(&self, old: NetworkConfig, host: &Host, survey: &Survey) -> Result<NetworkConfig> {
        self.remove_more_bridges(host, &old)?;
        let step = format!("remove bridge \"{}\"", old.link);
        route::delete_link(&host.route, &old.link).map_err(netlink(step))?;
        let step = format!("forget bridge \"{}\"", old.link);
        nft::remove_bridge(&host.nft, &old.facts()).map_err(netlink(step))?;
        self.configure_default(old.id, survey)
    }

    /// A subnet that nobody uses.
    pub(crate) fn free_subnet(&self, survey: &Survey) -> Result<Subnet> {
        let found = if self.settings.pools.is_empty() {
            choose(&survey.used)
        } else {
            choose_in(&self.settings.pools, &survey.used)
        };
        found.ok_or(NetworkError::PoolsExhausted)
    }

    /// An IPv6 subnet that nobody uses.
    pub(crate) fn free_subnet6() -> Result<Subnet> {
        let mut random = [0; 5];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(kernel("draw random bytes"))?;
        Ok(unique_local(random))
    }

    /// The MTU of a network that does not say one.
    pub(crate) fn mtu(&self, survey: &Survey) -> u32 {
        let uplink = survey.uplink_mtu.unwrap_or(MTU_DEFAULT).min(MTU_DEFAULT);
        self.settings.mtu.unwrap_or(uplink)
    }

    /// Chooses what the default network is, and writes it down.
    pub(crate) fn configure_default(&self, id: String, survey: &Survey) -> Result<NetworkConfig> {
        let ipv6 = self.settings.ipv6 != Some(false) && host_has_ipv6();
        let config = NetworkConfig {
            version: FORMAT,
            id,
            name: DEFAULT_NETWORK.to_owned(),
            link: DEFAULT_LINK.to_owned(),
            subnet: Some(match self.settings.bridge {
                Some(bridge) => bridge,
                None => self.free_subnet(survey)?,
            }),
            subnet6: ipv6.then(Self::free_subnet6).transpose()?,
            mtu: self.mtu(survey),
            created: crate::create::now(),
            ..NetworkConfig::default()
        };
        self.write_config(&config)?;
        Ok(config)
    }

    pub(crate) fn write_config(&self, config: &NetworkConfig) -> Result<()> {
        store::make_dir(&self.data_dir(&config.name))?;
        store::write_json(&self.config_path(&config.name), config)
    }

    fn make_bridge(&self, config: &NetworkConfig, host: &Host) -> Result<u32> {
        self.step()?;
        let step = || format!("create bridge \"{}\"", config.link);
        route::add_bridge(
            &host.route,
            &config.link,
            config.hardware_address(),
            config.mtu,
        )
        .map_err(netlink(step()))?;
        let link = route::link(&host.route, &config.link).map_err(netlink(step()))?;
        let link = link.ok_or_else(|| NetworkError::NotFound(config.link.clone()))?;
        for (key, value) in [
            (format!("net/ipv4/conf/{}/route_localnet", config.link), "1"),
            (format!("net/ipv6/conf/{}/accept_ra", config.link), "0"),
            // Until its link-local address is checked, seconds, a bridge looks for no neighbour
            // on behalf of others; the address comes from our own hardware address.
            (format!("net/ipv6/conf/{}/accept_dad", config.link), "0"),
        ] {
            sysctl::set_if_there(&key, value).map_err(kernel(format!("set {key}")))?;
        }
        self.step()?;
        route::configure_bridge(&host.route, link.index, &config.bridge_addresses())
            .map_err(netlink(step()))?;
        Ok(link.index)
    }

    pub(crate) fn forwarding(&self, config: &NetworkConfig) -> Result<()> {
        self.step()?;
        let changes = self.changes();
        changes.apply(FORWARD4, "1")?;
        if config.subnet6.is_none() || sysctl::get(FORWARD6).as_deref() == Some("1") {
            return Ok(());
        }
        // A router ignores router advertisements, unless told to listen all the same: without
        // this the host would lose its own IPv6 default route.
        let links = fs::read_dir(sysctl::path("net/ipv6/conf"))
            .into_iter()
            .flatten()
            .flatten();
        for link in links.filter_map(|entry| entry.file_name().into_string().ok()) {
            let key = format!("net/ipv6/conf/{link}/accept_ra");
            if !["all", "default", "lo", config.link.as_str()].contains(&link.as_str())
                && sysctl::get(&key).as_deref() == Some("1")
            {
                changes.apply(&key, "2")?;
            }
        }
        changes.apply(FORWARD6, "1")
    }

    /// Makes the table, with every port of every endpoint on record. Says whether it had gone from
    /// under one.
    fn rebuild_table(&self, socket: &Socket, config: &NetworkConfig) -> Result<bool> {
        self.step()?;
        let mut ports = Vec::new();
        let there = nft::is_there(socket).map_err(netlink("look at table \"amphora\""))?;
        let endpoints = self.endpoints()?;
        let gone = !there && !endpoints.is_empty();
        for endpoint in endpoints {
            for element in endpoint.elements() {
                if !ports.contains(&element) {
                    ports.push(element);
                }
            }
        }
        let mut bridges = vec![config.facts()];
        let others = self.stored_all()?.into_iter();
        let others = others.filter(|c| c.driver.bridged() && c.name != config.name);
        for other in others {
            bridges.push(other.facts());
            bridges.extend(self.more_facts(&other)?);
        }
        bridges.extend(self.more_facts(config)?);
        nft::rebuild(socket, &bridges, &ports).map_err(netlink("make table \"amphora\""))?;
        Ok(gone)
    }

    /// Has other engines' filters let our bridge through, as far as they can be asked; returns
    /// what stands in its way all the same, in words for a user.
    pub(crate) fn ensure_accepted(
        &self,
        socket: &Socket,
        config: &NetworkConfig,
    ) -> Result<Vec<String>> {
        let foreign = nft::look(socket).map_err(netlink("look at table \"filter\""))?;
        if !foreign.user_chains.is_empty() {
            let _lock = store::lock(&self.lock_path())?;
            let all = self.stored_all()?;
            let mut links = Vec::new();
            for config in all.iter().filter(|c| c.driver.bridged()) {
                links.push(config.link.clone());
                links.extend(self.more_bridges(config)?);
            }
            let links: Vec<&str> = links.iter().map(String::as_str).collect();
            nft::accept_bridges(socket, &foreign.user_chains, &links)
                .map_err(netlink("accept the bridge in chain \"DOCKER-USER\""))?;
        }
        firewall::nft_hints(socket, &foreign, config)
    }
}

pub(crate) fn look(link: &str) -> String {
    format!("look at link \"{link}\"")
}

/// The bridge's index when nothing is to be done for it.
fn ready(config: &NetworkConfig, socket: &Socket) -> Result<Option<u32>> {
    let look = || kernel(format!("look at link \"{}\"", config.link));
    let Some(index) = index_if_up(socket, &config.link).map_err(look())? else {
        return Ok(None);
    };
    let forwards = sysctl::get(FORWARD4).as_deref() == Some("1")
        && (config.subnet6.is_none() || sysctl::get(FORWARD6).as_deref() != Some("0"));
    Ok(forwards.then_some(index))
}

/// Says whether this network namespace has IPv6, and has it turned on.
pub(crate) fn host_has_ipv6() -> bool {
    ["all", "default"].iter().all(|which| {
        sysctl::get(&format!("net/ipv6/conf/{which}/disable_ipv6")).as_deref() == Some("0")
    })
}

pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(kernel("draw random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
