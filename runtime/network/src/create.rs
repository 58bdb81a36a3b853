//! Networks made, found, removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use amphora_spec::ContainerId;

use crate::address::{Subnet, is_free};
use crate::config::{
    DEFAULT_NETWORK, Driver, FORMAT, IpamConfig, NetworkConfig, OPTION_DEFAULT, OPTION_HOST_IP,
    OPTION_ICC, OPTION_MASQUERADE, OPTION_MTU, OPTION_NAME, OPTION_PREFIX, PREDEFINED, parse_flag,
};
use crate::endpoint::Endpoint;
use crate::ensure::{Host, host_has_ipv6, look, random_hex};
use crate::error::{NetworkError, Result, file, netlink};
use crate::networks::Networks;
use crate::route::Survey;
use crate::{nft, route, store};

/// Longest name of a link.
const LINK_NAME_MAX: usize = 15;
/// Longest first part of a link's name in a container: a number follows.
const PREFIX_MAX: usize = 11;
/// Digits of a network's id in its bridge's name.
const LINK_ID_DIGITS: usize = 12;
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_535;
/// Begins the folder of a network that is being removed: no network's name begins so.
const REMOVED: &str = ".removed-";

/// A network that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateNetwork {
    /// Its name.
    pub name: String,
    /// `bridge` when empty.
    pub driver: String,
    /// Nothing leads out of it.
    pub internal: bool,
    /// Whether it has IPv4; the opposite is refused.
    pub ipv4: bool,
    /// Whether it has IPv6; when absent: where the host has it.
    pub ipv6: Option<bool>,
    /// `--attachable`.
    pub attachable: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Addresses; what is absent is chosen.
    pub ipam: Vec<IpamConfig>,
}

/// The time, RFC 3339.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(NetworkError::Invalid(text.into()))
}

impl Networks {
    /// Makes a network, with its bridge up and its rules in place.
    ///
    /// # Errors
    /// [`NetworkError`], with everything undone.
    pub fn create(&self, wanted: &CreateNetwork) -> Result<NetworkConfig> {
        let driver = check(wanted)?;
        let host = Host::open()?;
        store::make_dir(&self.run_dir(""))?;
        let _lock = store::lock(&self.lock_path())?;
        self.sweep_removed()?;
        if self.stored(&wanted.name)?.is_some() {
            return Err(NetworkError::Exists(wanted.name.clone()));
        }
        self.ensure_predefined(&host)?;
        let config = self.plan(wanted, driver, &host)?;
        let made = self.make(&config, &host);
        if made.is_err() {
            // What fails here lies in the way of the next one of that name, which sweeps it.
            let _ = self.unmake(&config, &host);
        }
        made.map(|()| config)
    }

    fn make(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        self.step()?;
        self.write_config(config)?;
        if config.driver.bridged() {
            self.forwarding(config)?;
            self.bring_up(config, host)?;
            self.tell_peers(config, host)?;
        } else {
            self.make_parent(config, host)?;
        }
        self.step()
    }

    /// Decides what a network is: id, link, subnets, MTU.
    fn plan(&self, wanted: &CreateNetwork, driver: Driver, host: &Host) -> Result<NetworkConfig> {
        let survey = self.survey(host, 0, &wanted.name)?;
        let id = random_hex()?;
        let short = id.get(..LINK_ID_DIGITS).unwrap_or_default();
        let link = match wanted.options.get(OPTION_NAME) {
            Some(name) => name.clone(),
            None => format!("am-{short}"),
        };
        // Theirs may not be there now, and are made when they are needed.
        let theirs = |c: &NetworkConfig| c.link == link || c.tunnel().as_ref() == Some(&link);
        if driver.bridged()
            && let Some(other) = self.stored_all()?.into_iter().find(theirs)
        {
            return Err(NetworkError::SameLink {
                link,
                network: other.name,
            });
        }
        if driver.bridged()
            && route::link(&host.route, &link)
                .map_err(netlink(look(&link)))?
                .is_some()
        {
            return Err(NetworkError::LinkExists(link));
        }
        let mtu = match wanted.options.get(OPTION_MTU) {
            Some(text) => text.parse().unwrap_or(0),
            None => self.mtu(&survey),
        };
        let mut config = NetworkConfig {
            version: FORMAT,
            link,
            mtu,
            driver,
            created: now(),
            internal: wanted.internal,
            attachable: wanted.attachable,
            labels: wanted.labels.clone(),
            options: wanted.options.clone(),
            name: wanted.name.clone(),
            id,
            ..NetworkConfig::default()
        };
        self.plan_addresses(wanted, &survey, &mut config)?;
        crate::overlay::plan(&mut config)?;
        if !driver.bridged() {
            config.link = self.own_parent(&config, host)?;
        }
        Ok(config)
    }

