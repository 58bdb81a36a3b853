//! What a container finds in `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: pure text.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Servers that stand in for none.
const PUBLIC: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Returns `/etc/hosts`: the usual local names, extra `name -> address` entries, and the
/// container's own addresses with its names.
#[must_use]
pub fn hosts(own: &[IpAddr], names: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for (name, address) in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
    for address in own {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// Returns `/etc/hostname`.
#[must_use]
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

/// What the user asked for instead of the host's resolver settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvOverrides {
    /// `--dns`.
    pub servers: Vec<IpAddr>,
    /// `--dns-search`; `.` alone means none.
    pub search: Vec<String>,
    /// `--dns-option`.
    pub options: Vec<String>,
}

/// Returns `/etc/resolv.conf` made from the host's: loopback servers cannot be reached from a
/// container and are left out, IPv6 servers only when `ipv6`; public ones stand in for none.
#[must_use]
pub fn resolv_conf(host: &str, overrides: &ResolvOverrides, ipv6: bool) -> String {
    let mut servers: Vec<String> = overrides.servers.iter().map(ToString::to_string).collect();
    let mut search = overrides.search.clone();
    let mut options = overrides.options.clone();
    for line in host.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if overrides.servers.is_empty() => {
                servers.extend(
                    words
                        .next()
                        .filter(|s| is_reachable(s, ipv6))
                        .map(str::to_owned),
                );
            }
            Some("search" | "domain") if overrides.search.is_empty() => {
                search = words.map(str::to_owned).collect();
            }
            Some("options") if overrides.options.is_empty() => {
                options.extend(words.map(str::to_owned));
            }
            _ => {}
        }
    }
    if servers.is_empty() {
        servers = PUBLIC.map(str::to_owned).to_vec();
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    search.retain(|name| name != ".");
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

/// `/etc/resolv.conf` of a container with a name server of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnResolver {
    /// The file.
    pub text: String,
    /// Whether it says for names without enough dots to be tried with the search domains: without
    /// these they are asked of nobody outside.
    pub bare_names_stay: bool,
}

/// Returns `/etc/resolv.conf` that names one server, which asks the host's or those of `--dns`; in
/// the form of Docker's.
#[must_use]
pub fn own_resolv_conf(host: &str, overrides: &ResolvOverrides, server: IpAddr) -> OwnResolver {
    let (mut servers, mut invalid, mut other) = (Vec::new(), Vec::new(), Vec::new());
    let (mut search, mut options) = (Vec::new(), Vec::new());
    for line in host.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let first = words.next().unwrap_or_default();
        match (first.as_str(), words.next()) {
            ("nameserver", Some(text)) => match parsed(&text) {
                Some(_) => servers.push(format!("host({text})")),
                None => invalid.push(text),
            },
            ("search" | "domain", Some(one)) => {
                search = std::iter::once(one).chain(words).collect();
            }
            ("options", Some(one)) => options.extend(std::iter::once(one).chain(words)),
            ("nameserver" | "search" | "domain" | "options", None) => {}
            _ if first.is_empty() || first.starts_with(['#', ';']) => {}
            _ => other.push(line.to_owned()),
        }
    }
    let mut replaced = Vec::new();
    if !overrides.servers.is_empty() {
        replaced.push("nameservers");
        servers = overrides.servers.iter().map(ToString::to_string).collect();
    }
    if !overrides.search.is_empty() {
        replaced.push("search");
        search.clone_from(&overrides.search);
        search.retain(|name| name != ".");
    }
    if !overrides.options.is_empty() {
        replaced.push("options");
        options.clone_from(&overrides.options);
    }
    let (dots_from, dots) = settle_dots(&mut options, !overrides.options.is_empty());
    let mut text = format!("# Generated by amphora, at every start anew.\n\nnameserver {server}\n");
    for (word, list) in [("search", &search), ("options", &options)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{word} {}", list.join(" "));
        }
    }
    for line in other {
        let _ = writeln!(text, "{line}");
    }
    text.push_str("\n# Based on host file: '/etc/resolv.conf' (internal resolver)\n");
    if servers.is_empty() {
        text.push_str("# Used default nameservers.\n");
        servers = PUBLIC.map(str::to_owned).to_vec();
    }
    let _ = writeln!(text, "# ExtServers: [{}]", servers.join(" "));
    if !invalid.is_empty() {
        let _ = writeln!(text, "# Invalid nameservers: [{}]", invalid.join(" "));
    }
    let _ = writeln!(text, "# Overrides: [{}]", replaced.join(" "));
    let _ = writeln!(text, "# Option ndots from: {dots_from}");
    OwnResolver {
        text,
        bare_names_stay: dots > 0,
    }
}

