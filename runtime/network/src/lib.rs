//! Networks: a container gets a namespace, an address and published ports as values, before it
//! is launched.
//!
//! Invariants: netlink only, nothing is shelled out to; one nftables table with constant rules
//! and one element per published port; every step may be repeated, and a failed attach leaves
//! nothing; what a container holds is on record before it is made. The bridge, the table and the
//! settings stay when the last container leaves (making them again costs more than keeping them)
//! until [`Networks::teardown_all`]; only rules in other engines' chains leave at once.
//!
//! Every function works in the network namespace of the calling thread, and moves that thread
//! for a moment; a threaded process must not call `attach` or `none` where others rely on it.
//!
//! This crate knows nothing of images, mounts, processes or supervisors.

mod address;
mod attachment;
mod config;
mod conntrack;
mod create;
mod endpoint;
mod ensure;
mod error;
pub mod files;
mod firewall;
mod lease;
mod live;
mod macvlan;
mod more_bridges;
mod networks;
mod nft;
mod overlay;
mod port_spec;
mod ports;
mod publish;
mod route;
mod store;
mod sysctl;
#[cfg(feature = "testing")]
mod testing;

pub use address::{Subnet, SubnetError, hardware_address, hardware_text, parse_hardware_address};
pub use attachment::NetworkAttachment;
pub use config::{DEFAULT_NETWORK, Driver, IpamConfig, NetworkConfig, NetworkSettings, PREDEFINED};
pub use create::CreateNetwork;
pub use endpoint::{AttachRequest, Attachment, Claim, Endpoint, loopback_up, none};
pub use error::{BindFailure, NetworkError};
pub use firewall::Firewall;
pub use live::{ConnectRequest, Reached, Tell};
pub use networks::{Networks, is_default};
pub use overlay::Overlay;
pub use port_spec::{PortSpecError, parse_port_spec};
pub use ports::{Listener, PortRequest, Protocol, PublishedPort};
pub use publish::PortChange;
pub use sysctl::Change;