    fn plan_addresses(
        &self,
        wanted: &CreateNetwork,
        survey: &Survey,
        config: &mut NetworkConfig,
    ) -> Result<()> {
        let others: Vec<Subnet> = self
            .stored_all()?
            .iter()
            .filter(|c| c.name != wanted.name)
            .flat_map(NetworkConfig::subnets)
            .collect();
        let family = |v4: bool| {
            let of = move |i: &&IpamConfig| family_of(i).is_none_or(|f| f == v4);
            wanted.ipam.iter().find(of).cloned().unwrap_or_default()
        };
        let (mut v4, mut v6) = (family(true), family(false));
        if family_of(&v6).is_none() {
            v6 = IpamConfig::default();
        }
        let ipv6 = wanted
            .ipv6
            .unwrap_or(v6.subnet.is_some() || config.driver == Driver::Bridge && host_has_ipv6());
        let subnet = match v4.subnet {
            Some(subnet) if !is_free(&subnet, &others) => return Err(NetworkError::PoolOverlaps),
            Some(subnet) => subnet,
            None => self.free_subnet(survey)?,
        };
        v4.subnet = Some(subnet);
        config.subnet = v4.subnet;
        if ipv6 {
            let subnet = match v6.subnet {
                Some(subnet) if !is_free(&subnet, &others) => {
                    return Err(NetworkError::PoolOverlaps);
                }
                Some(subnet) => subnet,
                None => Self::free_subnet6()?,
            };
            v6.subnet = Some(subnet);
            config.subnet6 = v6.subnet;
        }
        for given in [&mut v4, &mut v6] {
            // As Docker: without a word the gateway is the first address that may be given away.
            if let (None, Some(range), Some(subnet)) = (given.gateway, given.ip_range, given.subnet)
            {
                let first = u32::from(range.base() == subnet.base());
                given.gateway = Some(range.nth(first));
            }
        }
        let said =
            |i: &IpamConfig| i.ip_range.is_some() || i.gateway.is_some() || !i.aux.is_empty();
        config.ipam = [v4, v6].into_iter().filter(said).collect();
        Ok(())
    }

    /// Removes a network that nobody is in. `name_of` tells the names of containers.
    ///
    /// # Errors
    /// [`NetworkError`]: unknown, predefined, in use, or a step that failed; the network then
    /// stays.
    pub fn remove(
        &self,
        text: &str,
        name_of: &dyn Fn(&ContainerId) -> String,
    ) -> Result<NetworkConfig> {
        let config = self.find(text)?;
        if config.is_predefined() {
            return Err(NetworkError::Predefined(config.name));
        }
        let host = Host::open()?;
        let _lock = store::lock(&self.lock_path())?;
        self.refuse_used(&config, name_of)?;
        self.step()?;
        // From here on nobody finds it. Whoever found it before has leased an address by now, or
        // looks for the configuration once more after that.
        let dir = self.data_dir(&config.name);
        let aside = self.data_dir(&format!("{REMOVED}{}", config.name));
        fs::rename(&dir, &aside).map_err(file("rename", &dir))?;
        let gone = self
            .refuse_used(&config, name_of)
            .and_then(|()| self.unmake(&config, &host));
        if gone.is_err() {
            fs::rename(&aside, &dir).map_err(file("rename", &aside))?;
        }
        gone.map(|()| config)
    }

    fn refuse_used(
        &self,
        config: &NetworkConfig,
        name_of: &dyn Fn(&ContainerId) -> String,
    ) -> Result<()> {
        let endpoints: Vec<String> = self
            .attached(config)?
            .iter()
            .map(|e| {
                let id = e.id.get(..LINK_ID_DIGITS).unwrap_or(&e.id);
                format!("name:{:?} id:{id:?}", name_of(&e.container))
            })
            .collect();
        if endpoints.is_empty() && !self.leases(&config.name).any()? {
            return Ok(());
        }
        Err(NetworkError::ActiveEndpoints {
            name: config.name.clone(),
            endpoints: endpoints.join(", "),
        })
    }

    /// Takes away what a network has: link, rules, folders. Done before is fine.
    fn unmake(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        self.step()?;
        self.remove_more_bridges(host, config)?;
        self.delete_links(config, host)?;
        self.step()?;
        if config.driver.bridged() {
            let step = format!("forget bridge \"{}\"", config.link);
            nft::remove_bridge(&host.nft, &config.facts()).map_err(netlink(step))?;
        }
        self.step()?;
        remove_dir(&self.run_dir(&config.name))?;
        remove_dir(&self.data_dir(&config.name))?;
        remove_dir(&self.data_dir(&format!("{REMOVED}{}", config.name)))
    }

