//! Brings the host to where a network works: bridge, settings, table. Each check is cheap and
//! each step may be repeated; what is made stays until [`Networks::teardown_all`].

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

/// The sockets an operation works with, and the bridge it found.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) route: Socket,
    pub(crate) nft: Socket,
    pub(crate) bridge: u32,
    /// Whether our rules had gone from under running containers.
    pub(crate) repaired: bool,
}

const FORWARD4: &str = "net/ipv4/ip_forward";
const FORWARD6: &str = "net/ipv6/conf/all/forwarding";

impl Networks {
    /// Makes the network work on this host and returns what it is.
    pub(crate) fn ensure(&self, name: &str) -> Result<(NetworkConfig, Host)> {
        let route = Socket::open(amphora_sys::netlink::ROUTE).map_err(kernel("open netlink"))?;
        let nft = nft::open().map_err(kernel("open nftables"))?;
        let stored = self.usable(name)?;
        if let Some(config) = &stored
            && (self.settings.agree(config) || self.any_lease()?)
            && let Some(bridge) = ready(config, &route)?
            && nft::is_current(&nft).map_err(netlink("look at table \"amphora\""))?
        {
            let repaired = false;
            let host = Host {
                route,
                nft,
                bridge,
                repaired,
            };
            return Ok((config.clone(), host));
        }
        store::make_dir(&self.run_dir(name))?;
        let _lock = store::lock(&self.lock_path())?;
        let mut host = Host {
            route,
            nft,
            bridge: 0,
            repaired: false,
        };
        let config = self.ensure_bridge(name, &mut host)?;
        if !nft::is_current(&host.nft).map_err(netlink("look at table \"amphora\""))? {
            host.repaired = self.rebuild_table(&host.nft, &config)?;
        }
        Ok((config, host))
    }

    /// A network's configuration. That of the default network is made again when a power cut
    /// tore it; one that is whole and not understood is another version's.
    fn usable(&self, name: &str) -> Result<Option<NetworkConfig>> {
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

    fn ensure_bridge(&self, name: &str, host: &mut Host) -> Result<NetworkConfig> {
        self.step()?;
        let survey = {
            let except = route::link(&host.route, DEFAULT_LINK)
                .map_err(netlink(format!("look at link \"{DEFAULT_LINK}\"")))?;
            let index = except.map_or(0, |link| link.index);
            route::survey(&host.route, index).map_err(netlink("list routes"))?
        };
        let stored = self.usable(name)?;
        let exists = match &stored {
            Some(config) => route::link(&host.route, &config.link)
                .map_err(netlink(format!("look at link \"{}\"", config.link)))?
                .is_some(),
            None => false,
        };
        let wanted = |config: &NetworkConfig| self.settings.agree(config);
        let stale = exists && !stored.as_ref().is_some_and(wanted);
        let config = match stored {
            // Who uses it keeps it; the settings hold when nobody does.
            Some(config) if stale && self.any_lease()? => config,
            Some(config) if stale => self.remake(config, host, &survey)?,
            // An address range that has since been taken by somebody else is given up, unless
            // the bridge stands and uses it.
            Some(config) if exists => config,
            Some(config) if wanted(&config) && self.may_have(&config.subnet, &survey) => config,
            Some(config) => self.configure(name, config.id, &survey)?,
            None if name == DEFAULT_NETWORK => self.configure(name, random_hex()?, &survey)?,
            None => return Err(NetworkError::NotFound(name.to_owned())),
        };
        self.make_bridge(&config, host)?;
        self.forwarding(&config)?;
        Ok(config)
    }

    /// Whether nobody else uses a subnet, or the settings say that nobody does.
    fn may_have(&self, subnet: &Subnet, survey: &Survey) -> bool {
        self.settings.bridge == Some(*subnet) || is_free(subnet, &survey.used)
    }

    /// Takes a bridge away that stands and is not as the settings say, with the rules made for it.
    fn remake(&self, old: NetworkConfig, host: &Host, survey: &Survey) -> Result<NetworkConfig> {
        let step = format!("remove bridge \"{}\"", old.link);
        route::delete_link(&host.route, &old.link).map_err(netlink(step))?;
        nft::drop_table(&host.nft).map_err(netlink("remove table \"amphora\""))?;
        self.configure(&old.name, old.id, survey)
    }

    /// The subnet of a network that is to be made.
    fn subnet(&self, survey: &Survey) -> Result<Subnet> {
        let settings = &self.settings;
        let found = match settings.bridge {
            Some(bridge) => Some(bridge),
            None if settings.pools.is_empty() => choose(&survey.used),
            None => choose_in(&settings.pools, &survey.used),
        };
        found.ok_or(NetworkError::PoolsExhausted)
    }

    fn configure(&self, name: &str, id: String, survey: &Survey) -> Result<NetworkConfig> {
        let mut random = [0; 5];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(kernel("draw random bytes"))?;
        let config = NetworkConfig {
            version: FORMAT,
            id,
            name: name.to_owned(),
            link: DEFAULT_LINK.to_owned(),
            subnet: self.subnet(survey)?,
            subnet6: (self.settings.ipv6 != Some(false) && host_has_ipv6())
                .then(|| unique_local(random)),
            mtu: self
                .settings
                .mtu
                .unwrap_or_else(|| survey.uplink_mtu.unwrap_or(MTU_DEFAULT).min(MTU_DEFAULT)),
        };
        store::make_dir(&self.data_dir(name))?;
        store::write_json(&self.config_path(name), &config)?;
        Ok(config)
    }

    fn make_bridge(&self, config: &NetworkConfig, host: &mut Host) -> Result<()> {
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
        host.bridge = link.index;
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
            .map_err(netlink(step()))
    }

    fn forwarding(&self, config: &NetworkConfig) -> Result<()> {
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
        nft::rebuild(socket, &[config.facts()], &ports)
            .map_err(netlink("make table \"amphora\""))?;
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
            nft::accept_bridges(socket, &foreign.user_chains, &[&config.link])
                .map_err(netlink("accept the bridge in chain \"DOCKER-USER\""))?;
        }
        firewall::nft_hints(socket, &foreign, config)
    }
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
