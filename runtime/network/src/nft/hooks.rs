//! Forward hooks of any table: a packet that one of them drops is lost whatever others say.

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use amphora_sys::wire::F_DUMP;
use rustix::io::Errno;

use super::foreign::FORWARD_CHAINS;
use super::{Family, TABLE, Verb, kind, question, walk};

const TABLE_NAME: u16 = 1;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`.
pub(super) const DROP: u32 = 0;

/// A chain in the forward hook that drops what none of its rules accepts, by its policy, or by a
/// rule in it or in a chain that it leads everything to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) family: Family,
    pub(crate) table: String,
    pub(crate) chain: String,
}

struct Hooked {
    at: Closed,
    drops: bool,
}

/// Lists the closed chains of every table but ours; without those that [`super::look`] sees, where
/// it is their policy that drops.
pub(crate) fn closed(socket: &Socket) -> Result<Vec<Closed>, NetlinkError> {
    let ask = question(Verb::GetChain, Family::All, F_DUMP, |_| ());
    let mut hooked = Vec::new();
    socket.request(&ask.into_bytes(), &mut |m| {
        if m.kind == kind(Verb::NewChain) {
            hooked.extend(read(m.payload));
        }
    })?;
    let mut found = Vec::new();
    for Hooked { at, drops } in hooked {
        let seen = at.table == "filter" && FORWARD_CHAINS.contains(&(at.family, at.chain.as_str()));
        if !(drops && seen) && walk::drops(socket, &at, drops)? {
            found.push(at);
        }
    }
    Ok(found)
}

fn read(payload: &[u8]) -> Option<Hooked> {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    let families = [Family::Inet, Family::Ip, Family::Ip6];
    let family = *payload.first()?;
    let family = families.into_iter().find(|f| *f as u8 == family)?;
    let (mut table, mut chain) = (None, None);
    let (mut hook, mut policy) = (None, None);
    for (kind, data) in attributes(payload.get(4..)?) {
        match kind {
            TABLE_NAME => table = text(data),
            NAME => chain = text(data),
            HOOK => {
                hook = attributes(data)
                    .find(|(k, _)| *k == 1)
                    .and_then(|(_, d)| be32(d));
            }
            POLICY => policy = be32(data),
            _ => {}
        }
    }
    let table = table.filter(|name| name != TABLE)?;
    (hook? == FORWARD).then_some(Hooked {
        at: Closed {
            family,
            table,
            chain: chain?,
        },
        drops: policy == Some(DROP),
    })
}

/// Says whether a rule of the table is about this link, by its full name.
pub(crate) fn names(socket: &Socket, at: &Closed, link: &str) -> Result<bool, NetlinkError> {
    let mut name = link.as_bytes().to_vec();
    name.push(0);
    let mut found = false;
    each_rule(socket, at.family, &at.table, None, |rule| {
        found |= rule.windows(name.len()).any(|part| part == name);
    })?;
    Ok(found)
}

/// Says whether the table has a rule in a chain of which `which` holds.
pub(crate) fn has_rule(
    socket: &Socket,
    at: &Closed,
    which: impl Fn(&str) -> bool,
) -> Result<bool, NetlinkError> {
    const CHAIN: u16 = 2;
    let mut found = false;
    each_rule(socket, at.family, &at.table, None, |rule| {
        let chain = attributes(rule).find(|(kind, _)| *kind == CHAIN);
        found |= chain
            .and_then(|(_, name)| text(name))
            .is_some_and(|name| which(&name));
    })?;
    Ok(found)
}

/// Gives the attributes of every rule of a table, or of one chain; none where it is not there.
pub(super) fn each_rule(
    socket: &Socket,
    family: Family,
    table: &str,
    chain: Option<&str>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), NetlinkError> {
    let ask = question(Verb::GetRule, family, F_DUMP, |a| {
        a.text(TABLE_NAME, table);
        if let Some(chain) = chain {
            a.text(2, chain);
        }
    });
    let answer = socket.request(&ask.into_bytes(), &mut |m| {
        if m.kind == kind(Verb::NewRule) {
            each(m.payload.get(4..).unwrap_or_default());
        }
    });
    match answer {
        Err(error) if error.is(Errno::NOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn be32(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_be_bytes)
}

pub(super) fn text(data: &[u8]) -> Option<String> {
    String::from_utf8(data.strip_suffix(b"\0")?.to_vec()).ok()
}