    /// Goes on with removals that were cut off, and takes up folders of networks that were never
    /// written down. The caller holds the lock.
    fn sweep_removed(&self) -> Result<()> {
        let dir = self.data_dir("");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| n.starts_with(REMOVED)) {
                let path = entry.path().join("config.json");
                if let Some(config) = store::read_json::<NetworkConfig>(&path)? {
                    self.unmake(&config, &Host::open()?)?;
                }
                remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Finds a network by name, id, or the beginning of an id.
    ///
    /// # Errors
    /// [`NetworkError::NotFound`], [`NetworkError::Ambiguous`], a record that cannot be read.
    pub fn find(&self, text: &str) -> Result<NetworkConfig> {
        let name = if text == "default" {
            DEFAULT_NETWORK
        } else {
            text
        };
        if is_name(name) {
            if PREDEFINED.contains(&name) && self.stored(name)?.is_none() {
                self.make_predefined()?;
            }
            if let Some(config) = self.stored(name)? {
                return Ok(config);
            }
        }
        let missing = || NetworkError::NotFound(text.to_owned());
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let all = self.list()?;
        let mut found = all.into_iter().filter(|c| c.id.starts_with(text));
        let first = found.next().ok_or_else(missing)?;
        match found.next() {
            None => Ok(first),
            Some(_) => Err(NetworkError::Ambiguous(text.to_owned())),
        }
    }

    /// Lists all networks by name, the predefined ones among them.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<NetworkConfig>> {
        let all = self.stored_all()?;
        let there = |name: &&str| all.iter().any(|c| c.name == **name);
        if PREDEFINED.iter().all(there) {
            return Ok(all);
        }
        self.make_predefined()?;
        self.stored_all()
    }

    fn make_predefined(&self) -> Result<()> {
        store::make_dir(&self.run_dir(""))?;
        let _lock = store::lock(&self.lock_path())?;
        self.ensure_predefined(&Host::open()?)
    }

    /// Writes the predefined networks down; what is there stays. The caller holds the lock.
    fn ensure_predefined(&self, host: &Host) -> Result<()> {
        for (name, driver) in [("host", Driver::Host), ("none", Driver::Null)] {
            if self.stored(name)?.is_none() {
                self.write_config(&NetworkConfig {
                    version: FORMAT,
                    id: random_hex()?,
                    name: name.to_owned(),
                    driver,
                    created: now(),
                    ..NetworkConfig::default()
                })?;
            }
        }
        if self.stored(DEFAULT_NETWORK)?.is_none() {
            let survey = self.survey(host, 0, DEFAULT_NETWORK)?;
            self.configure_default(random_hex()?, &survey)?;
        }
        Ok(())
    }

    /// Lists the places that containers have in a network.
    ///
    /// # Errors
    /// When the run directory cannot be read.
    pub fn attached(&self, config: &NetworkConfig) -> Result<Vec<Endpoint>> {
        let mut all = self.endpoints()?;
        all.retain(|e| e.network_id == config.id);
        Ok(all)
    }

