//! Device programs that are loaded already.
//!
//! To load one costs the kernel a third of a millisecond, a tenth of a container's start, and most
//! containers of a host ask for one of a few policies. Each is kept by attaching it to an empty
//! cgroup named after what it says; whoever can write there could as well write to the containers'.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::bpf;
use rustix::fs::fstat;

use crate::devices::Policy;
use crate::dir::Dir;

/// Policies that are kept. A directory has two links more than it has directories.
const KEPT_MAX: u64 = 32 + 2;
/// A policy with a longer name is loaded each time.
const NAME_MAX: usize = 200;

/// Returns a policy's program: the one that is kept below `root/parent`, or a new one, which is then
/// kept for the next.
///
/// # Errors
/// What loading a program answers; that it cannot be kept is none.
pub(crate) fn program(root: &Dir, parent: &str, policy: &Policy) -> io::Result<OwnedFd> {
    let name = policy.name();
    let path = format!("{parent}/{name}");
    if name.len() <= NAME_MAX
        && let Ok(dir) = root.child(&path)
        && let Ok(Some(program)) = bpf::own_device_program(dir.fd.as_fd())
    {
        return Ok(program);
    }
    let program = bpf::load_device_program(&policy.program())?;
    if name.len() <= NAME_MAX && room(root, parent) {
        // Two that do this at once leave two equal programs.
        let kept = root.make_all(&path);
        let _ = kept.map(|dir| bpf::attach_device_program(dir.fd.as_fd(), program.as_fd()));
    }
    Ok(program)
}

#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::useless_conversion, reason = "a u32 on other architectures")
)]
fn room(root: &Dir, parent: &str) -> bool {
    let links = |dir: Dir| fstat(&dir.fd).map(|stat| u64::from(stat.st_nlink));
    root.child(parent)
        .map_or(true, |dir| links(dir).is_ok_and(|links| links < KEPT_MAX))
}
