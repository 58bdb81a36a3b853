//! The lookup: who is called what, on the networks that one container is on.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::overlay::{self, Overlay};
use crate::wire::{Record, kinds};

/// Most bytes read of a record.
const RECORD_MAX: u64 = 1 << 20;
/// Most containers an alias may stand for.
const HOLDERS_MAX: usize = 1024;
/// Its IPv6 addresses have no leases of their own: they go with those of IPv4.
const DEFAULT_NETWORK: &str = "bridge";
/// How networks over several hosts are called.
const OVERLAY: &str = "overlay";
/// Newest form of the endpoints' record that is known.
const ENDPOINTS_VERSION: u32 = 2;
/// Digits of a container's id, and of its short form.
const ID: usize = 64;
const SHORT_ID: usize = 12;
/// A directory that was changed less than this before it was read may change again unseen: the clock
/// of files ticks.
const SETTLED: Duration = Duration::from_secs(2);

/// The records, as seen from one container.
#[derive(Debug)]
pub struct Records {
    data: PathBuf,
    run: PathBuf,
    container: String,
    /// Names with capital letters, of a directory that has not changed since.
    capital: Option<(Stamp, Vec<String>)>,
}

type Stamp = (u64, i64, i64);

/// A place in a network.
#[derive(Debug, Clone, Deserialize)]
struct Endpoint {
    network: String,
    #[serde(default)]
    address: Option<Ipv4Addr>,
    #[serde(default)]
    prefix: u8,
    #[serde(default)]
    address6: Option<Ipv6Addr>,
    #[serde(default)]
    prefix6: u8,
    /// Nothing leads out of the network.
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    driver: String,
}

impl Endpoint {
    fn has(&self, address: IpAddr) -> bool {
        self.address.map(IpAddr::from) == Some(address)
            || self.address6.map(IpAddr::from) == Some(address)
    }

    /// The address whose lease tells who has this one in the network; `None` for an IPv6 address
    /// from elsewhere.
    fn leased(&self, address: IpAddr) -> Option<IpAddr> {
        let IpAddr::V6(v6) = address else {
            return Some(address);
        };
        let own = self.address6.filter(|_| self.prefix6 > 0)?;
        let hosts = u128::MAX.checked_shr(self.prefix6.into()).unwrap_or(0);
        if (own.to_bits() ^ v6.to_bits()) & !hosts != 0 {
            return None;
        }
        if self.network != DEFAULT_NETWORK {
            return Some(address);
        }
        let offset = u32::try_from(v6.to_bits() & hosts).ok()?;
        let own = self.address.filter(|_| self.prefix > 0)?;
        let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        let beside = Ipv4Addr::from_bits(own.to_bits() & !hosts | offset);
        (offset <= hosts).then(|| beside.into())
    }
}

#[derive(Debug, Deserialize)]
struct Endpoints {
    version: u32,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// The addresses of a name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6.
    pub v6: Vec<Ipv6Addr>,
}

impl Addresses {
    /// Whether nobody is called so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Those of a kind, or all.
    pub(crate) fn records(&self, kind: u16) -> Vec<Record> {
        let v4 = self.v4.iter().copied().map(IpAddr::from);
        let v6 = self.v6.iter().copied().map(IpAddr::from);
        let v4 = v4.filter(|_| [kinds::A, kinds::ANY].contains(&kind));
        let v6 = v6.filter(|_| [kinds::AAAA, kinds::ANY].contains(&kind));
        v4.chain(v6).map(Record::Address).collect()
    }

    pub(crate) fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.push(v4),
            IpAddr::V6(v6) => self.v6.push(v6),
        }
    }

    pub(crate) fn sort(&mut self) {
        self.v4.sort_unstable();
        self.v4.dedup();
        self.v6.sort_unstable();
        self.v6.dedup();
    }
}

impl Records {
    /// The records below data root and run root, as seen from a container.
    #[must_use]
    pub fn new(data: &Path, run: &Path, container: &str) -> Self {
        Self {
            data: data.to_owned(),
            run: run.to_owned(),
            container: container.to_owned(),
            capital: None,
        }
    }

