//! Ranges of addresses, as `insecure-registries` names them.

use std::net::{IpAddr, ToSocketAddrs};
use std::str::FromStr;

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    base: IpAddr,
    bits: u32,
}

/// Text is no range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no range of addresses such as 10.0.0.0/8")]
pub struct NoRange;

impl FromStr for AddressRange {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let (base, bits) = text.split_once('/').ok_or(NoRange)?;
        let base: IpAddr = base.parse().map_err(|_| NoRange)?;
        let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits: u32 = bits.parse().map_err(|_| NoRange)?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        if plain && bits <= most {
            Ok(Self { base, bits })
        } else {
            Err(NoRange)
        }
    }
}

impl AddressRange {
    /// Says whether an address is in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let apart = match (self.base, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        apart >= self.bits
    }
}

/// Says whether a host is in one of the ranges among `names`. One that is no address is looked up,
/// as Docker does, but only where there are ranges; one that is not found is in none.
pub(crate) fn covered<'a>(names: impl Iterator<Item = &'a String>, host: &str) -> bool {
    let ranges: Vec<AddressRange> = names.filter_map(|name| name.parse().ok()).collect();
    if ranges.is_empty() {
        return false;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let inside = |address: IpAddr| ranges.iter().any(|range| range.contains(address));
    match bare.parse() {
        Ok(address) => inside(address),
        Err(_) => (bare, 0)
            .to_socket_addrs()
            .is_ok_and(|mut found| found.any(|found| inside(found.ip()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_begins_alike() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.1.2", "11.0.0.0"),
            ("192.168.4.4/30", "192.168.4.7", "192.168.4.8"),
            ("1.2.3.4/32", "1.2.3.4", "1.2.3.5"),
            ("fd00::/8", "fdff::1", "fe00::"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
        ] {
            let range: AddressRange = range.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{range:?}");
            assert!(!range.contains(outside.parse().unwrap()), "{range:?}");
        }
        let all: AddressRange = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.0.0.1".parse().unwrap()));
        for text in [
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "a/8",
            "1.2.3.4/",
            "::/+8",
        ] {
            assert_eq!(text.parse::<AddressRange>(), Err(NoRange), "{text}");
        }
    }

    #[test]
    fn hosts_are_in_ranges_by_address_or_by_name() {
        let names = ["reg.lan:5000", "10.0.0.0/8", "127.0.0.0/8", "::1/128"].map(str::to_owned);
        let is = |host: &str| covered(names.iter(), host);
        assert!(is("10.9.8.7") && is("[::1]") && is("localhost"));
        assert!(!is("192.168.1.1") && !is("reg.lan") && !is("no such host"));
        assert!(!covered(names[..1].iter(), "10.9.8.7"));
    }
}
