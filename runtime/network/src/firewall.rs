//! What other firewalls do to our traffic and only their owner can put right, in words for a user.

use amphora_sys::netlink::{Socket, index_if_up};
use amphora_sys::xtables::{self, Filter};

use crate::config::{DEFAULT_NETWORK, NetworkConfig};
use crate::ensure::Host;
use crate::error::{Result, kernel, netlink};
use crate::networks::Networks;
use crate::nft::{self, Dropping, Foreign};

/// What is told when rules were made again that nobody but their maker should remove.
pub(crate) const REPAIRED: &str = "table \"amphora\" was gone, and with it the published ports and the way out of running containers: both are back";

impl Networks {
    /// Makes our rules again if somebody removed them from under running containers, and says so.
    /// Costs one look at the table, and nothing where no container has an address.
    ///
    /// # Errors
    /// When the table cannot be looked at or made.
    pub fn repair(&self) -> Result<Option<&'static str>> {
        if !self.any_lease()? {
            return Ok(None);
        }
        let socket = nft::open().map_err(kernel("open nftables"))?;
        if nft::is_there(&socket).map_err(netlink("look at table \"amphora\""))? {
            return Ok(None);
        }
        // The containers of another network namespace have their rules there. The table is made
        // of all networks, whichever of them is asked for.
        let Some(config) = self.standing(&socket)?.into_iter().next() else {
            return Ok(None);
        };
        let host = Host::open()?;
        self.ensure(&config.name, &host)?;
        Ok(host.repaired.get().then_some(REPAIRED))
    }

    /// The networks whose bridges are up in this network namespace.
    fn standing(&self, socket: &Socket) -> Result<Vec<NetworkConfig>> {
        let mut standing = Vec::new();
        for config in self.stored_all()? {
            let step = || format!("look at link \"{}\"", config.link);
            if config.driver.bridged()
                && index_if_up(socket, &config.link)
                    .map_err(kernel(step()))?
                    .is_some()
            {
                standing.push(config);
            }
        }
        Ok(standing)
    }

    /// Says what on this host would keep the packets of containers from passing: in the networks
    /// that stand and lead out, or in the default one where none does. Nothing is said of a chain
    /// in which a rule names the network's bridge.
    ///
    /// # Errors
    /// When the host's filter tables or a network's file cannot be looked at.
    pub fn hints(&self) -> Result<Vec<String>> {
        let socket = nft::open().map_err(kernel("open nftables"))?;
        let mut networks = self.standing(&socket)?;
        networks.retain(|config| !config.internal);
        if networks.is_empty() {
            networks.extend(self.stored(DEFAULT_NETWORK)?);
        }
        if networks.is_empty() {
            return Ok(Vec::new());
        }
        let foreign = nft::look(&socket).map_err(netlink("look at table \"filter\""))?;
        let mut hints = Vec::new();
        for config in &networks {
            hints.extend(nft_hints(&socket, &foreign, config)?);
            let ipv6 = config.subnet6.is_some();
            hints.extend(hook_hints(&socket, &config.link, ipv6));
            hints.extend(legacy_hints(&config.link, ipv6));
        }
        Ok(hints)
    }
}

/// Says which filter tables of nftables drop what a network forwards.
pub(crate) fn nft_hints(
    socket: &Socket,
    foreign: &Foreign,
    config: &NetworkConfig,
) -> Result<Vec<String>> {
    let mut hints = Vec::new();
    let ours = |chain: &&Dropping| chain.family != nft::Family::Ip6 || config.subnet6.is_some();
    for chain in foreign.dropping.iter().filter(ours) {
        let (table, command) = match chain.family {
            nft::Family::Ip => ("ip filter", "iptables -I FORWARD"),
            nft::Family::Ip6 => ("ip6 filter", "ip6tables -I FORWARD"),
            _ => ("inet filter", "nft insert rule inet filter"),
        };
        let look = || netlink(format!("look at table \"{table}\""));
        if nft::names_link(socket, *chain, &config.link).map_err(look())? {
            continue;
        }
        let link = &config.link;
        if let Some(user) = ufw_chain(chain.family)
            && let Some(named) =
                nft::chain_names_link(socket, chain.family, user, link).map_err(look())?
        {
            if !named {
                hints.push(ufw_hint(table, link));
            }
            continue;
        }
        let remedy = if chain.family == nft::Family::Inet {
            let command = format!("{command} {}", chain.chain);
            [("iifname", link), ("oifname", link)]
                .map(|(way, link)| format!("\"{command} {way} {link} accept\""))
        } else {
            ["-i", "-o"].map(|way| format!("\"{command} {way} {link} -j ACCEPT\""))
        };
        hints.push(hint(&format!("table \"{table}\""), &remedy));
    }
    Ok(hints)
}

/// What was seen of other firewalls while a container was attached.
#[derive(Debug, Default)]
pub struct Firewall {
    pub(crate) hints: Vec<String>,
    /// The network's bridge, and whether it has IPv6.
    pub(crate) bridge: Option<(String, bool)>,
}

