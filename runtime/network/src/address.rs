//! Subnets and the addresses in them: pure arithmetic.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 subnet, written `172.17.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

/// Says that a text is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subnet \"{0}\"")]
pub struct SubnetError(String);

impl Subnet {
    /// Makes the subnet that `address` lies in; a prefix beyond the family's width is cut to it.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(width(address));
        let base = from_bits(address, bits(address) & mask(address, prefix));
        Self { base, prefix }
    }

    /// Returns the first address.
    #[must_use]
    pub const fn base(&self) -> IpAddr {
        self.base
    }

    /// Returns the prefix length.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Returns the address `offset` places after the first one; it wraps inside the subnet.
    #[must_use]
    pub fn nth(&self, offset: u32) -> IpAddr {
        let host = u128::from(offset) & !mask(self.base, self.prefix) & full(self.base);
        from_bits(self.base, bits(self.base) | host)
    }

    /// Returns the last address (the broadcast address in IPv4).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        from_bits(
            self.base,
            bits(self.base) | (full(self.base) & !mask(self.base, self.prefix)),
        )
    }

    /// Returns the first address after the subnet, or `None` at the end of the space.
    #[must_use]
    pub fn after(&self) -> Option<IpAddr> {
        let next = bits(self.last()).checked_add(1)?;
        (next <= full(self.base)).then(|| from_bits(self.base, next))
    }

    /// Says whether the address lies in the subnet.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4()
            && bits(address) & mask(address, self.prefix) == bits(self.base)
    }

    /// Says whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// Returns how far an address of the subnet is from its first one.
    pub(crate) fn offset(&self, address: IpAddr) -> u32 {
        u32::try_from(bits(address).saturating_sub(bits(self.base))).unwrap_or(u32::MAX)
    }

    /// Says whether all of `other` lies in the subnet.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.base)
    }

    /// Returns where the addresses of a part of the subnet begin, counted from its first one, and
    /// how many of them hosts may have: neither the subnet's first one nor its last.
    pub(crate) fn places(&self, part: &Self) -> (u32, u32) {
        let host_bits = u32::from(width(part.base) - part.prefix).min(24);
        let mut first = u32::try_from(bits(part.base) - bits(self.base)).unwrap_or(0);
        let mut count = 1u32 << host_bits;
        if part.base == self.base {
            first += 1;
            count = count.saturating_sub(1);
        }
        if part.last() == self.last() && host_bits > 0 {
            count = count.saturating_sub(1);
        }
        (first, count)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SubnetError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > width(address) {
            return Err(error());
        }
        Ok(Self::new(address, prefix))
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns the hardware address that goes with an IPv4 address: locally administered, so that a
/// neighbour's cache stays right when an address is used again.
#[must_use]
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// Reads a hardware address: six bytes in hexadecimal digits, with colons or hyphens; no group's.
#[must_use]
pub fn parse_hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut address {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let first = address.first().copied().unwrap_or(1);
    (parts.next().is_none() && first & 1 == 0).then_some(address)
}

/// Writes a hardware address the usual way.
#[must_use]
pub fn hardware_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Candidate subnets, in the order they are tried: Docker's, then ever smaller ones, far more than
/// a host has bridges.
pub(crate) fn candidates() -> impl Iterator<Item = Subnet> {
    let sixteens = (17..32u8).map(|n| Subnet::new(Ipv4Addr::new(172, n, 0, 0).into(), 16));
    let twenties = (0..16u8).map(|n| Subnet::new(Ipv4Addr::new(192, 168, n * 16, 0).into(), 20));
    let tens = (200..255u8).map(|n| Subnet::new(Ipv4Addr::new(10, n, 0, 0).into(), 20));
    let small = (128..200u8)
        .flat_map(|n| (0..=255u8).map(move |m| Subnet::new(Ipv4Addr::new(10, n, m, 0).into(), 24)));
    sixteens.chain(twenties).chain(tens).chain(small)
}

/// Picks the first candidate that overlaps nothing in `used`. Default routes do not count.
pub(crate) fn choose(used: &[Subnet]) -> Option<Subnet> {
    candidates().find(|c| is_free(c, used))
}

/// Picks the first free subnet of the pools' own sizes, pool by pool.
pub(crate) fn choose_in(pools: &[(Subnet, u8)], used: &[Subnet]) -> Option<Subnet> {
    pools.iter().find_map(|(pool, size)| {
        let first = Subnet::new(pool.base(), *size);
        std::iter::successors(Some(first), |last| {
            let next = Subnet::new(last.after()?, *size);
            pool.contains(next.base()).then_some(next)
        })
        .find(|c| is_free(c, used))
    })
}

/// Says whether a subnet overlaps nothing but default routes.
pub(crate) fn is_free(subnet: &Subnet, used: &[Subnet]) -> bool {
    !used.iter().any(|u| u.prefix() > 0 && u.overlaps(subnet))
}

/// Makes the unique local /64 (RFC 4193) of 40 random bits.
pub(crate) fn unique_local(random: [u8; 5]) -> Subnet {
    let [a, b, c, d, e] = random.map(u16::from);
    let base = Ipv6Addr::new(0xfd00 | a, b << 8 | c, d << 8 | e, 0, 0, 0, 0, 0);
    Subnet::new(base.into(), 64)
}

const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn full(address: IpAddr) -> u128 {
    if address.is_ipv4() {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    }
}

fn mask(address: IpAddr, prefix: u8) -> u128 {
    let host = u32::from(width(address) - prefix);
    full(address) & u128::MAX.checked_shl(host).unwrap_or(0)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_do_their_sums() {
        let s = net("172.17.3.4/16");
        assert_eq!(s.to_string(), "172.17.0.0/16");
        assert_eq!(s.nth(2).to_string(), "172.17.0.2");
        assert_eq!(s.last().to_string(), "172.17.255.255");
        assert_eq!(s.after().unwrap().to_string(), "172.18.0.0");
        assert_eq!(s.places(&s), (1, 65534));
        assert_eq!(s.places(&net("172.17.5.0/24")), (0x500, 256));
        assert!(s.holds(&net("172.17.5.0/24")) && !net("172.17.5.0/24").holds(&s));
        assert_eq!(net("fd00:1::/64").nth(513).to_string(), "fd00:1::201");
        assert_eq!(net("0.0.0.0/0").after(), None);
        assert!(net("10.0.0.0/8").overlaps(&net("10.200.0.0/20")));
        assert!(!net("10.0.0.0/8").overlaps(&net("fd00::/8")));
        for bad in ["", "1.2.3.4", "1.2.3.4/33", "x/8", "fd00::/129"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_bridge_avoids_what_the_host_uses() {
        assert_eq!(choose(&[]), Some(net("172.17.0.0/16")));
        assert_eq!(
            choose(&[net("0.0.0.0/0"), net("172.17.0.0/16")]),
            Some(net("172.18.0.0/16"))
        );
        assert_eq!(choose(&[net("172.16.0.0/12")]), Some(net("192.168.0.0/20")));
        assert_eq!(choose(&[net("0.0.0.0/1"), net("128.0.0.0/1")]), None);
    }

    #[test]
    fn the_pools_do_not_end_at_thirty_networks() {
        let mut used = Vec::new();
        while let Some(next) = choose(&used)
            && used.len() < 300
        {
            used.push(next);
        }
        assert_eq!(used.len(), 300);
    }

    #[test]
    fn pools_are_searched_in_order_and_to_their_end() {
        let pools = [(net("10.5.0.0/23"), 24), (net("10.6.0.0/16"), 20)];
        assert_eq!(choose_in(&pools, &[]), Some(net("10.5.0.0/24")));
        assert_eq!(
            choose_in(&pools, &[net("10.5.0.0/24")]),
            Some(net("10.5.1.0/24"))
        );
        assert_eq!(
            choose_in(&pools, &[net("10.5.0.0/16"), net("10.6.0.0/20")]),
            Some(net("10.6.16.0/20"))
        );
        assert_eq!(choose_in(&pools, &[net("10.0.0.0/8")]), None);
    }

    #[test]
    fn hardware_addresses_follow_addresses() {
        let mac = hardware_address(Ipv4Addr::new(172, 17, 0, 2));
        assert_eq!(hardware_text(mac), "02:42:ac:11:00:02");
        assert_eq!(parse_hardware_address("02:42:ac:11:00:02"), Some(mac));
        assert_eq!(parse_hardware_address("02-42-AC-11-00-02"), Some(mac));
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:0:2",
            "01:42:ac:11:00:02",
        ] {
            assert_eq!(parse_hardware_address(bad), None, "{bad}");
        }
    }
}
