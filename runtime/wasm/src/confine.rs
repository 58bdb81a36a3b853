//! Giving up rights: what is left when a compiler or a guest takes over. Kernels without
//! Landlock run with the other walls only (namespaces, capabilities, identity).

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::filter;

/// Newest Landlock interface whose rights are used; older kernels take what they know.
const LANDLOCK: ABI = ABI::V6;
/// Identity of the compiler, which owns nothing.
const NOBODY: u32 = 65534;

fn landlock_error(error: RulesetError) -> io::Error {
    io::Error::other(error)
}

/// The compiler: no identity, no file, no network; it has its descriptors.
/// The caller must still be single-threaded.
pub(crate) fn compiler() -> io::Result<()> {
    set_no_new_privs(true)?;
    landlock_nothing().map_err(landlock_error)?;
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    amphora_sys::seccomp::load(&filter::compiler(), 0)
}

fn landlock_nothing() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// The runner: files beneath the preopened tree only, and no program may be executed.
/// The caller must still be single-threaded.
pub(crate) fn runner(root: &str) -> io::Result<()> {
    set_no_new_privs(true)?;
    landlock_tree(root).map_err(landlock_error)?;
    amphora_sys::seccomp::load(&filter::runner(), 0)
}

fn landlock_tree(root: &str) -> Result<(), RulesetError> {
    let all = AccessFs::from_all(LANDLOCK);
    let Ok(tree) = PathFd::new(root) else {
        // Nothing to preopen: then nothing is reachable either.
        return landlock_nothing();
    };
    Ruleset::default()
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(tree, all & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(())
}
