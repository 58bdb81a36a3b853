//! The `-p` notation: `[[ip:]host:]container[/protocol]`, with ranges.

use std::net::IpAddr;

use amphora_spec::{Classify, ErrorKind};

use crate::ports::{PortRequest, Protocol};

/// Says why a port specification is refused, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortSpecError {
    /// Nothing after the last colon.
    #[error("no port specified: {0}<empty>")]
    Empty(String),
    /// Not an address.
    #[error("invalid IP address: {0}")]
    Address(String),
    /// Not a port or a range of ports in the container.
    #[error("invalid containerPort: {0}")]
    ContainerPort(String),
    /// Not a port or a range of ports on the host.
    #[error("invalid hostPort: {0}")]
    HostPort(String),
    /// Not a protocol.
    #[error("invalid proto: {0}")]
    Protocol(String),
    /// Two ranges of different lengths.
    #[error("invalid ranges specified for container and host Ports: {0} and {1}")]
    Ranges(String, String),
}

impl Classify for PortSpecError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// Parses one `-p` value into a request per container port.
///
/// # Errors
/// [`PortSpecError`] with the part that is wrong.
pub fn parse_port_spec(spec: &str) -> Result<Vec<PortRequest>, PortSpecError> {
    let (spec_ports, protocol) = match spec.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (spec, Protocol::Tcp),
    };
    let (ip, host, container) = split(spec_ports);
    if container.is_empty() {
        return Err(PortSpecError::Empty(spec.to_owned()));
    }
    let host_ip = parse_address(ip)?;
    let (first, last) =
        parse_range(container).ok_or_else(|| PortSpecError::ContainerPort(container.to_owned()))?;
    if first == 0 {
        return Err(PortSpecError::ContainerPort(container.to_owned()));
    }
    let hosts = match host {
        "" => None,
        text => Some(parse_range(text).ok_or_else(|| PortSpecError::HostPort(text.to_owned()))?),
    };
    let single = first == last;
    if let Some((host_first, host_last)) = hosts
        && host_last - host_first != last - first
        && !single
    {
        return Err(PortSpecError::Ranges(container.to_owned(), host.to_owned()));
    }
    let request = |container_port: u16| {
        let host_port = hosts.map(|(host_first, _)| host_first + (container_port - first));
        PortRequest {
            host_ip,
            host_port: host_port.filter(|port| *port != 0),
            host_port_end: hosts.filter(|(a, b)| single && a != b).map(|(_, b)| b),
            container_port,
            protocol,
        }
    };
    Ok((first..=last).map(request).collect())
}

/// Splits at the last two colons; an IPv6 address is written in brackets (or bare, as Docker
/// takes it).
fn split(text: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = text.rsplit_once(':') else {
        return ("", "", text);
    };
    match rest.rsplit_once(':') {
        None => ("", rest, container),
        Some((ip, host)) => (ip, host, container),
    }
}

fn parse_address(text: &str) -> Result<Option<IpAddr>, PortSpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .map(Some)
        .map_err(|_| PortSpecError::Address(text.to_owned()))
}

fn parse_protocol(text: &str) -> Result<Protocol, PortSpecError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(PortSpecError::Protocol(text.to_owned())),
    }
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let number = |t: &str| -> Option<u16> {
        t.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| t.parse().ok())
            .flatten()
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(spec: &str) -> PortRequest {
        let mut all = parse_port_spec(spec).unwrap();
        assert_eq!(all.len(), 1, "{spec}");
        all.remove(0)
    }

    #[test]
    fn forms_are_understood() {
        let plain = one("80");
        assert_eq!(
            (plain.host_ip, plain.host_port, plain.container_port),
            (None, None, 80)
        );
        let pair = one("8080:80");
        assert_eq!(
            (pair.host_port, pair.container_port, pair.protocol),
            (Some(8080), 80, Protocol::Tcp)
        );
        let v4 = one("127.0.0.1:8080:80/tcp");
        assert_eq!(
            (v4.host_ip, v4.host_port),
            (Some("127.0.0.1".parse().unwrap()), Some(8080))
        );
        assert_eq!(one("[::1]:80:80").host_ip, Some("::1".parse().unwrap()));
        assert_eq!(one("::1:81:80").host_ip, Some("::1".parse().unwrap()));
        assert_eq!(one("127.0.0.1::80").host_port, None);
        assert_eq!(one("53:53/UDP").protocol, Protocol::Udp);
        assert_eq!(one("0:80").host_port, None);
    }

    #[test]
    fn ranges_pair_up_or_offer_a_choice() {
        let pairs = parse_port_spec("8000-8002:80-82/udp").unwrap();
        let ports: Vec<_> = pairs
            .iter()
            .map(|p| (p.host_port, p.container_port))
            .collect();
        assert_eq!(
            ports,
            [(Some(8000), 80), (Some(8001), 81), (Some(8002), 82)]
        );
        let choice = one("8000-8010:80");
        assert_eq!(
            (choice.host_port, choice.host_port_end),
            (Some(8000), Some(8010))
        );
        assert_eq!(parse_port_spec("80-82").unwrap().len(), 3);
        assert_eq!(parse_port_spec("1-65535:1-65535").unwrap().len(), 65535);
    }

    #[test]
    fn refusals_use_dockers_words() {
        for (spec, text) in [
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("abc", "invalid containerPort: abc"),
            ("0", "invalid containerPort: 0"),
            ("80:70000", "invalid containerPort: 70000"),
            ("x:80", "invalid hostPort: x"),
            ("9-8:80", "invalid hostPort: 9-8"),
            ("+8:80", "invalid hostPort: +8"),
            ("1.2.3:80:80", "invalid IP address: 1.2.3"),
            ("80/quic", "invalid proto: quic"),
            ("80/", "invalid proto: "),
            (
                "8000-8001:80-82",
                "invalid ranges specified for container and host Ports: 80-82 and 8000-8001",
            ),
        ] {
            assert_eq!(
                parse_port_spec(spec).unwrap_err().to_string(),
                text,
                "{spec}"
            );
        }
    }
}
