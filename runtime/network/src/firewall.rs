//! What other firewalls do to our traffic and only their owner can put right, in words for a user.

use amphora_sys::netlink::Socket;
use amphora_sys::xtables::{self, Filter};

use crate::config::{DEFAULT_NETWORK, NetworkConfig};
use crate::error::{Result, kernel, netlink};
use crate::networks::Networks;
use crate::nft::{self, Dropping, Foreign};

impl Networks {
    /// Says what on this host would keep the packets of the default network's containers from
    /// passing. Nothing is said of a chain in which a rule names the network's bridge.
    ///
    /// # Errors
    /// When the host's filter tables or the network's file cannot be looked at.
    pub fn hints(&self) -> Result<Vec<String>> {
        let Some(config) = self.stored(DEFAULT_NETWORK)? else {
            return Ok(Vec::new());
        };
        let socket = nft::open().map_err(kernel("open nftables"))?;
        let foreign = nft::look(&socket).map_err(netlink("look at table \"filter\""))?;
        let mut hints = nft_hints(&socket, &foreign, &config)?;
        hints.extend(legacy_hints(&config.link, config.subnet6.is_some()));
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
            nft::Family::Inet => ("inet filter", "nft insert rule inet filter"),
        };
        let look = || netlink(format!("look at table \"{table}\""));
        if nft::names_link(socket, *chain, &config.link).map_err(look())? {
            continue;
        }
        let link = &config.link;
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
    /// tables of iptables-legacy only now: best when the container is on its way.
    #[must_use]
    pub fn hints(self) -> Vec<String> {
        let mut hints = self.hints;
        if let Some((link, ipv6)) = self.bridge {
            hints.extend(legacy_hints(&link, ipv6));
        }
        hints
    }
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
