//! Flags of `run` and `create` that say which networks a container is in, and by what names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amphora_engine::{HostConfig, NetworkAttachment, NetworkMode};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::parse::bad_flag;
use crate::ui;

// Networks and names.
#[derive(Debug, Args)]
pub(crate) struct NetworkFlags {
    /// Connect a container to a network: its name, or name=…,alias=…,ip=…
    #[arg(long, visible_alias = "net")]
    network: Vec<String>,
    /// Add network-scoped alias for the container
    #[arg(long, visible_alias = "net-alias")]
    network_alias: Vec<String>,
    /// IPv4 address (e.g., 172.30.100.104)
    #[arg(long, default_value = "")]
    ip: String,
    /// IPv6 address (e.g., 2001:db8::33)
    #[arg(long, default_value = "")]
    ip6: String,
    /// Container MAC address (e.g., 92:d0:c6:0a:29:33)
    #[arg(long, default_value = "")]
    mac_address: String,
    /// Add link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Set custom DNS servers
    #[arg(long)]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long, visible_alias = "dns-opt")]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long)]
    dns_search: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long)]
    add_host: Vec<String>,
}

/// Says what of the flags has no effect.
pub(crate) fn warn(host: &HostConfig) {
    if host.network == NetworkMode::Host && (host.publish_all || !host.ports.is_empty()) {
        ui::warnings(["Published ports are discarded when using host network mode"]);
    }
}

/// One `--network` as it was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Asked {
    target: String,
    aliases: Vec<String>,
    links: Vec<String>,
    ip: String,
    ip6: String,
    mac: String,
    driver_opts: Vec<(String, String)>,
    gw_priority: i64,
}

