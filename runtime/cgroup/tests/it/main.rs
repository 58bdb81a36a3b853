//! Real cgroups, as root: v1 as this host mounts it, v2 wherever a cgroup2 is mounted.

#[cfg(test)]
mod limits;
#[cfg(test)]
mod support;
mod v1;
mod v2;
