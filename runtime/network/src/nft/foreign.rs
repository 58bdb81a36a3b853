//! Other engines' filter tables: a packet dropped in one table is lost whatever ours says.
//!
//! Docker asks others to say what they need in the chain `DOCKER-USER`; there our bridges are
//! accepted, and taken out again when nothing of ours runs.

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use rustix::io::Errno;

use amphora_sys::wire::{Batch, F_CREATE};

use super::expressions::{Expressions, META_IIFNAME, META_OIFNAME, Verdict};
use super::hooks::each_rule;
use super::{Family, Transaction, Verb, kind, question};

const FILTER: &str = "filter";
const USER_CHAIN: &str = "DOCKER-USER";
/// Marks rules as ours: a comment in the form the `nft` program shows.
const MARK: &[u8] = b"\x00\x08amphora\x00";
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// Chains that take part in forwarding, as other tools name them.
pub(super) const FORWARD_CHAINS: [(Family, &str); 4] = [
    (Family::Ip, "FORWARD"),
    (Family::Ip6, "FORWARD"),
    (Family::Inet, "forward"),
    (Family::Inet, "FORWARD"),
];

/// A chain of a table `filter` that drops what none of its rules decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropping {
    pub(crate) family: Family,
    pub(crate) chain: &'static str,
}

/// What of other engines and firewalls bears on our bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Families with a chain `DOCKER-USER`: there we can be accepted.
    pub(crate) user_chains: Vec<Family>,
    /// Chains that drop, where nobody offers us a chain.
    pub(crate) dropping: Vec<Dropping>,
}

/// Looks at the filter tables, in one exchange with the kernel.
pub(crate) fn look(socket: &Socket) -> Result<Foreign, NetlinkError> {
    const NAME: u16 = 3;
    const POLICY: u16 = 5;
    const DROP: u32 = 0;
    let users = FAMILIES.map(|family| (family, USER_CHAIN));
    let mut batch = Batch::default();
    for (family, name) in users.into_iter().chain(FORWARD_CHAINS) {
        batch.message(kind(Verb::GetChain), 0, &[family as u8, 0, 0, 0], |a| {
            a.text(1, FILTER);
            a.text(NAME, name);
        });
    }
    let mut found = Foreign::default();
    let answer = socket.request(&batch.finish(), &mut |m| {
        let Some(family) = m.payload.first() else {
            return;
        };
        let (mut name, mut policy) = (None, None);
        for (kind, data) in attributes(m.payload.get(4..).unwrap_or_default()) {
            match kind {
                NAME => name = data.strip_suffix(b"\0"),
                POLICY => policy = data.try_into().ok().map(u32::from_be_bytes),
                _ => {}
            }
        }
        let is =
            |(of, chain): &(Family, &str)| *of as u8 == *family && name == Some(chain.as_bytes());
        if let Some((family, _)) = users.into_iter().find(is) {
            found.user_chains.push(family);
        } else if let Some((family, chain)) = FORWARD_CHAINS.into_iter().find(is)
            && policy == Some(DROP)
        {
            found.dropping.push(Dropping { family, chain });
        }
    });
    match answer {
        // Those that are not there are refused one by one.
        Err(error) if !error.is(Errno::NOENT) => return Err(error),
        _ => {}
    }
    let Foreign {
        user_chains,
        dropping,
    } = &mut found;
    dropping.retain(|chain| !user_chains.contains(&chain.family));
    Ok(found)
}

/// Says whether a rule of a chain is about this link, by its full name.
pub(crate) fn names_link(
    socket: &Socket,
    chain: Dropping,
    link: &str,
) -> Result<bool, NetlinkError> {
    let mut name = link.as_bytes().to_vec();
    name.push(0);
    let mut found = false;
    each_rule(socket, chain.family, FILTER, Some(chain.chain), |rule| {
        found |= rule.windows(name.len()).any(|part| part == name);
    })?;
    Ok(found)
}

/// Says whether a chain of table `filter` is there and, if so, whether a rule of it is about this
/// link.
pub(crate) fn chain_names_link(
    socket: &Socket,
    family: Family,
    chain: &'static str,
    link: &str,
) -> Result<Option<bool>, NetlinkError> {
    let ask = question(Verb::GetChain, family, 0, |a| {
        a.text(1, FILTER);
        a.text(3, chain);
    });
    match socket.request(&ask.finish(), &mut |_| ()) {
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => names_link(socket, Dropping { family, chain }, link).map(Some),
    }
}

/// A rule of ours: its handle and all of it.
type OurRule = (Vec<u8>, Vec<u8>);

/// Lists our rules in `DOCKER-USER`.
fn our_rules(socket: &Socket, family: Family) -> Result<Vec<OurRule>, NetlinkError> {
    const HANDLE: u16 = 3;
    const USERDATA: u16 = 7;
    let mut handles = Vec::new();
    each_rule(socket, family, FILTER, Some(USER_CHAIN), |rule| {
        let (mut handle, mut ours) = (None, false);
        for (kind, data) in attributes(rule) {
            match kind {
                HANDLE => handle = Some(data.to_vec()),
                USERDATA => ours = data == MARK,
                _ => {}
            }
        }
        if ours {
            handles.extend(handle.map(|handle| (handle, rule.to_vec())));
        }
    })?;
    Ok(handles)
}

/// Accepts the bridges in chain `DOCKER-USER` of these families. Done already, it does nothing.
pub(crate) fn accept_bridges(
    socket: &Socket,
    families: &[Family],
    links: &[&str],
) -> Result<(), NetlinkError> {
    for family in families.iter().copied() {
        let old = our_rules(socket, family)?;
        let named = |link: &&str| {
            let name = format!("{link}\0").into_bytes();
            old.iter()
                .any(|(_, r)| r.windows(name.len()).any(|part| part == name))
        };
        if old.len() == 2 * links.len() && links.iter().all(named) {
            continue;
        }
        let mut transaction = Transaction::new();
        remove_rules(&mut transaction, family, &old);
        for link in links {
            for key in [META_OIFNAME, META_IIFNAME] {
                // Without NLM_F_APPEND the rule goes to the head of the chain.
                transaction.put(Verb::NewRule, family, F_CREATE, |a| {
                    a.text(1, FILTER);
                    a.text(2, USER_CHAIN);
                    a.nest(4, |list| {
                        Expressions(list)
                            .link_is(key, link)
                            .counter()
                            .verdict(Verdict::Accept);
                    });
                    a.bytes(7, MARK);
                });
            }
        }
        match socket.transact(&transaction.finish()) {
            // The chain went away between the look and the deed.
            Err(error) if error.is(Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Takes our rules out of `DOCKER-USER`.
pub(crate) fn forget_bridges(socket: &Socket) -> Result<(), NetlinkError> {
    for family in FAMILIES {
        let old = our_rules(socket, family)?;
        if old.is_empty() {
            continue;
        }
        let mut transaction = Transaction::new();
        remove_rules(&mut transaction, family, &old);
        match socket.transact(&transaction.finish()) {
            Err(error) if error.is(Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

fn remove_rules(transaction: &mut Transaction, family: Family, rules: &[OurRule]) {
    for (handle, _) in rules {
        transaction.put(Verb::DeleteRule, family, 0, |a| {
            a.text(1, FILTER);
            a.text(2, USER_CHAIN);
            a.bytes(3, handle);
        });
    }
}