/// Reads the flags.
pub(crate) fn networks(host: &mut HostConfig, flags: &NetworkFlags) -> Outcome {
    names(host, flags)?;
    if !flags.mac_address.is_empty() && hardware(&flags.mac_address).is_none() {
        return Err(usage(format!(
            "{} is not a valid mac address",
            flags.mac_address
        )));
    }
    for link in &flags.link {
        check_link(link)?;
    }
    let mut asked = Vec::new();
    for text in &flags.network {
        asked.push(read(text).map_err(|why| bad_flag("--network", text, &why))?);
    }
    if asked.is_empty() {
        asked.push(Asked {
            target: "default".to_owned(),
            ..Asked::default()
        });
    }
    if let Some(first) = asked.first_mut() {
        apply(first, flags)?;
    }
    check(&asked)?;
    host.network = NetworkMode::from(asked.first().map_or("", |first| &first.target).to_owned());
    if !is_user_defined(&host.network) {
        host.links.clone_from(&flags.link);
    }
    // What asks for no more than the default network is what asks for nothing.
    let plain = Asked::default();
    let quiet = |one: &Asked| {
        let bare = Asked {
            target: String::new(),
            ..one.clone()
        };
        bare == plain && asked.len() == 1 && !user_defined(&one.target)
    };
    host.networks = asked
        .iter()
        .filter(|one| !quiet(one))
        .map(attachment)
        .collect::<Outcome<_>>()?;
    Ok(())
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

/// Docker's rule: the flags of old belong to the first network, and to one place only.
fn apply(first: &mut Asked, flags: &NetworkFlags) -> Outcome {
    let conflicts = [
        (
            !first.aliases.is_empty() && !flags.network_alias.is_empty(),
            "--network-alias and per-network alias",
        ),
        (
            !first.ip.is_empty() && !flags.ip.is_empty(),
            "--ip and per-network IPv4 address",
        ),
        (
            !first.ip6.is_empty() && !flags.ip6.is_empty(),
            "--ip6 and per-network IPv6 address",
        ),
        (
            !first.mac.is_empty() && !flags.mac_address.is_empty(),
            "--mac-address and per-network MAC address",
        ),
    ];
    if let Some((_, what)) = conflicts.iter().find(|(both, _)| *both) {
        return Err(usage(format!(
            "conflicting options: cannot specify both {what}"
        )));
    }
    let set = |place: &mut String, given: &String| {
        if !given.is_empty() {
            place.clone_from(given);
        }
    };
    if !flags.network_alias.is_empty() {
        first.aliases.clone_from(&flags.network_alias);
    }
    set(&mut first.ip, &flags.ip);
    set(&mut first.ip6, &flags.ip6);
    set(&mut first.mac, &flags.mac_address);
    // On the default network a link is more than a name there.
    if user_defined(&first.target) {
        first.links.clone_from(&flags.link);
    }
    Ok(())
}

fn check(asked: &[Asked]) -> Outcome {
    for (n, one) in asked.iter().enumerate() {
        if one.target.trim().is_empty() {
            return Err(usage("no name set for network"));
        }
        if !user_defined(&one.target) && !one.aliases.is_empty() {
            return Err(usage(
                "network-scoped aliases are only supported for user-defined networks",
            ));
        }
        if !one.mac.is_empty() && hardware(&one.mac).is_none() {
            return Err(usage(format!("{} is not a valid mac address", one.mac)));
        }
        let mut before = asked.iter().take(n);
        if before.any(|other| other.target == one.target) {
            return Err(usage(format!(
                "network \"{}\" is specified multiple times",
                one.target
            )));
        }
    }
    let user = asked.iter().filter(|one| user_defined(&one.target)).count();
    if user > 0 && user < asked.len() {
        return Err(usage(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
        ));
    }
    Ok(())
}

/// Whether a name is none of those that are always there.
fn user_defined(target: &str) -> bool {
    let container = target == "container" || target.starts_with("container:");
    !(container || matches!(target, "default" | "bridge" | "host" | "none"))
}

/// Reads one `--network`: a name, or fields with values.
fn read(text: &str) -> Result<Asked, String> {
    let mut asked = Asked::default();
    if !is_long(text) {
        asked.target = text.to_owned();
        return Ok(asked);
    }
    for field in text.split(',') {
        let lower = field.to_lowercase();
        let (key, value) = match lower.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key.trim(), value.trim()),
            _ => return Err(format!("invalid field {field}")),
        };
        match key {
            "name" => value.clone_into(&mut asked.target),
            "alias" => asked.aliases.push(value.to_owned()),
            "ip" => value.clone_into(&mut asked.ip),
            "ip6" => value.clone_into(&mut asked.ip6),
            "mac-address" => value.clone_into(&mut asked.mac),
            "link-local-ip" => return Err("link-local-ip is not supported".to_owned()),
            "driver-opt" => {
                let (key, value) = value
                    .split_once('=')
                    .filter(|(key, _)| !key.is_empty())
                    .ok_or("invalid key value pair format in driver options")?;
                let pair = (key.trim().to_owned(), value.trim().to_owned());
                asked.driver_opts.push(pair);
            }
            "gw-priority" => {
                let number = value.parse();
                asked.gw_priority =
                    number.map_err(|_| format!("invalid gw-priority ({value}): invalid syntax"))?;
            }
            other => return Err(format!("invalid field key {other}")),
        }
    }
    if asked.target.is_empty() {
        return Err("network name/id is not specified".to_owned());
    }
    Ok(asked)
}

/// Whether a text has a field with a value: `\w+=\w+`.
fn is_long(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices('=').any(|(at, _)| {
        let (before, after) = text.split_at(at);
        before.ends_with(word) && after.get(1..).is_some_and(|rest| rest.starts_with(word))
    })
}

fn is_user_defined(mode: &NetworkMode) -> bool {
    matches!(mode, NetworkMode::User(_))
}

fn attachment(asked: &Asked) -> Outcome<NetworkAttachment> {
    let network = match asked.target.as_str() {
        "default" => "bridge".to_owned(),
        other => other.to_owned(),
    };
    let wrong = |why: String| {
        let name = &asked.target;
        Failure::Daemon(format!(
            "invalid config for network {name}: invalid endpoint settings:\n{why}"
        ))
    };
    Ok(NetworkAttachment {
        network,
        aliases: asked.aliases.clone(),
        ip: address4(&asked.ip).map_err(wrong)?,
        ip6: address6(&asked.ip6).map_err(wrong)?,
        mac: Some(asked.mac.to_lowercase().replace('-', ":")).filter(|mac| !mac.is_empty()),
        links: asked.links.clone(),
        gw_priority: asked.gw_priority,
        driver_opts: asked.driver_opts.iter().cloned().collect(),
        ..NetworkAttachment::default()
    })
}

/// Reads an address, in the words of Docker's daemon; none when it is empty.
pub(crate) fn address4(text: &str) -> Result<Option<Ipv4Addr>, String> {
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|_| format!("invalid IPv4 address: {text}"))
}

