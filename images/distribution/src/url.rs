//! URLs of a registry: where a domain is served, what a redirect points to.

use amphora_spec::reference::DEFAULT_DOMAIN;

use crate::ClientConfig;
use crate::range::covered;

/// Host that serves `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Returns `scheme://host` of a reference's domain.
pub(crate) fn base(config: &ClientConfig, domain: &str) -> String {
    if domain == DEFAULT_DOMAIN {
        return format!("https://{DOCKER_HUB}");
    }
    let host = host_of(domain);
    let near = is_loopback(host) || covered(config.insecure.iter(), host);
    let plain = config.insecure.contains(domain) || (near && !config.secure.contains(domain));
    let scheme = if plain { "http" } else { "https" };
    format!("{scheme}://{domain}")
}

/// Says whether a host name or address is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Returns `scheme://authority` of an absolute URL, lower case: what a secret belongs to.
pub(crate) fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end)?;
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let scheme = scheme.to_ascii_lowercase();
    if authority.is_empty() || !matches!(scheme.as_str(), "http" | "https") {
        return None;
    }
    let default = if scheme == "http" { ":80" } else { ":443" };
    let authority = authority.strip_suffix(default).unwrap_or(authority);
    Some(format!("{scheme}://{}", authority.to_ascii_lowercase()))
}

/// Returns the host of `host[:port]`.
pub(crate) fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority
            .find(']')
            .and_then(|end| authority.get(..=end))
            .unwrap_or(authority);
    }
    authority
        .split_once(':')
        .map_or(authority, |(host, _)| host)
}

/// Returns `host:port` of an absolute URL, as a dial error names it.
pub(crate) fn dial_address(url: &str) -> String {
    let Some(origin) = origin(url) else {
        return url.to_owned();
    };
    let (scheme, authority) = origin.split_once("://").unwrap_or(("", &origin));
    if authority.len() > host_of(authority).len() {
        return authority.to_owned();
    }
    format!("{authority}:{}", if scheme == "http" { 80 } else { 443 })
}

/// Resolves a `Location` against the URL that answered with it.
pub(crate) fn join(from: &str, location: &str) -> Option<String> {
    if location.contains("://") && !location.starts_with(['/', '?']) {
        return origin(location).map(|_| location.to_owned());
    }
    let (scheme, _) = from.split_once("://")?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let origin_end = scheme.len() + 3;
    let path_at = from
        .get(origin_end..)?
        .find(['/', '?', '#'])
        .map_or(from.len(), |i| i + origin_end);
    let root = from.get(..path_at)?;
    if location.starts_with('/') {
        return Some(format!("{root}{location}"));
    }
    let path = from.get(path_at..)?.split(['?', '#']).next()?;
    if location.starts_with('?') {
        return Some(format!("{root}{path}{location}"));
    }
    let folder = path.rfind('/').and_then(|i| path.get(..=i)).unwrap_or("/");
    Some(format!("{root}{folder}{location}"))
}

/// Percent-encodes a query value.
pub(crate) fn encode(value: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_plain_and_others_are_not() {
        let mut config = ClientConfig::default();
        config.insecure.insert("reg.lan:5000".to_owned());
        config.insecure.insert("10.1.0.0/16".to_owned());
        config.secure.insert("localhost:5001".to_owned());
        for (domain, url) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.3:5000", "http://127.0.0.3:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("ghcr.io", "https://ghcr.io"),
            ("reg.lan:5000", "http://reg.lan:5000"),
            ("10.1.2.3:5000", "http://10.1.2.3:5000"),
            ("10.2.2.3:5000", "https://10.2.2.3:5000"),
            ("localhost:5001", "https://localhost:5001"),
            ("127.0.0.1.evil.example", "https://127.0.0.1.evil.example"),
        ] {
            assert_eq!(base(&config, domain), url);
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("HTTPS://A.b:443/x").as_deref(), Some("https://a.b"));
        assert_eq!(origin("http://a:80?q").as_deref(), Some("http://a"));
        assert_eq!(origin("http://a@evil:1/").as_deref(), Some("http://evil:1"));
        assert_ne!(origin("http://a/"), origin("https://a/"));
        assert_eq!(origin("file:///etc/passwd"), None);
        assert_eq!(dial_address("http://[::1]/v2/"), "[::1]:80");
        assert_eq!(dial_address("https://h:5/v2/"), "h:5");
    }

    #[test]
    fn locations_are_resolved() {
        let from = "http://h:1/v2/a/blobs/x?y=1";
        assert_eq!(
            join(from, "https://cdn/z").as_deref(),
            Some("https://cdn/z")
        );
        assert_eq!(join(from, "//cdn/z").as_deref(), Some("http://cdn/z"));
        assert_eq!(
            join(from, "/z?k=http://q").as_deref(),
            Some("http://h:1/z?k=http://q")
        );
        assert_eq!(join(from, "z").as_deref(), Some("http://h:1/v2/a/blobs/z"));
        assert_eq!(join(from, "file:///etc/shadow"), None);
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("repository:a/b:pull"), "repository:a/b:pull");
        assert_eq!(encode("a b&c=d"), "a%20b%26c%3Dd");
    }
}
