//! Networks without a bridge: links of containers on top of a link of the host.

use std::os::fd::BorrowedFd;

use crate::attachment::Endpoint;
use crate::config::{Driver, NetworkConfig};
use crate::ensure::Host;
use crate::error::{NetworkError, Result, netlink};
use crate::networks::Networks;
use crate::route;

/// Whether the driver knows an option with this value.
pub(crate) fn knows(_option: &str, _value: &str) -> bool {
    false
}

impl Networks {
    /// Makes a network without a bridge of ours work; the index is its parent's.
    pub(crate) fn ensure_other(
        &self,
        config: &NetworkConfig,
        _host: &Host,
    ) -> Result<(NetworkConfig, u32)> {
        self.step()?;
        Err(NetworkError::Unsupported(format!(
            "network driver \"{}\" is not supported",
            config.driver.as_str()
        )))
    }

    /// Makes a container's link on top of a network's parent. Returns its index.
    pub(crate) fn link_macvlan(
        &self,
        _host: &Host,
        _config: &NetworkConfig,
        _parent: u32,
        endpoint: &Endpoint,
        _netns: BorrowedFd<'_>,
    ) -> Result<u32> {
        self.step()?;
        Err(NetworkError::NotFound(endpoint.link.clone()))
    }

    /// Removes the links of a network in the host; done before is fine.
    pub(crate) fn delete_links(&self, config: &NetworkConfig, host: &Host) -> Result<()> {
        if config.driver == Driver::Bridge {
            let step = format!("remove bridge \"{}\"", config.link);
            route::delete_link(&host.route, &config.link).map_err(netlink(step))?;
        }
        Ok(())
    }
}
