//! The container's name server, in the loop.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Once;

use amphora_names::{Context, NameServer, Sockets};
use amphora_sys::ns;
use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;

use crate::SupervisorError;
use crate::clock::NANOS;
use crate::server::{Init, Parts, Server, TOKEN_NAMES};
use crate::start::raise_file_limit;

/// Has the name server serve, where the container has one.
pub(crate) fn serve(
    epoll: &OwnedFd,
    parts: &mut Parts,
) -> Result<Option<Box<NameServer>>, SupervisorError> {
    let sockets = parts.names.take();
    let Some((sockets, settings)) = sockets.zip(parts.config.names.clone()) else {
        return Ok(None);
    };
    let made = NameServer::new(epoll, settings, sockets, TOKEN_NAMES);
    made.map(|server| Some(Box::new(server)))
        .map_err(|e| SupervisorError::Kernel("watch the name server", e))
}

/// Makes the sockets of a name server again, whose supervisor was killed. A container that has taken
/// the port meanwhile keeps it: it has no name server then.
pub(crate) fn reopen(parts: &Parts) -> Option<Sockets> {
    let place = parts.config.names.as_ref()?.place;
    let init = parts.init.as_ref()?;
    ns::in_netns(init.pidfd.as_fd(), || Sockets::open(place)).ok()
}

impl Server {
    pub(crate) fn names_event(&mut self, token: u64, flags: EventFlags) {
        // Queries that wait for others must not take what clients and sessions need.
        static ONCE: Once = Once::new();
        ONCE.call_once(raise_file_limit);
        self.with_names(|names, cx| names.ready(cx, token, flags));
    }

    /// Does what is due.
    pub(crate) fn names_tick(&mut self) {
        self.with_names(|names, cx| names.tick(cx));
    }

    /// Shortens a wait to what is due first.
    pub(crate) fn names_timeout(&self, timeout: Option<Timespec>) -> Option<Timespec> {
        let Some(left) = self.names.as_ref().and_then(|names| names.timeout()) else {
            return timeout;
        };
        let left = Timespec {
            tv_sec: i64::try_from(left / NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % NANOS).unwrap_or(0),
        };
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    fn with_names(&mut self, f: impl FnOnce(&mut NameServer, Context<'_>)) {
        let Some(names) = &mut self.names else {
            return;
        };
        let init: Option<&Init> = self.parts.init.as_ref();
        let cx = Context {
            epoll: &self.epoll,
            container: init.map(|init| init.pidfd.as_fd()),
        };
        f(names, cx);
    }
}