/// The same for IPv6.
pub(crate) fn address6(text: &str) -> Result<Option<Ipv6Addr>, String> {
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|_| format!("invalid IPv6 address: {text}"))
}

/// Reads a hardware address of six bytes, with colons or hyphens.
fn hardware(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let byte = |part: &&str| match part.len() {
        2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
    bytes?.try_into().ok()
}

fn check_link(text: &str) -> Outcome {
    if text.is_empty() {
        return Err(bad_flag("--link", text, "empty string specified for links"));
    }
    let parts = text.split(':').count();
    if parts > 2 {
        let why = format!("bad format for links: {text}");
        return Err(bad_flag("--link", text, &why));
    }
    Ok(())
}

/// Name servers and hosts.
fn names(host: &mut HostConfig, flags: &NetworkFlags) -> Outcome {
    for text in &flags.add_host {
        add_host(text).map_err(|why| bad_flag("--add-host", text, &why))?;
    }
    host.extra_hosts.clone_from(&flags.add_host);
    for text in &flags.dns {
        let parsed = text.trim().parse::<IpAddr>();
        let address = parsed.map_err(|_| {
            bad_flag(
                "--dns",
                text,
                &format!("IP address is not correctly formatted: {text}"),
            )
        })?;
        host.dns.servers.push(address.to_string());
    }
    for text in &flags.dns_search {
        let name = text.trim();
        if name != "." && !is_domain(name) {
            let why = format!("{text} is not a valid domain");
            return Err(bad_flag("--dns-search", text, &why));
        }
        host.dns.search.push(name.to_owned());
    }
    host.dns.options.clone_from(&flags.dns_option);
    Ok(())
}

/// Checks a name with an address, or with the word for the host's.
fn add_host(text: &str) -> Result<(), String> {
    let bad = || format!("bad format for add-host: \"{text}\"");
    let (name, address) = text.split_once(['=', ':']).ok_or_else(bad)?;
    if name.is_empty() {
        return Err(bad());
    }
    let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let address = inner.unwrap_or(address);
    if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address in add-host: \"{address}\""));
    }
    Ok(())
}

/// Docker's rule: labels of letters, digits and hyphens, with a letter somewhere.
fn is_domain(text: &str) -> bool {
    let label = |part: &str| {
        let mut bytes = part.bytes();
        let inner = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner
            && !part.is_empty()
            && part.len() <= 63
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let bare = text.trim_end_matches('.');
    text.len() <= 255 && bare.bytes().any(|b| b.is_ascii_alphabetic()) && bare.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        read(text).unwrap_err()
    }

    #[test]
    fn long_and_short_forms() {
        assert_eq!(read("blue").unwrap().target, "blue");
        assert_eq!(read("container:x").unwrap().target, "container:x");
        let long = "name=blue,alias=a,alias=b,ip=1.2.3.4,ip6=fd00::1,mac-address=02:42:ac:11:00:05,\
                    driver-opt=k=v,gw-priority=-7";
        let asked = read(long).unwrap();
        assert_eq!(asked.target, "blue");
        assert_eq!(asked.aliases, ["a", "b"]);
        assert_eq!(
            (asked.ip.as_str(), asked.ip6.as_str()),
            ("1.2.3.4", "fd00::1")
        );
        assert_eq!(asked.driver_opts, [("k".to_owned(), "v".to_owned())]);
        assert_eq!(
            (asked.gw_priority, asked.mac.as_str()),
            (-7, "02:42:ac:11:00:05")
        );
        assert_eq!(why("ip=1.2.3.4"), "network name/id is not specified");
        assert_eq!(why("name=a,nope=1"), "invalid field key nope");
        assert_eq!(why("name=a,ip"), "invalid field ip");
        assert_eq!(
            why("name=a,gw-priority=x"),
            "invalid gw-priority (x): invalid syntax"
        );
        assert_eq!(
            why("name=a,link-local-ip=1.2.3.4"),
            "link-local-ip is not supported"
        );
    }

    #[test]
    fn hardware_addresses_and_domains() {
        assert!(hardware("02:42:ac:11:00:05").is_some() && hardware("02-42-AC-11-00-05").is_some());
        assert!(hardware("02:42:ac:11:00").is_none() && hardware("x").is_none());
        assert!(is_domain("example.com") && is_domain("a-b.c.") && is_domain("local"));
        assert!(!is_domain("-a.b") && !is_domain("a..b") && !is_domain("1.2") && !is_domain("a b"));
    }
}
