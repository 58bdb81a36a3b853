//! Hearing that memory ran out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::fs::inotify::{CreateFlags, WatchFlags};

use crate::cgroup::Cgroup;
use crate::dir::Dir;
use crate::{CgroupError, Version, stats};

/// Tells when memory runs out in a cgroup.
#[derive(Debug)]
pub struct OomWatch {
    /// Readable when there may be news.
    fd: OwnedFd,
    version: Version,
    dir: Dir,
    killed: u64,
}

impl OomWatch {
    /// Starts to listen; `None` without the controller.
    pub(crate) fn new(cgroup: &Cgroup) -> Result<Option<Self>, CgroupError> {
        let Some(dir) = cgroup.dir_of("memory") else {
            return Ok(None);
        };
        let (version, file) = match cgroup.version() {
            Version::V1 => (Version::V1, "memory.oom_control"),
            Version::V2 => (Version::V2, "memory.events"),
        };
        let Ok(source) = dir.open_file(file, OFlags::RDONLY) else {
            return Ok(None);
        };
        let failed = |source: std::io::Error| dir.error("listen to", file, source);
        let fd = match version {
            Version::V1 => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let event = eventfd(0, flags).map_err(|errno| failed(errno.into()))?;
                let line = format!("{} {}", event.as_raw_fd(), source.as_raw_fd());
                dir.write("cgroup.event_control", &line).map_err(failed)?;
                event
            }
            Version::V2 => {
                let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
                let notes = rustix::fs::inotify::init(flags).map_err(|e| failed(e.into()))?;
                let path = dir.path.join(file);
                rustix::fs::inotify::add_watch(&notes, &path, WatchFlags::MODIFY)
                    .map_err(|errno| failed(errno.into()))?;
                notes
            }
        };
        let dir = dir.child("").map_err(failed)?;
        let killed = stats::oom_kills(cgroup)?;
        Ok(Some(Self {
            fd,
            version,
            dir,
            killed,
        }))
    }

    /// Says, after the descriptor has become readable, whether memory ran out since the last time.
    ///
    /// # Errors
    /// When the count cannot be read.
    pub fn ran_out(&mut self) -> Result<bool, CgroupError> {
        let mut news = [0_u8; 4096];
        // What it says is only that there is something to look at.
        let heard = rustix::io::read(&self.fd, &mut news).is_ok();
        let killed = stats::oom_kills_in(&self.dir, self.version)?;
        let more = killed.is_some_and(|killed| killed > self.killed);
        self.killed = killed.unwrap_or(self.killed);
        // v1 tells also when nobody is killed because that is turned off, and when it is removed.
        Ok(more || (self.version == Version::V1 && heard && killed.is_some()))
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
