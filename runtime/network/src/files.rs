//! What a container finds in `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: pure text.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Returns `/etc/hosts`: the usual local names, extra `name -> address` entries, and the
/// container's own addresses with its names.
#[must_use]
pub fn hosts(own: &[IpAddr], names: &[&str], extra: &[(String, IpAddr)]) -> String {
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
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
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
        servers = vec!["8.8.8.8".to_owned(), "8.8.4.4".to_owned()];
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
        let text = hosts(&own, &["web", "0123456789ab"], &extra);
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
}