    /// The addresses of a name: a container's, an alias, a short id, each alone or with the network's
    /// name behind it. Of several networks that know it the first one counts, in either family.
    #[must_use]
    pub fn lookup(&mut self, name: &str) -> Addresses {
        let own = self.own();
        let mut found = Addresses::default();
        for (network, name) in questions(&own, name) {
            let here = self.lookup_on(network, name);
            if found.v4.is_empty() {
                found.v4 = here.v4;
            }
            if found.v6.is_empty() {
                found.v6 = here.v6;
            }
        }
        found.sort();
        found
    }

    /// The addresses of a name on one network.
    pub(crate) fn lookup_on(&mut self, network: &str, name: &str) -> Addresses {
        let mut here = Addresses::default();
        let direct = self.direct(name);
        let aliased = self.aliased(network, name);
        for id in direct.iter().chain(&aliased) {
            let endpoints = self.endpoints(id);
            for endpoint in endpoints.iter().filter(|e| e.network == network) {
                here.v4
                    .extend(endpoint.address.filter(|a| !a.is_unspecified()));
                here.v6.extend(endpoint.address6);
            }
        }
        here.sort();
        here
    }

    /// The networks over several hosts, in their order.
    pub(crate) fn overlays(&self) -> Vec<Overlay> {
        let own = self.own();
        let own = own.iter().filter(|e| e.driver == OVERLAY);
        own.filter_map(|e| overlay::of(&self.data, &self.run, &e.network))
            .collect()
    }

    /// What other hosts are asked for a name: without a dot the whole of it, on each network, else
    /// what stands before the name of one.
    pub(crate) fn beyond(&self, name: &str) -> Vec<(Overlay, String)> {
        let own = self.own();
        let questions = questions(&own, name).into_iter();
        let within = |(network, asked): &(&str, &str)| {
            let known = own.iter().find(|e| e.network == **network);
            let over = known.is_some_and(|e| e.driver == OVERLAY);
            over && is_alias(asked) && (*asked != name || !name.contains('.'))
        };
        questions
            .filter(within)
            .filter_map(|(network, asked)| {
                let overlay = overlay::of(&self.data, &self.run, network)?;
                Some((overlay, asked.to_owned()))
            })
            .collect()
    }