impl Firewall {
    /// Says what keeps the container's packets from passing, in words for a user. Looks at the
    /// forward hooks of all tables, and at those of iptables-legacy, only now: best when the container is on its way.
    #[must_use]
    pub fn hints(self) -> Vec<String> {
        let mut hints = self.hints;
        if let Some((link, ipv6)) = self.bridge {
            if let Ok(socket) = nft::open() {
                hints.extend(hook_hints(&socket, &link, ipv6));
            }
            hints.extend(legacy_hints(&link, ipv6));
        }
        hints
    }
}

/// Where a user of ufw has packets forwarded.
const fn ufw_chain(family: nft::Family) -> Option<&'static str> {
    match family {
        nft::Family::Ip => Some("ufw-user-forward"),
        nft::Family::Ip6 => Some("ufw6-user-forward"),
        _ => None,
    }
}

fn ufw_hint(table: &str, link: &str) -> String {
    let remedy = ["in", "out"].map(|way| format!("\"ufw route allow {way} on {link}\""));
    hint(&format!("ufw (table \"{table}\")"), &remedy)
}

/// Says which chains in the forward hook, of whatever table, drop what the bridge `link` forwards.
/// One that cannot be looked at is passed over.
fn hook_hints(socket: &Socket, link: &str, ipv6: bool) -> Vec<String> {
    let mut hints = Vec::new();
    let closed = nft::closed(socket).unwrap_or_default();
    if closed.is_empty() {
        return hints;
    }
    let docker = nft::look(socket).map(|foreign| foreign.user_chains);
    let docker = docker.unwrap_or_default();
    for at in closed {
        // In Docker's tables our bridges are accepted before anything else.
        let accepted = at.table == "filter" && docker.contains(&at.family);
        if accepted || (at.family == nft::Family::Ip6 && !ipv6) {
            continue;
        }
        if nft::names(socket, &at, link).unwrap_or(true) {
            continue;
        }
        let family = match at.family {
            nft::Family::Ip => "ip",
            nft::Family::Ip6 => "ip6",
            _ => "inet",
        };
        if at.table == "firewalld" {
            hints.extend(firewalld_hint(socket, &at, link));
            continue;
        }
        let table = format!("{family} {}", at.table);
        let program = match family {
            "ip" => "iptables",
            _ => "ip6tables",
        };
        if (at.table.as_str(), at.chain.as_str()) == ("filter", "FORWARD") && family != "inet" {
            if let Some(user) = ufw_chain(at.family)
                && let Ok(Some(_)) = nft::chain_names_link(socket, at.family, user, link)
            {
                hints.push(ufw_hint(&table, link));
                continue;
            }
            let remedy =
                ["-i", "-o"].map(|way| format!("\"{program} -I FORWARD {way} {link} -j ACCEPT\""));
            hints.push(hint(&format!("table \"{table}\""), &remedy));
            continue;
        }
        let remedy = ["iifname", "oifname"].map(|way| {
            format!(
                "\"nft insert rule {table} {} {way} {link} accept\"",
                at.chain
            )
        });
        hints.push(hint(&format!("table \"{table}\""), &remedy));
    }
    hints
}

/// What firewalld does to a bridge that is in none of its zones: published ports pass, and the way
/// out does where the zone of the uplink forwards.
fn firewalld_hint(socket: &Socket, at: &nft::Closed, link: &str) -> Option<String> {
    let forwards = |chain: &str| chain.starts_with("filter_FWD_") && chain.ends_with("_allow");
    if nft::has_rule(socket, at, forwards).unwrap_or(true) {
        return None;
    }
    let remedy = ["", "--permanent "]
        .map(|how| format!("\"firewall-cmd {how}--zone=trusted --add-interface={link}\""));
    Some(hint("firewalld (table \"inet firewalld\")", &remedy))
}

/// Says whether tables of iptables-legacy, which nftables does not show, drop what the bridge
/// `link` forwards. Costs next to nothing where there are none; a table that cannot be read is
/// passed over.
fn legacy_hints(link: &str, ipv6: bool) -> Vec<String> {
    let families = [
        (xtables::Family::V4, "ip", "iptables-legacy"),
        (xtables::Family::V6, "ip6", "ip6tables-legacy"),
    ];
    let mut hints = Vec::new();
    for (family, table, program) in families.into_iter().take(1 + usize::from(ipv6)) {
        if let Ok(Some(filter)) = Filter::read(family)
            && filter.drops_forwarded()
            && !filter.names_link(link)
        {
            let remedy =
                ["-i", "-o"].map(|way| format!("\"{program} -I FORWARD {way} {link} -j ACCEPT\""));
            hints.push(hint(
                &format!("table \"{table} filter\" of {program}"),
                &remedy,
            ));
        }
    }
    hints
}

fn hint(table: &str, [one, other]: &[String; 2]) -> String {
    format!(
        "{table} drops forwarded packets, and with them the traffic of containers; {one} and {other} let it pass"
    )
}
