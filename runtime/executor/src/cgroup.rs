//! What a plan takes from the container's cgroup.

use std::os::fd::OwnedFd;

use amphora_cgroup::Cgroup;

use crate::ExecutorError;

/// Descriptors by which the child gets into its cgroup.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// v2 directory for `CLONE_INTO_CGROUP`.
    pub(crate) directory: Option<OwnedFd>,
    /// v1 `tasks` files.
    pub(crate) tasks: Vec<OwnedFd>,
}

pub(crate) fn entry(cgroup: &Cgroup) -> Result<Entry, ExecutorError> {
    let directory = cgroup
        .launch_fd()
        .map(|fd| fd.try_clone_to_owned())
        .transpose();
    Ok(Entry {
        directory: directory.map_err(ExecutorError::kernel("hold the cgroup"))?,
        tasks: cgroup.tasks_fds()?,
    })
}
