//! Networks without a bridge: links of containers on top of a link of the host, with hardware
//! addresses of their own.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use amphora_sys::netlink::NetlinkError;
use rustix::io::Errno;

use crate::address::parse_hardware_address;
use crate::attachment::Endpoint;
use crate::config::{Driver, NetworkConfig, OPTION_MTU};
use crate::create::CreateNetwork;
use crate::endpoint::{Undo, index_inside, inside};
use crate::ensure::{Host, look};
use crate::error::{NetworkError, Result, kernel, netlink};
use crate::networks::Networks;
use crate::route::{self, Macvlan};
use crate::store;

const PARENT: &str = "parent";
const MODE: &str = "macvlan_mode";
/// `MACVLAN_MODE_*`.
const MODES: [(&str, u32); 4] = [
    ("bridge", 4),
    ("private", 1),
    ("vepa", 2),
    ("passthru", PASSTHRU),
];
const PASSTHRU: u32 = 8;
/// How long the namespace of an ended container may keep its link.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// Whether the driver knows an option with this value.
pub(crate) fn knows(option: &str, value: &str) -> bool {
    match option {
        PARENT => !value.is_empty() && value.len() < 16,
        MODE => MODES.iter().any(|(name, _)| *name == value),
        _ => false,
    }
}

/// Checks what the driver needs beside its options.
pub(crate) fn check(wanted: &CreateNetwork) -> Result<()> {
    if wanted.options.contains_key(PARENT) {
        return Ok(());
    }
    Err(NetworkError::Unsupported(
        "a network of driver \"macvlan\" without -o parent= is not supported".to_owned(),
    ))
}

/// The link a network's links are on top of.
pub(crate) fn parent(config: &NetworkConfig) -> &str {
    config.options.get(PARENT).map_or("", |p| p)
}

/// The link and the number of a VLAN by the name of its link: `eth0.10`.
fn vlan(name: &str) -> Option<(&str, u16)> {
    let (on, number) = name.rsplit_once('.')?;
    let number = number.parse().ok().filter(|n| (1..4095).contains(n))?;
    (!on.is_empty()).then_some((on, number))
}

/// Tries again for a while what fails so: the kernel takes the namespace of an ended container
/// apart by and by, and its link with it.
fn patiently(
    again: Option<Errno>,
    mut act: impl FnMut() -> std::result::Result<(), NetlinkError>,
) -> std::result::Result<(), NetlinkError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match (act(), again) {
            (Err(error), Some(errno)) if error.is(errno) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            (result, _) => return result,
        }
    }
}

impl Networks {
    /// Makes a network without a bridge of ours work; the index is its parent's.
    pub(crate) fn ensure_other(
        &self,
        config: &NetworkConfig,
        host: &Host,
    ) -> Result<(NetworkConfig, u32)> {
        if config.driver != Driver::Macvlan {
            return self.make_parent(config, host);
        }
        let name = parent(config);
        let there = route::link(&host.route, name).map_err(netlink(look(name)))?;
        if let Some(link) = there {
            self.step()?;
            return Ok((config.clone(), link.index));
        }
        store::make_dir(&self.run_dir(""))?;
        let _lock = store::lock(&self.lock_path())?;
        self.make_parent(config, host)
    }

    /// The same for one that may have to be made; the caller holds the lock.
    pub(crate) fn make_parent(
        &self,
        config: &NetworkConfig,
        host: &Host,
    ) -> Result<(NetworkConfig, u32)> {
        self.step()?;
        if config.driver != Driver::Macvlan {
            let text = format!("container cannot be connected to {} network", config.name);
            return Err(NetworkError::Forbidden(text));
        }
        let name = parent(config);
        let find = |name: &str| route::link(&host.route, name).map_err(netlink(look(name)));
        let missing = |name: &str| NetworkError::NoParent(name.to_owned());
        if let Some(link) = find(name)? {
            return Ok((config.clone(), link.index));
        }
        let (on, number) = vlan(name).ok_or_else(|| missing(name))?;
        let below = find(on)?.ok_or_else(|| missing(on))?;
        let step = format!("create VLAN link \"{name}\"");
        route::add_vlan(&host.route, name, below.index, number).map_err(netlink(step))?;
        let link = find(name)?.ok_or_else(|| missing(name))?;
        Ok((config.clone(), link.index))
    }

    /// Which link of the host a new network is to have made for it, and takes away in the end.
    pub(crate) fn own_parent(&self, config: &NetworkConfig, host: &Host) -> Result<String> {
        let name = parent(config);
        let others = self.stored_all()?;
        let same = |c: &&NetworkConfig| c.driver == Driver::Macvlan && parent(c) == name;
        if let Some(other) = others.iter().find(same) {
            return Err(NetworkError::Forbidden(format!(
                "network {} is already using parent interface {name}",
                other.name
            )));
        }
        let there = route::link(&host.route, name).map_err(netlink(look(name)))?;
        Ok(if there.is_some() {
            String::new()
        } else {
            name.to_owned()
        })
    }

    /// Makes a container's link on top of a network's parent, up. Returns its index.
    pub(crate) fn link_macvlan(
        &self,
        host: &Host,
        config: &NetworkConfig,
        parent: u32,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
        undo: &mut Vec<Undo>,
    ) -> Result<u32> {
        self.step()?;
        let name = &endpoint.interface;
        let mode = config.options.get(MODE).map_or("bridge", |mode| mode);
        let mode = MODES.iter().find(|(name, _)| *name == mode);
        let fd = netns.try_clone_to_owned();
        undo.push(Undo::Inside(
            fd.map_err(kernel("hold a network namespace"))?,
            name.clone(),
        ));
        let link = Macvlan {
            name,
            netns,
            parent,
            mode: mode.map_or(4, |(_, number)| *number),
            mac: parse_hardware_address(&endpoint.mac).unwrap_or_default(),
            mtu: config
                .options
                .contains_key(OPTION_MTU)
                .then_some(config.mtu),
        };
        let step = || {
            netlink(format!(
                "create link \"{name}\" on \"{}\"",
                self::parent(config)
            ))
        };
        // A parent that is passed through has one link at a time.
        let one = (link.mode == PASSTHRU).then_some(Errno::INVAL);
        patiently(one, || route::add_macvlan(&host.route, &link)).map_err(step())?;
        let index = index_inside(netns, endpoint)?;
        let socket = inside(netns)?;
        let up = || route::link_up(&socket, index);
        patiently(Some(Errno::ADDRINUSE), up).map_err(step())?;
        Ok(index)
    }

    /// Removes the links of a network in the host; done before is fine.
    pub(crate) fn delete_links(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        if let Some(tunnel) = config.tunnel() {
            let step = format!("remove link \"{tunnel}\"");
            route::delete_link(&host.route, &tunnel).map_err(netlink(step))?;
        }
        if config.link.is_empty() {
            return Ok(());
        }
        let step = format!("remove link \"{}\"", config.link);
        route::delete_link(&host.route, &config.link).map_err(netlink(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_vlans_say_what_they_are() {
        assert_eq!(vlan("eth0.10"), Some(("eth0", 10)));
        assert_eq!(vlan("a.b.4094"), Some(("a.b", 4094)));
        for none in ["eth0", "eth0.", ".10", "eth0.0", "eth0.4095", "eth0.x"] {
            assert_eq!(vlan(none), None, "{none}");
        }
    }
}
