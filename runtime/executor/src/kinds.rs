//! Kinds of namespaces, by the kernel's flags (`CLONE_NEW*`) and the specification's names.

pub(crate) const CLONE_NEWTIME: i32 = 0x80;
pub(crate) const CLONE_NEWNS: i32 = 0x0002_0000;
pub(crate) const CLONE_NEWCGROUP: i32 = 0x0200_0000;
pub(crate) const CLONE_NEWUTS: i32 = 0x0400_0000;
pub(crate) const CLONE_NEWIPC: i32 = 0x0800_0000;
pub(crate) const CLONE_NEWPID: i32 = 0x2000_0000;
pub(crate) const CLONE_NEWNET: i32 = 0x4000_0000;

/// What is joined of a running container, beside the pid namespace, which is for children, and those
/// that few containers have.
pub(crate) const JOINED_NAMESPACES: i32 =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;

/// The kind with a name of the specification's, but that of users; `None`: there is no such kind.
pub(crate) fn of(name: &str) -> Option<i32> {
    Some(match name {
        "network" => CLONE_NEWNET,
        "pid" => CLONE_NEWPID,
        "mount" => CLONE_NEWNS,
        "ipc" => CLONE_NEWIPC,
        "uts" => CLONE_NEWUTS,
        "cgroup" => CLONE_NEWCGROUP,
        "time" => CLONE_NEWTIME,
        _ => return None,
    })
}

/// The same as a flag of `clone3` and `unshare`.
pub(crate) const fn flag(kind: i32) -> u64 {
    kind.cast_unsigned() as u64
}