    /// The name of whoever has an address, with its network's behind it.
    #[must_use]
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        self.own().iter().find_map(|own| {
            let name = self.held(own, address)?;
            Some(format!("{name}.{}", own.network))
        })
    }

    /// The name of whoever has an address on one network of its own.
    pub(crate) fn holder(&self, network: &str, address: IpAddr) -> Option<String> {
        let own = self.own();
        self.held(own.iter().find(|e| e.network == network)?, address)
    }

    fn held(&self, own: &Endpoint, address: IpAddr) -> Option<String> {
        let leased = own.leased(address)?;
        let leases = self.run.join("networks").join(&own.network).join("leases");
        let id = claimed(&leases, &leased.to_string())?;
        let has = |e: &Endpoint| e.network == own.network && e.has(address);
        if !self.endpoints(&id).iter().any(has) {
            return None;
        }
        let config = self.data.join("containers").join(&id).join("config.json");
        read_json::<Named>(&config).map(|named| named.name)
    }

    /// Whether names of others may be asked for outside: not from internal networks alone.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.own().iter().any(|endpoint| !endpoint.internal)
    }

    fn own(&self) -> Vec<Endpoint> {
        self.endpoints(&self.container)
    }

    fn endpoints(&self, id: &str) -> Vec<Endpoint> {
        let path = self.run.join("containers").join(id).join("endpoint");
        let Some(bytes) = read(&path) else {
            return Vec::new();
        };
        match serde_json::from_slice::<Endpoints>(&bytes) {
            Ok(all) if all.version <= ENDPOINTS_VERSION => all.endpoints,
            Ok(_) => Vec::new(),
            // The first form: one place.
            Err(_) => serde_json::from_slice(&bytes).into_iter().collect(),
        }
    }

    /// The container of this name or short id.
    fn direct(&mut self, name: &str) -> Option<String> {
        if !is_name(name) {
            return None;
        }
        let names = self.data.join("names");
        let lower = name.to_ascii_lowercase();
        let named = claimed(&names, name).or_else(|| claimed(&names, &lower));
        let named = named.or_else(|| {
            let capital = self.capital(&names);
            let same = capital.iter().find(|n| n.eq_ignore_ascii_case(name))?;
            claimed(&names, same)
        });
        named.or_else(|| self.by_id(&lower))
    }

    /// Names with capital letters are listed, once for every change of their directory.
    fn capital(&mut self, names: &Path) -> &[String] {
        let now = fs::metadata(names).ok();
        let stamp = now.as_ref().map(|m| (m.ino(), m.mtime(), m.mtime_nsec()));
        let known = self.capital.as_ref().map(|(stamp, _)| *stamp);
        if known.is_none() || known != stamp {
            let list = fs::read_dir(names).into_iter().flatten().flatten();
            let list = list.filter_map(|e| e.file_name().into_string().ok());
            let list = list.filter(|n| n.bytes().any(|c| c.is_ascii_uppercase()));
            let list: Vec<String> = list.collect();
            let settled = now
                .as_ref()
                .and_then(|m| m.modified().ok())
                .is_some_and(|at| {
                    SystemTime::now()
                        .duration_since(at)
                        .is_ok_and(|age| age > SETTLED)
                });
            let unsure = (0, 0, 0);
            self.capital = Some((stamp.filter(|_| settled).unwrap_or(unsure), list));
        }
        self.capital.as_ref().map_or(&[], |(_, list)| list)
    }

    /// The container whose id begins so.
    fn by_id(&self, prefix: &str) -> Option<String> {
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if prefix.len() < SHORT_ID || !prefix.bytes().all(digits) {
            return None;
        }
        let mut all = fs::read_dir(self.run.join("containers")).ok()?.flatten();
        all.find_map(|entry| {
            let id = entry.file_name().into_string().ok()?;
            (is_id(&id) && id.starts_with(prefix)).then_some(id)
        })
    }

    /// The containers that have this alias on a network.
    fn aliased(&self, network: &str, alias: &str) -> Vec<String> {
        if !is_alias(alias) {
            return Vec::new();
        }
        let network = self.run.join("networks").join(network);
        let path = network.join("aliases").join(alias.to_ascii_lowercase());
        let all = fs::read_dir(path).into_iter().flatten().flatten();
        let ids = all.filter_map(|entry| entry.file_name().into_string().ok());
        ids.filter(|id| is_id(id)).take(HOLDERS_MAX).collect()
    }
}

/// What is looked for on which network: the whole name on each, then what stands before the name of
/// one on that.
fn questions<'a>(own: &'a [Endpoint], name: &'a str) -> Vec<(&'a str, &'a str)> {
    let whole = own.iter().map(|e| (e.network.as_str(), name));
    let within = own.iter().filter_map(|e| {
        let at = name.len().checked_sub(e.network.len())?;
        let (before, network) = (name.get(..at)?, name.get(at..)?);
        let before = before.strip_suffix('.').filter(|b| !b.is_empty())?;
        network
            .eq_ignore_ascii_case(&e.network)
            .then_some((e.network.as_str(), before))
    });
    whole.chain(within).collect()
}

/// Whom the link of a name, or of an address, leads to.
fn claimed(names: &Path, name: &str) -> Option<String> {
    let target = fs::read_link(names.join(name)).ok()?;
    target.to_str().filter(|id| is_id(id)).map(str::to_owned)
}

/// Whether this may be the name of a container, and so of a file.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_alias(text)
}

/// Whether this may be an alias, and so the name of a directory.
fn is_alias(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(fits)
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|c| c.is_ascii_hexdigit())
}

pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    let got = file.take(RECORD_MAX).read_to_end(&mut bytes).ok()?;
    (u64::try_from(got).ok()? < RECORD_MAX).then_some(bytes)
}

pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read(path)?).ok()
}
