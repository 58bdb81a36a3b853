//! One container's cgroup on v1, hybrid (used as v1) or v2.
//!
//! Invariants: nothing is created before everything asked for is known to be possible on this
//! host; a limit that cannot be kept is refused by its field name; removing is idempotent.
//! The device policy that most containers share sits on their parent, so that such a container
//! costs directories only.
//!
//! Must not know: images, networks, what a container runs.

mod block_io;
mod cgroup;
mod cpu;
mod detail;
mod devices;
mod dir;
mod error;
mod extra;
mod hierarchy;
mod kill;
mod memory;
mod oom;
mod policies;
mod settings;
mod stats;
mod supervisors;
pub mod systemd;
mod v1;
mod v2;

pub use cgroup::{Cgroup, CgroupMounts, Handle, HandleDir, Previous};
pub use detail::{BlockCount, CPUSET_NUMBERS, CpuSet, Detail, Usage};
pub use error::CgroupError;
pub use hierarchy::{DEFAULT_PARENT, Hierarchies, Version};
pub use oom::OomWatch;
pub use stats::Stats;
pub use supervisors::{SupervisorCgroup, supervisor_cgroup};
