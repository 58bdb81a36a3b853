//! The expressions our rules are made of, one method each.

use amphora_sys::wire::Attributes;

/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;
/// The first 16-byte register; 4-byte registers 8.. lie over it.
pub(super) const REG: u32 = 1;

/// 4-byte register `n`.
pub(super) const fn reg32(n: u32) -> u32 {
    8 + n
}

pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const STATE_ESTABLISHED_RELATED: u32 = 0x6;
const STATUS_DNAT: u32 = 0x20;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NAT_DNAT: u32 = 1;

/// `NFPROTO_IPV4`.
pub(super) const V4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(super) const V6: u8 = 10;

/// A verdict.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(&'static str),
}

/// What a lookup wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    In,
    NotIn,
}

/// Which address of the packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Writes expressions into a rule.
pub(super) struct Expressions<'a, 'b>(pub(super) &'a mut Attributes<'b>);

impl Expressions<'_, '_> {
    fn put(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nest(1, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
        self
    }

    fn compare(&mut self, register: u32, operator: u32, value: &[u8]) -> &mut Self {
        self.put("cmp", |a| {
            a.be32(1, register);
            a.be32(2, operator);
            a.nest(3, |data| data.bytes(1, value));
        })
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.put("meta", |a| {
            a.be32(1, register);
            a.be32(2, key);
        })
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.put("payload", |a| {
            a.be32(1, register);
            a.be32(2, base);
            a.be32(3, offset);
            a.be32(4, length);
        })
    }

    fn any_bit(&mut self, key: u32, bits: u32) -> &mut Self {
        self.put("ct", |a| {
            a.be32(1, REG);
            a.be32(2, key);
        });
        self.put("bitwise", |a| {
            a.be32(1, REG);
            a.be32(2, REG);
            a.be32(3, 4);
            a.nest(4, |mask| mask.bytes(1, &bits.to_ne_bytes()));
            a.nest(5, |xor| xor.bytes(1, &[0; 4]));
        });
        self.compare(REG, 1, &[0; 4])
    }

    /// `meta nfproto`.
    pub(super) fn protocol_family(&mut self, family: u8) -> &mut Self {
        self.meta(META_NFPROTO, REG).compare(REG, 0, &[family])
    }

    /// The name of a link (`META_IIFNAME`, `META_OIFNAME`) into a register.
    pub(super) fn link_name(&mut self, key: u32, register: u32) -> &mut Self {
        self.meta(key, register)
    }

    /// The name of a link equals.
    pub(super) fn link_is(&mut self, key: u32, name: &str) -> &mut Self {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        self.meta(key, REG).compare(REG, 0, &value)
    }

    /// The name of a link is (not) in the set of our bridges.
    pub(super) fn link_in_bridges(&mut self, key: u32, member: Member) -> &mut Self {
        self.link_in(key, "bridges", member)
    }

    /// The name of a link is (not) in a set.
    pub(super) fn link_in(&mut self, key: u32, set: &str, member: Member) -> &mut Self {
        self.meta(key, REG).lookup(set, member)
    }

    /// The register is (not) in a set.
    pub(super) fn lookup(&mut self, set: &str, member: Member) -> &mut Self {
        self.put("lookup", |a| {
            a.text(1, set);
            a.be32(2, REG);
            if member == Member::NotIn {
                a.be32(5, 1);
            }
        })
    }

    /// The register's value in a map replaces it; no entry ends the rule.
    pub(super) fn map(&mut self, set: &str) -> &mut Self {
        self.put("lookup", |a| {
            a.text(1, set);
            a.be32(2, REG);
            a.be32(3, REG);
        })
    }

    /// An address of the packet into the first register; the family must be known.
    pub(super) fn address(&mut self, family: u8, side: Side) -> &mut Self {
        let (offset, length) = match (family, side) {
            (V4, Side::Source) => (12, 4),
            (V4, Side::Destination) => (16, 4),
            (_, Side::Source) => (8, 16),
            (_, Side::Destination) => (24, 16),
        };
        self.payload(NETWORK_HEADER, offset, length, REG)
    }

    /// The IPv4 address lies in 127.0.0.0/8.
    pub(super) fn is_loopback4(&mut self, side: Side) -> &mut Self {
        let offset = if matches!(side, Side::Source) { 12 } else { 16 };
        self.protocol_family(V4)
            .payload(NETWORK_HEADER, offset, 1, REG)
            .compare(REG, 0, &[127])
    }

    /// The IPv6 destination is `::1`.
    pub(super) fn is_loopback6(&mut self) -> &mut Self {
        let one = std::net::Ipv6Addr::LOCALHOST.octets();
        self.protocol_family(V6)
            .address(V6, Side::Destination)
            .compare(REG, 0, &one)
    }

    /// `proto . port` of the packet into two 4-byte registers.
    pub(super) fn service(&mut self, first: u32) -> &mut Self {
        self.meta(META_L4PROTO, reg32(first))
            .payload(TRANSPORT_HEADER, 2, 2, reg32(first + 1))
    }

    /// The packet belongs to a connection that was accepted before.
    pub(super) fn is_established(&mut self) -> &mut Self {
        self.any_bit(CT_STATE, STATE_ESTABLISHED_RELATED)
    }

    /// The connection was made to a published port.
    pub(super) fn is_published(&mut self) -> &mut Self {
        self.any_bit(CT_STATUS, STATUS_DNAT)
    }

    /// The destination is an address of this host.
    pub(super) fn is_local(&mut self) -> &mut Self {
        self.destination_is_local(0)
    }

    /// The destination is no address of this host.
    pub(super) fn is_not_local(&mut self) -> &mut Self {
        self.destination_is_local(1)
    }

    fn destination_is_local(&mut self, operator: u32) -> &mut Self {
        self.put("fib", |a| {
            a.be32(1, REG);
            a.be32(2, FIB_RESULT_ADDRTYPE);
            a.be32(3, FIB_DADDR);
        })
        .compare(REG, operator, &RTN_LOCAL.to_ne_bytes())
    }

    /// Sends the connection to `address . port` in the registers.
    pub(super) fn dnat(&mut self, family: u8, port_register: u32) -> &mut Self {
        self.put("nat", |a| {
            a.be32(1, NAT_DNAT);
            a.be32(2, u32::from(family));
            a.be32(3, REG);
            a.be32(5, port_register);
        })
    }

    /// Takes the address of the link the packet leaves by.
    pub(super) fn masquerade(&mut self) -> &mut Self {
        self.put("masq", |_| ())
    }

    /// Connection tracking does not see the packet, and so neither does anything with addresses.
    pub(super) fn untracked(&mut self) -> &mut Self {
        self.put("notrack", |_| ())
    }

    /// Counts, as other tools' rules do.
    pub(super) fn counter(&mut self) -> &mut Self {
        self.put("counter", |a| {
            a.bytes(1, &[0; 8]);
            a.bytes(2, &[0; 8]);
        })
    }

    /// Ends the rule.
    pub(super) fn verdict(&mut self, verdict: Verdict) -> &mut Self {
        self.put("immediate", |a| {
            a.be32(1, VERDICT);
            a.nest(2, |data| {
                data.nest(2, |v| match verdict {
                    Verdict::Drop => v.be32(1, 0),
                    Verdict::Accept => v.be32(1, 1),
                    Verdict::Return => v.be32(1, (-5i32).cast_unsigned()),
                    Verdict::Jump(chain) => {
                        v.be32(1, (-3i32).cast_unsigned());
                        v.text(2, chain);
                    }
                });
            });
        })
    }
}