    /// Removes the networks that nobody is in and that `keep` does not keep. Returns those that
    /// went; of the others that could not be removed, why.
    ///
    /// # Errors
    /// When the networks cannot be listed.
    pub fn prune(
        &self,
        keep: &dyn Fn(&NetworkConfig) -> bool,
    ) -> Result<(Vec<NetworkConfig>, Vec<NetworkError>)> {
        let (mut gone, mut errors) = (Vec::new(), Vec::new());
        for config in self.list()? {
            if config.is_predefined() || keep(&config) {
                continue;
            }
            match self.remove(&config.name, &ContainerId::hex) {
                Ok(config) => gone.push(config),
                Err(NetworkError::ActiveEndpoints { .. } | NetworkError::NotFound(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        Ok((gone, errors))
    }
}

fn remove_dir(path: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether a text can be a network's name, and a folder's.
pub(crate) fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.len() <= 255
        && text.bytes().all(inner)
        && text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Checks everything that can be checked without looking at the host.
fn check(wanted: &CreateNetwork) -> Result<Driver> {
    let name = wanted.name.as_str();
    if PREDEFINED.contains(&name) {
        let text = format!("operation is not permitted on predefined {name} network ");
        return Err(NetworkError::Forbidden(text));
    }
    if !is_name(name) {
        return invalid(format!(
            "invalid network name \"{name}\": only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        ));
    }
    let driver = match wanted.driver.as_str() {
        "" | "bridge" | "default" => Driver::Bridge,
        "macvlan" => Driver::Macvlan,
        "overlay" => Driver::Overlay,
        one @ ("host" | "null") => {
            let text = format!("only one instance of \"{one}\" network is allowed");
            return Err(NetworkError::Forbidden(text));
        }
        other => {
            let text = format!("network driver \"{other}\" is not supported");
            return Err(NetworkError::Unsupported(text));
        }
    };
    if !wanted.ipv4 {
        let text = "networks without IPv4 (--ipv4=false) are not supported".to_owned();
        return Err(NetworkError::Unsupported(text));
    }
    check_options(wanted, driver)?;
    match driver {
        Driver::Macvlan => crate::macvlan::check(wanted)?,
        Driver::Overlay => crate::overlay::check(wanted)?,
        _ => {}
    }
    for ipam in &wanted.ipam {
        check_ipam(ipam)?;
    }
    for v4 in [true, false] {
        let of = |i: &&IpamConfig| family_of(i) == Some(v4);
        if wanted.ipam.iter().filter(of).count() > 1 {
            return invalid(format!(
                "{} driver doesn't support multiple subnets of a family",
                driver.as_str()
            ));
        }
        if !v4 && wanted.ipv6 == Some(false) && wanted.ipam.iter().any(|i| of(&i)) {
            return invalid("invalid network config: an IPv6 subnet needs IPv6 (--ipv6)");
        }
    }
    Ok(driver)
}

/// Whether addresses are IPv4; `None` when none is said.
fn family_of(ipam: &IpamConfig) -> Option<bool> {
    let subnet = ipam.subnet.or(ipam.ip_range).map(|s| s.base());
    let any = subnet.or(ipam.gateway);
    any.or_else(|| ipam.aux.values().next().copied())
        .map(|a| a.is_ipv4())
}

fn check_ipam(ipam: &IpamConfig) -> Result<()> {
    const BEFORE: &str = "invalid network config:\n";
    let Some(subnet) = ipam.subnet else {
        if family_of(ipam).is_some() {
            return invalid(format!("{BEFORE}addresses are given without their subnet"));
        }
        return Ok(());
    };
    let kind = if subnet.base().is_ipv4() { 4 } else { 6 };
    if let Some(range) = ipam.ip_range
        && !subnet.holds(&range)
    {
        let why = if range.base().is_ipv4() == (kind == 4) {
            format!("parent subnet {subnet} doesn't contain ip-range")
        } else {
            format!("parent subnet is an IPv{kind} block")
        };
        return invalid(format!("{BEFORE}invalid ip-range {range}: {why}"));
    }
    let inside = |what: String, address: IpAddr| {
        if address.is_ipv4() != (kind == 4) {
            return invalid(format!(
                "{BEFORE}invalid {what}: parent subnet is an IPv{kind} block"
            ));
        }
        if subnet.contains(address) {
            return Ok(());
        }
        invalid(format!(
            "{BEFORE}invalid {what}: parent subnet {subnet} doesn't contain this address"
        ))
    };
    if let Some(gateway) = ipam.gateway {
        inside(format!("gateway {gateway}"), gateway)?;
    }
    for (name, address) in &ipam.aux {
        inside(format!("auxiliary address {name}"), *address)?;
    }
    Ok(())
}

/// Checks the driver's options; one that is not known is refused by its name.
fn check_options(wanted: &CreateNetwork, driver: Driver) -> Result<()> {
    for (key, value) in &wanted.options {
        let bad = || invalid(format!("invalid value \"{value}\" of option \"{key}\""));
        match (key.as_str(), driver) {
            (OPTION_MTU, _) => {
                let mtu = value.parse().unwrap_or(0);
                if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
                    return bad();
                }
            }
            (OPTION_PREFIX, _) => {
                if !is_link_name(value, PREFIX_MAX) {
                    return bad();
                }
            }
            (OPTION_ICC | OPTION_MASQUERADE, Driver::Bridge) => {
                if parse_flag(value).is_none() {
                    return bad();
                }
            }
            // Compose and others pass it on; only the default bridge is the default bridge.
            (OPTION_DEFAULT, Driver::Bridge) if parse_flag(value) == Some(false) => {}
            (OPTION_HOST_IP, Driver::Bridge) => {
                if value.parse::<std::net::Ipv4Addr>().is_err() {
                    return bad();
                }
            }
            (OPTION_NAME, Driver::Bridge) => {
                if !is_link_name(value, LINK_NAME_MAX) {
                    return bad();
                }
            }
            (
                "com.docker.network.bridge.gateway_mode_ipv4"
                | "com.docker.network.bridge.gateway_mode_ipv6",
                Driver::Bridge,
            ) if value == "nat" => {}
            (other, Driver::Macvlan) if crate::macvlan::knows(other, value) => {}
            (other, Driver::Overlay) if crate::overlay::knows(other, value) => {}
            _ => {
                return Err(NetworkError::Unsupported(format!(
                    "option \"{key}={value}\" of network driver \"{}\" is not supported",
                    driver.as_str()
                )));
            }
        }
    }
    Ok(())
}

fn is_link_name(text: &str, most: usize) -> bool {
    let fits = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    !text.is_empty() && text.len() <= most && text.bytes().all(fits) && !text.starts_with('.')
}
