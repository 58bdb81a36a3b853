//! Kernel calls with safe signatures; the only crate with `unsafe`.
#![expect(
    unsafe_code,
    reason = "the one crate that talks to the kernel beneath rustix"
)]

pub mod arena;
pub mod base;
pub mod bpf;
pub mod channel;
mod child;
mod child_fs;
mod child_ns;
mod child_properties;
pub mod copy;
pub mod datagram;
pub mod datagram6;
pub mod inherited;
pub mod init;
pub mod launch;
pub mod mount;
pub mod netlink;
pub mod ns;
pub mod pidfd;
pub mod plan;
pub mod process;
pub mod properties;
mod raw;
pub mod seccomp;
pub mod signal;
pub mod sitter;
pub mod supervise;
pub mod tree;
pub mod userns;
mod walk;
pub mod wire;
pub mod xattr;
pub mod xtables;

pub use launch::{LaunchError, Launched, launch};
pub use plan::{FdSlot, LaunchPlan, Op};
