//! Seccomp: `linux.seccomp` of the runtime specification compiled to a classic BPF program.
//!
//! The program checks the architecture, then finds the system call in a search tree over intervals
//! of numbers that share an answer; conditions on arguments are blocks beside the tree. A filter
//! of this shape loads in a tenth of the time of a list of comparisons, because the kernel runs it
//! once for every system call number when it is loaded.
//!
//! Architectures that a profile names and this kernel cannot run are taken and nothing is compiled
//! for them: their calls never come, and would be killed. So is x32, which kernels seldom have:
//! its calls are killed even where a profile names it, and the default profile is half as long.

mod arch;
mod assemble;
mod compile;
mod docker;
mod error;
mod rules;

pub use arch::{ARCHITECTURES, Arch};
pub use compile::{FLAGS, Filter, compile, compile_for};
pub use docker::{default_filter, default_profile, docker_profile};
pub use error::SeccompError;
pub use rules::{ACTIONS, OPERATORS};

#[cfg(test)]
mod tests;
