//! Other engines' filter tables: a packet dropped in one table is lost whatever ours says.
//!
//! Docker asks others to say what they need in the chain `DOCKER-USER`; there our bridges are
//! accepted, and taken out again when nothing of ours runs.

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use rustix::io::Errno;

use crate::wire::F_CREATE;
use crate::wire::F_DUMP;

use super::expressions::{Expressions, META_IIFNAME, META_OIFNAME, Verdict};
use super::{Family, Transaction, Verb, kind, question};

const FILTER: &str = "filter";
const USER_CHAIN: &str = "DOCKER-USER";
/// Marks rules as ours: a comment in the form the `nft` program shows.
const MARK: &[u8] = b"\x00\x08amphora\x00";
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// What stands in the way of our bridges in table `ip filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForeignFilter {
    /// Nothing.
    None,
    /// `DOCKER-USER` is there: we can be accepted.
    UserChain,
    /// `FORWARD` drops by default and nobody offers a chain.
    DropsForwarded,
}

/// Looks at one family's filter table.
pub(crate) fn foreign_filter(
    socket: &Socket,
    family: Family,
) -> Result<ForeignFilter, NetlinkError> {
    if chain_policy(socket, family, USER_CHAIN)?.is_some() {
        return Ok(ForeignFilter::UserChain);
    }
    Ok(match chain_policy(socket, family, "FORWARD")? {
        Some(Some(0)) => ForeignFilter::DropsForwarded,
        _ => ForeignFilter::None,
    })
}

/// The chain's policy (0 drop, 1 accept) where it is a base chain; `None` without the chain.
fn chain_policy(
    socket: &Socket,
    family: Family,
    name: &str,
) -> Result<Option<Option<u32>>, NetlinkError> {
    const POLICY: u16 = 5;
    let ask = question(Verb::GetChain, family, 0, |a| {
        a.text(1, FILTER);
        a.text(3, name);
    });
    let mut policy = None;
    let answer = socket.request(&ask.finish(), &mut |m| {
        let mut found = attributes(m.payload.get(4..).unwrap_or_default());
        policy = found
            .find(|(kind, _)| *kind == POLICY)
            .and_then(|(_, data)| data.try_into().ok().map(u32::from_be_bytes));
    });
    match answer {
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(policy)),
    }
}

/// Lists the handles of our rules in `DOCKER-USER`.
fn our_rules(socket: &Socket, family: Family) -> Result<Vec<Vec<u8>>, NetlinkError> {
    const HANDLE: u16 = 3;
    const USERDATA: u16 = 7;
    let ask = question(Verb::GetRule, family, F_DUMP, |a| {
        a.text(1, FILTER);
        a.text(2, USER_CHAIN);
    });
    let mut handles = Vec::new();
    let answer = socket.request(&ask.into_bytes(), &mut |m| {
        if m.kind != kind(Verb::NewRule) {
            return;
        }
        let (mut handle, mut ours) = (None, false);
        for (kind, data) in attributes(m.payload.get(4..).unwrap_or_default()) {
            match kind {
                HANDLE => handle = Some(data.to_vec()),
                USERDATA => ours = data == MARK,
                _ => {}
            }
        }
        if ours {
            handles.extend(handle);
        }
    });
    match answer {
        Err(error) if error.is(Errno::NOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(handles),
    }
}

/// Accepts the bridges in `DOCKER-USER`, where that chain exists. Done already, it does nothing.
pub(crate) fn accept_bridges(socket: &Socket, links: &[&str]) -> Result<(), NetlinkError> {
    for family in FAMILIES {
        if chain_policy(socket, family, USER_CHAIN)?.is_none() {
            continue;
        }
        let old = our_rules(socket, family)?;
        if old.len() == 2 * links.len() {
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

fn remove_rules(transaction: &mut Transaction, family: Family, handles: &[Vec<u8>]) {
    for handle in handles {
        transaction.put(Verb::DeleteRule, family, 0, |a| {
            a.text(1, FILTER);
            a.text(2, USER_CHAIN);
            a.bytes(3, handle);
        });
    }
}
