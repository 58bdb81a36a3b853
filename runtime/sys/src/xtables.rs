//! The kernel's old firewall tables, which nftables does not show: table `filter` of
//! `iptables-legacy` and `ip6tables-legacy`, read with `getsockopt(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const FILTER: &[u8] = b"filter";
/// `XT_TABLE_MAXNAMELEN`.
const NAME_BYTES: usize = 32;
/// `IPT_SO_GET_INFO`, the same number for IPv6.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, likewise.
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`.
const INFO_BYTES: usize = 84;
/// Where `struct ipt_get_entries` has the size, and where the rules start.
const SIZE_AT: usize = NAME_BYTES;
const ENTRIES_AT: usize = 40;
/// `hook_entry[NF_INET_FORWARD]` in the information: where the chain's first rule is.
const FORWARD_AT: usize = NAME_BYTES + 4 + 2 * 4;
/// `underflow[NF_INET_FORWARD]`: where its policy is, behind the five entries of hooks.
const POLICY_AT: usize = FORWARD_AT + 5 * 4;
const INFO_SIZE_AT: usize = INFO_BYTES - 4;
/// In a target: its name behind its size, and its verdict behind its header.
const TARGET_NAME_AT: usize = 2;
const TARGET_NAME_BYTES: usize = 29;
const VERDICT_AT: usize = 32;
/// `-NF_DROP - 1`, `-NF_ACCEPT - 1`, `XT_RETURN`; from 0 on it is where a chain begins.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;
/// Most rules that are looked at: chains may lead to the same ones over and over.
const STEPS_MAX: usize = 100_000;
/// Most chains one inside the other.
const DEPTH_MAX: usize = 64;
/// A table that keeps changing is asked for again this often.
const TRIES: usize = 4;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `iptables-legacy`.
    V4,
    /// `ip6tables-legacy`.
    V6,
}

/// Where things are in a rule (`struct ipt_entry`, `struct ip6t_entry`).
struct Layout {
    links: usize,
    /// Its flags, of which `goto` leads on for good.
    flags: usize,
    goto: u8,
    /// Where what it asks of addresses, links and protocol ends.
    questions: usize,
    target_offset: usize,
    /// Its own length: matches follow, and then the target.
    length: usize,
}

/// What a rule does with every packet.
enum Step {
    Drop,
    Accept,
    Return,
    Lead { to: usize, returns: bool },
}

/// Where a chain leaves a packet that no rule asks for.
#[derive(PartialEq, Eq)]
enum End {
    Dropped,
    Accepted,
    Back,
}

impl Family {
    /// The file that names the tables which are in use; reading a table that is not makes it.
    const fn names(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    const fn layout(self) -> Layout {
        match self {
            Self::V4 => Layout {
                links: 16,
                flags: 82,
                goto: 2,
                questions: 84,
                target_offset: 88,
                length: 112,
            },
            Self::V6 => Layout {
                links: 64,
                flags: 131,
                goto: 4,
                questions: 136,
                target_offset: 140,
                length: 168,
            },
        }
    }

    const fn level(self) -> libc::c_int {
        match self {
            Self::V4 => libc::IPPROTO_IP,
            Self::V6 => libc::IPPROTO_IPV6,
        }
    }
}

/// Table `filter` as it was read.
#[derive(Debug)]
pub struct Filter {
    family: Family,
    rules: Vec<u8>,
    forward: usize,
    policy: usize,
}

impl Filter {
    /// Reads the table of the calling thread's network namespace; `None` where it is not in use.
    /// Never makes it.
    ///
    /// # Errors
    /// What `socket(2)` and `getsockopt(2)` answer; `EAGAIN` when the table keeps changing.
    pub fn read(family: Family) -> io::Result<Option<Self>> {
        let in_use = std::fs::read(family.names()).unwrap_or_default();
        if !in_use.split(|b| *b == b'\n').any(|name| name == FILTER) {
            return Ok(None);
        }
        let domain = match family {
            Family::V4 => AddressFamily::INET,
            Family::V6 => AddressFamily::INET6,
        };
        let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        for _ in 0..TRIES {
            let mut info = named(INFO_BYTES);
            get_option(socket.as_fd(), family.level(), GET_INFO, &mut info)?;
            let size = u32_at(&info, INFO_SIZE_AT).ok_or(Errno::PROTO)?;
            let mut entries = named(ENTRIES_AT.saturating_add(usize_of(size)));
            if let Some(place) = entries.get_mut(SIZE_AT..SIZE_AT + 4) {
                place.copy_from_slice(&size.to_ne_bytes());
            }
            match get_option(socket.as_fd(), family.level(), GET_ENTRIES, &mut entries) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
                other => other?,
            }
            return Ok(Some(Self {
                family,
                rules: entries.split_off(ENTRIES_AT),
                forward: usize_of(u32_at(&info, FORWARD_AT).ok_or(Errno::PROTO)?),
                policy: usize_of(u32_at(&info, POLICY_AT).ok_or(Errno::PROTO)?),
            }));
        }
        Err(Errno::AGAIN.into())
    }

    /// Says whether chain `FORWARD` drops what its rules ask nothing of, by itself or in a chain
    /// that it leads everything to.
    #[must_use]
    pub fn drops_forwarded(&self) -> bool {
        let mut left = STEPS_MAX;
        match self.end_of(self.forward, DEPTH_MAX, &mut left) {
            End::Dropped => true,
            End::Accepted => false,
            // What comes back from the chain meets its policy.
            End::Back => {
                let policy = self
                    .rules
                    .get(self.policy..)
                    .and_then(|r| self.step(r, self.policy));
                matches!(policy, Some(Step::Drop))
            }
        }
    }

    /// Follows a chain. What makes no sense, or is too much, is taken to come back.
    fn end_of(&self, chain: usize, depth: usize, left: &mut usize) -> End {
        let layout = self.family.layout();
        let mut at = chain;
        while let Some(rule) = self.rules.get(at..).filter(|_| *left > 0) {
            *left -= 1;
            let Some(next) = u16_at(rule, layout.target_offset + 2).filter(|n| *n > 0) else {
                break;
            };
            match self.step(rule, at) {
                Some(Step::Drop) => return End::Dropped,
                Some(Step::Accept) => return End::Accepted,
                Some(Step::Return) => break,
                Some(Step::Lead { to, returns }) => {
                    let end = match depth.checked_sub(1) {
                        Some(depth) => self.end_of(to, depth, left),
                        None => End::Back,
                    };
                    if end != End::Back || !returns {
                        return end;
                    }
                }
                None => {}
            }
            at += usize::from(next);
        }
        End::Back
    }

    /// What the rule at `at` does, if it asks nothing of the packet.
    fn step(&self, rule: &[u8], at: usize) -> Option<Step> {
        let layout = self.family.layout();
        let mut questions = rule.get(..layout.questions)?.to_vec();
        let flags = std::mem::take(questions.get_mut(layout.flags)?);
        let target = usize::from(u16_at(rule, layout.target_offset)?);
        let asks = flags & !layout.goto != 0 || questions.iter().any(|byte| *byte != 0);
        if asks || target != layout.length {
            return None;
        }
        let target = rule.get(target..)?;
        let name = target.get(TARGET_NAME_AT..TARGET_NAME_AT + TARGET_NAME_BYTES)?;
        match name.split(|b| *b == 0).next()? {
            b"REJECT" => Some(Step::Drop),
            b"" => match u32_at(target, VERDICT_AT)?.cast_signed() {
                DROP => Some(Step::Drop),
                ACCEPT => Some(Step::Accept),
                RETURN => Some(Step::Return),
                to => {
                    let to = usize::try_from(to).ok()?;
                    // One that only counts leads to the next.
                    let next = usize::from(u16_at(rule, layout.target_offset + 2)?);
                    (to != at + next).then_some(Step::Lead {
                        to,
                        returns: flags & layout.goto == 0,
                    })
                }
            },
            _ => None,
        }
    }

    /// Says whether any rule is about this link, by its full name.
    #[must_use]
    pub fn names_link(&self, link: &str) -> bool {
        const LINK_BYTES: usize = 16;
        let layout = self.family.layout();
        let mut rest = self.rules.as_slice();
        loop {
            // The incoming link, then the outgoing one.
            let links = rest
                .get(layout.links..layout.links + 2 * LINK_BYTES)
                .unwrap_or_default();
            let names = |name: &[u8]| name.split(|b| *b == 0).next() == Some(link.as_bytes());
            if links.chunks(LINK_BYTES).any(names) {
                return true;
            }
            let next = u16_at(rest, layout.target_offset + 2).map_or(0, usize::from);
            match rest.get(next..) {
                Some(after) if next > 0 && !after.is_empty() => rest = after,
                _ => return false,
            }
        }
    }
}

/// A buffer that starts with the table's name.
fn named(length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    if let Some(place) = buffer.get_mut(..FILTER.len()) {
        place.copy_from_slice(FILTER);
    }
    buffer
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at.checked_add(2)?)?;
    part.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    part.try_into().ok().map(u32::from_ne_bytes)
}

/// Fills a buffer, which also holds the question.
fn get_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `buffer` and `length` live through the call, and the length is the buffer's own.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