/// Leaves one number of dots that makes sense, nought where none was given; says where it is from.
fn settle_dots(options: &mut Vec<String>, overridden: bool) -> (&'static str, u32) {
    let value = |option: &String| option.strip_prefix("ndots:").map(str::parse::<u32>);
    options.retain(|option| option != "ndots" && !matches!(value(option), Some(Err(_))));
    match options.iter().rev().find_map(value) {
        Some(dots) => (
            if overridden { "override" } else { "host" },
            dots.unwrap_or(0),
        ),
        None => {
            options.push("ndots:0".to_owned());
            ("internal", 0)
        }
    }
}

fn parsed(server: &str) -> Option<IpAddr> {
    let address = server.split_once('%').map_or(server, |(a, _)| a);
    address.parse().ok()
}

fn is_reachable(server: &str, ipv6: bool) -> bool {
    let (address, zone) = server
        .split_once('%')
        .map_or((server, None), |(a, z)| (a, Some(z)));
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => !v4.is_loopback() && !v4.is_unspecified(),
        Ok(IpAddr::V6(v6)) => ipv6 && zone.is_none() && !v6.is_loopback() && !v6.is_unspecified(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_end_with_the_container() {
        let own = ["172.17.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let extra = [("db".to_owned(), "10.0.0.9".parse().unwrap())];
        let text = hosts(&own, "web 0123456789ab", &extra);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\t"));
        assert!(
            text.ends_with(
                "10.0.0.9\tdb\n172.17.0.2\tweb 0123456789ab\nfd00::2\tweb 0123456789ab\n"
            )
        );
    }

    #[test]
    fn loopback_servers_are_left_out() {
        let host = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.0.0.1 # lan\nnameserver ::1\n\
                    nameserver fd00::1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions edns0 ndots:2\n";
        assert_eq!(
            resolv_conf(host, &ResolvOverrides::default(), true),
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch a.example b.example\noptions edns0 ndots:2\n"
        );
        assert!(!resolv_conf(host, &ResolvOverrides::default(), false).contains("fd00"));
    }

    #[test]
    fn public_servers_stand_in_for_none() {
        let text = resolv_conf("nameserver 127.0.0.1\n", &ResolvOverrides::default(), true);
        assert_eq!(text, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }

    #[test]
    fn overrides_replace_the_hosts() {
        let overrides = ResolvOverrides {
            servers: vec!["1.1.1.1".parse().unwrap()],
            search: vec![".".to_owned()],
            options: Vec::new(),
        };
        let text = resolv_conf(
            "nameserver 10.0.0.1\nsearch x\noptions rotate\n",
            &overrides,
            true,
        );
        assert_eq!(text, "nameserver 1.1.1.1\noptions rotate\n");
    }

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11));

    #[test]
    fn a_server_of_its_own_is_the_only_one_and_the_rest_is_the_hosts() {
        let host = "# by hand\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver bad\n\
                    search a.example b.example\noptions edns0 trust-ad\nsortlist 10.0.0.0\n";
        let made = own_resolv_conf(host, &ResolvOverrides::default(), OWN);
        assert_eq!(
            made.text,
            "# Generated by amphora, at every start anew.\n\n\
             nameserver 127.0.0.11\nsearch a.example b.example\n\
             options edns0 trust-ad ndots:0\nsortlist 10.0.0.0\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n\
             # ExtServers: [host(127.0.0.53) host(fe80::1%eth0)]\n\
             # Invalid nameservers: [bad]\n# Overrides: []\n# Option ndots from: internal\n"
        );
        assert!(!made.bare_names_stay);
        let none = own_resolv_conf("", &ResolvOverrides::default(), OWN);
        let servers = "# Used default nameservers.\n# ExtServers: [8.8.8.8 8.8.4.4]\n";
        assert!(none.text.contains(servers), "{}", none.text);
    }

    #[test]
    fn what_was_asked_for_replaces_the_hosts_and_says_so() {
        let overrides = ResolvOverrides {
            servers: vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()],
            search: vec![".".to_owned()],
            options: vec!["ndots:3".to_owned()],
        };
        let host = "nameserver 10.0.0.1\nsearch x\noptions rotate ndots:1\n";
        let made = own_resolv_conf(host, &overrides, OWN);
        assert_eq!(
            made.text,
            "# Generated by amphora, at every start anew.\n\n\
             nameserver 127.0.0.11\noptions ndots:3\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n\
             # ExtServers: [1.1.1.1 ::1]\n# Overrides: [nameservers search options]\n\
             # Option ndots from: override\n"
        );
        assert!(made.bare_names_stay);
        let host = own_resolv_conf("options ndots:2\n", &ResolvOverrides::default(), OWN);
        assert!(host.bare_names_stay && host.text.ends_with("# Option ndots from: host\n"));
        let bad = own_resolv_conf("options ndots:x\n", &ResolvOverrides::default(), OWN);
        assert!(!bad.bare_names_stay && bad.text.contains("options ndots:0\n"));
    }
}
