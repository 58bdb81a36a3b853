//! What becomes of a packet of which no rule knows anything, on its way through a chain and those
//! that it leads to.

use std::collections::BTreeMap;

use amphora_sys::netlink::{NetlinkError, Socket, attributes};

use super::hooks::{Closed, DROP, be32, each_rule, text};

/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN`, as they are on the wire.
const JUMP: u32 = (-3_i32).cast_unsigned();
const GOTO: u32 = (-4_i32).cast_unsigned();
const RETURN: u32 = (-5_i32).cast_unsigned();
/// Deeper than the kernel follows (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: usize = 16;
/// Most chains that are looked at.
const CHAINS_MAX: usize = 64;
/// Most steps that are taken: chains may lead to the same ones over and over.
const STEPS_MAX: usize = 10_000;

/// A rule that asks nothing of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

impl Step {
    const fn target(&self) -> Option<&String> {
        match self {
            Self::Jump(to) | Self::Goto(to) => Some(to),
            Self::Drop | Self::Accept | Self::Return => None,
        }
    }
}

/// Where a chain leaves the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Dropped,
    Accepted,
    /// To whoever led here.
    Back,
}

/// The steps of a table's chains, as far as they are known.
type Chains = BTreeMap<String, Vec<Step>>;

/// Says whether a chain drops what its rules know nothing of, with the `policy` it has. Looks at
/// other chains of the table only where this one leads there.
pub(super) fn drops(socket: &Socket, at: &Closed, policy: bool) -> Result<bool, NetlinkError> {
    let mut chains = Chains::new();
    // Chain by chain: others of the table may have thousands of rules.
    let mut wanted = vec![at.chain.clone()];
    while let Some(name) = wanted.pop() {
        if chains.contains_key(&name) || chains.len() == CHAINS_MAX {
            continue;
        }
        let mut steps = Vec::new();
        each_rule(socket, at.family, &at.table, Some(&name), |rule| {
            steps.extend(step(rule));
        })?;
        wanted.extend(steps.iter().filter_map(Step::target).cloned());
        chains.insert(name, steps);
    }
    let mut left = STEPS_MAX;
    let end = end_of(&chains, &at.chain, DEPTH_MAX, &mut left);
    Ok(end == End::Dropped || (policy && end == End::Back))
}

/// Follows a chain. What is too deep or too much to follow is taken to come back.
fn end_of(chains: &Chains, chain: &str, depth: usize, left: &mut usize) -> End {
    let steps = chains.get(chain).map(Vec::as_slice).unwrap_or_default();
    for step in steps {
        if *left == 0 {
            return End::Back;
        }
        *left -= 1;
        let (to, returns) = match step {
            Step::Drop => return End::Dropped,
            Step::Accept => return End::Accepted,
            Step::Return => return End::Back,
            Step::Jump(to) => (to, true),
            Step::Goto(to) => (to, false),
        };
        let end = match depth.checked_sub(1) {
            Some(depth) => end_of(chains, to, depth, left),
            None => End::Back,
        };
        if end != End::Back || !returns {
            return end;
        }
    }
    End::Back
}

/// What a rule does, if it asks nothing of the packet.
fn step(rule: &[u8]) -> Option<Step> {
    const EXPRESSIONS: u16 = 4;
    let (_, list) = attributes(rule).find(|(kind, _)| *kind == EXPRESSIONS)?;
    for (_, expression) in attributes(list) {
        let data = attribute(expression, 2).unwrap_or_default();
        match attribute(expression, 1).and_then(text).as_deref() {
            Some("counter" | "log") => {}
            // What iptables says of a rule is a match that asks nothing.
            Some("match") if attribute(data, 1).and_then(text).as_deref() == Some("comment") => {}
            Some("reject") => return Some(Step::Drop),
            Some("immediate") => return verdict(data),
            Some("target") => {
                let target = attribute(data, 1).and_then(text);
                let drops = matches!(target.as_deref(), Some("REJECT" | "DROP"));
                return drops.then_some(Step::Drop);
            }
            _ => return None,
        }
    }
    None
}

/// The verdict that an expression `immediate` puts.
fn verdict(data: &[u8]) -> Option<Step> {
    let verdict = attribute(attribute(data, 2)?, 2)?;
    let chain = || attribute(verdict, 2).and_then(text);
    match be32(attribute(verdict, 1)?)? {
        DROP => Some(Step::Drop),
        ACCEPT => Some(Step::Accept),
        RETURN => Some(Step::Return),
        JUMP => chain().map(Step::Jump),
        GOTO => chain().map(Step::Goto),
        _ => None,
    }
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = attributes(bytes);
    all.find(|(kind, _)| *kind == wanted).map(|(_, data)| data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(chains: &[(&str, &[Step])]) -> (End, usize) {
        let chains = chains
            .iter()
            .map(|(name, steps)| ((*name).to_owned(), steps.to_vec()))
            .collect();
        let mut left = STEPS_MAX;
        (end_of(&chains, "hook", DEPTH_MAX, &mut left), left)
    }

    fn jump(to: &str) -> Step {
        Step::Jump(to.to_owned())
    }

    fn goto(to: &str) -> Step {
        Step::Goto(to.to_owned())
    }

    #[test]
    fn packets_come_back_from_jumps_and_never_behind_a_goto() {
        use Step::{Accept, Drop, Return};
        for (chains, wanted) in [
            (&[("hook", &[jump("a"), Drop][..])][..], End::Dropped),
            (&[("hook", &[goto("a"), Drop])], End::Back),
            (&[("hook", &[Accept, Drop])], End::Accepted),
            (&[("hook", &[Return, Drop])], End::Back),
            (&[("hook", &[jump("a")]), ("a", &[Drop])], End::Dropped),
            (&[("hook", &[goto("a")]), ("a", &[Drop])], End::Dropped),
            (
                &[("hook", &[jump("a"), Accept]), ("a", &[Return, Drop])],
                End::Accepted,
            ),
            (
                &[
                    ("hook", &[jump("a"), Drop]),
                    ("a", &[goto("b"), Drop]),
                    ("b", &[Accept]),
                ],
                End::Accepted,
            ),
        ] {
            assert_eq!(end(chains).0, wanted, "{chains:?}");
        }
    }

    #[test]
    fn cycles_and_thickets_end() {
        let cycle: &[(&str, &[Step])] = &[("hook", &[jump("hook"), jump("hook"), Step::Drop])];
        // Nothing of it is left, or it is found on the way back.
        assert!(end(cycle).1 < STEPS_MAX);
        let names: Vec<String> = (0..=DEPTH_MAX).map(|n| format!("c{n}")).collect();
        let twice: Vec<[Step; 3]> = names
            .iter()
            .map(|to| [jump(to), jump(to), jump(to)])
            .collect();
        let mut chains = vec![("hook", &twice[0][..])];
        for (name, steps) in names.iter().zip(&twice[1..]) {
            chains.push((name, &steps[..]));
        }
        assert_eq!(end(&chains), (End::Back, 0));
    }
}
