//! What can go wrong with a network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, ErrorKind};
use amphora_sys::netlink::NetlinkError;
use rustix::io::Errno;

use crate::ports::Protocol;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No network of this name.
    #[error("network {0} not found")]
    NotFound(String),
    /// A file of ours could not be read, written or removed.
    #[error("failed to {verb} {path:?}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A network's configuration cannot be understood.
    #[error("failed to understand {path:?}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A record was written by another version.
    #[error("{path:?} is of version {found}; this amphora knows version {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// The kernel refused links, addresses, routes or rules.
    #[error("failed to {step}")]
    Netlink {
        /// What was tried, with its object.
        step: String,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// A kernel call failed.
    #[error("failed to {step}")]
    Kernel {
        /// What was tried, with its object.
        step: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A host port cannot be had.
    #[error("failed to bind host port for {address}:{}{}/{protocol}", place(.to), .to.port())]
    Bind {
        /// The host address and port.
        address: SocketAddr,
        /// Where it was to lead.
        to: SocketAddr,
        /// Its protocol.
        protocol: Protocol,
        /// Why not.
        #[source]
        source: BindFailure,
    },
    /// A container of ours has the host port.
    #[error("Bind for {address} failed: port is already allocated")]
    Allocated {
        /// The host address and port.
        address: SocketAddr,
        /// Its protocol.
        protocol: Protocol,
    },
    /// A port of SCTP, which the kernel does not know.
    #[error("cannot publish a port of sctp: this kernel has no SCTP")]
    NoSctp,
    /// Not a port that is published.
    #[error("No public port '{0}' published for {1}")]
    NotPublished(String, String),
    /// The container has no endpoint of its own.
    #[error("container {0} is in no network that ports can be published in")]
    NoEndpoint(String),
    /// Every port of a range is taken.
    #[error("all ports in the range {first}-{last}/{protocol} are allocated")]
    RangeTaken {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
        /// Protocol.
        protocol: Protocol,
    },
    /// Every address of the network is leased.
    #[error("no available IPv4 addresses on this network's address pools: {name} ({id})")]
    AddressesExhausted {
        /// The network's name.
        name: String,
        /// Its id.
        id: String,
    },
    /// Every candidate subnet overlaps a route or an address of the host.
    #[error("no available network address pool: every candidate overlaps a route of this host")]
    PoolsExhausted,
    /// The name is another network's.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// A link of that name is not ours.
    #[error("link \"{0}\" exists already, and is not amphora's")]
    LinkExists(String),
    /// A link of that name is another network's.
    #[error(
        "cannot create a network with link \"{link}\": conflicts with network {network}: networks have same bridge name"
    )]
    SameLink {
        /// The link.
        link: String,
        /// Whose it is.
        network: String,
    },
    /// What a network's links are to be on top of is not there.
    #[error("parent interface \"{0}\" was not found on the host")]
    NoParent(String),
    /// The beginning of an id fits several networks.
    #[error("network {0} is ambiguous (more than one id begins with it)")]
    Ambiguous(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not for this network.
    #[error("{0}")]
    Forbidden(String),
    /// The request is understood and not supported.
    #[error("{0}")]
    Unsupported(String),
    /// A predefined network stays.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// Another network has addresses of the subnet.
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    PoolOverlaps,
    /// Containers are in the network.
    #[error("error while removing network: network {name} has active endpoints ({endpoints})")]
    ActiveEndpoints {
        /// The network's name.
        name: String,
        /// Who.
        endpoints: String,
    },
    /// The address is another container's.
    #[error("Address already in use")]
    AddressInUse,
    /// The container is in the network already.
    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyConnected {
        /// The container.
        container: String,
        /// The network's name.
        network: String,
    },
    /// The container is not in the network.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container.
        container: String,
        /// The network's name.
        network: String,
    },
    /// A failure made by a test.
    #[error("injected failure at step {0}")]
    Injected(usize),
}

/// The container's address in front of its port, unless it leads nowhere.
fn place(to: &SocketAddr) -> String {
    let nowhere = IpAddr::from(Ipv4Addr::BROADCAST);
    if to.ip() == nowhere {
        return String::new();
    }
    format!("{}:", to.ip())
}

/// Why a host port could not be bound, in the words users know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindFailure {
    /// Somebody has it.
    #[error("address already in use")]
    InUse,
    /// The host has no such address.
    #[error("cannot assign requested address")]
    NotLocal,
    /// Something else.
    #[error(transparent)]
    Other(io::Error),
}

impl From<Errno> for BindFailure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::InUse,
            Errno::ADDRNOTAVAIL => Self::NotLocal,
            other => Self::Other(other.into()),
        }
    }
}

impl Classify for NetworkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NoParent(_) | Self::NotConnected { .. } => {
                ErrorKind::NotFound
            }
            Self::Exists(_)
            | Self::LinkExists(_)
            | Self::SameLink { .. }
            | Self::PoolOverlaps
            | Self::ActiveEndpoints { .. }
            | Self::AddressInUse
            | Self::AlreadyConnected { .. } => ErrorKind::Conflict,
            Self::Ambiguous(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Forbidden(_) | Self::Predefined(_) => ErrorKind::PermissionDenied,
            Self::File { source, .. } | Self::Kernel { source, .. } => match io_kind(source) {
                ErrorKind::NotFound | ErrorKind::Conflict => ErrorKind::Internal,
                other => other,
            },
            Self::Netlink { source, .. } => match io_kind(&source.source) {
                kind @ (ErrorKind::PermissionDenied | ErrorKind::ResourceExhausted) => kind,
                _ => ErrorKind::Internal,
            },
            Self::Config { .. } => ErrorKind::DataLoss,
            Self::Version { .. } | Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Bind { source, .. } => match source {
                BindFailure::InUse => ErrorKind::Conflict,
                BindFailure::NotLocal => ErrorKind::InvalidArgument,
                BindFailure::Other(source) => io_kind(source),
            },
            Self::RangeTaken { .. } | Self::Allocated { .. } => ErrorKind::Conflict,
            Self::NoSctp => ErrorKind::Unsupported,
            Self::NotPublished(..) => ErrorKind::NotFound,
            Self::NoEndpoint(_) => ErrorKind::FailedPrecondition,
            Self::AddressesExhausted { .. } | Self::PoolsExhausted => ErrorKind::ResourceExhausted,
            Self::Injected(_) => ErrorKind::Internal,
        }
    }
}

/// Shorthand of this crate.
pub(crate) type Result<T> = std::result::Result<T, NetworkError>;

pub(crate) fn file<E: Into<io::Error>>(
    verb: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::File {
        verb,
        path,
        source: source.into(),
    }
}

pub(crate) fn netlink(step: impl Into<String>) -> impl FnOnce(NetlinkError) -> NetworkError {
    let step = step.into();
    move |source| NetworkError::Netlink { step, source }
}

pub(crate) fn kernel<E: Into<io::Error>>(
    step: impl Into<String>,
) -> impl FnOnce(E) -> NetworkError {
    let step = step.into();
    move |source| NetworkError::Kernel {
        step,
        source: source.into(),
    }
}
