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
/// `underflow[NF_INET_FORWARD]` in the information: where the chain's policy is.
const FORWARD_POLICY_AT: usize = NAME_BYTES + 4 + 5 * 4 + 2 * 4;
const INFO_SIZE_AT: usize = INFO_BYTES - 4;
/// The verdict lies after the target's header.
const VERDICT_AT: usize = 32;
/// `-NF_DROP - 1`.
const DROP: i32 = -1;
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
    target_offset: usize,
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
                target_offset: 88,
            },
            Self::V6 => Layout {
                links: 64,
                target_offset: 140,
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
    forward_policy: usize,
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
                forward_policy: usize_of(u32_at(&info, FORWARD_POLICY_AT).ok_or(Errno::PROTO)?),
            }));
        }
        Err(Errno::AGAIN.into())
    }

    /// Says whether chain `FORWARD` drops what none of its rules decides.
    #[must_use]
    pub fn drops_forwarded(&self) -> bool {
        let rule = self.rules.get(self.forward_policy..).unwrap_or_default();
        let target = u16_at(rule, self.family.layout().target_offset).map_or(0, usize::from);
        u32_at(rule, target + VERDICT_AT).map(u32::cast_signed) == Some(DROP)
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
