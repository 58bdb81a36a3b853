//! The filter of the Wasm runner, for the time when compiled code is mapped and the guest runs.
//!
//! It is a list of what is denied, because the runner is ours and so is what it calls: the filter
//! is there for the case that a guest breaks out of its sandbox. It then finds no way to start a
//! program, to make new executable memory, or to reach kernel interfaces no guest has a use for.

use amphora_spec::runtime::{Seccomp, SeccompArg, SeccompRule};

use super::compile;

const DENIED: [&str; 55] = [
    // Other programs, other processes.
    "execve",
    "execveat",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "uselib",
    // Mounts and namespaces.
    "mount",
    "umount2",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "pivot_root",
    "chroot",
    "setns",
    "unshare",
    "open_by_handle_at",
    "name_to_handle_at",
    // Large kernel interfaces.
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "fanotify_init",
    "keyctl",
    "add_key",
    "request_key",
    "modify_ldt",
    // The machine.
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
    "quotactl",
    "quotactl_fd",
    "settimeofday",
    "clock_settime",
    "sethostname",
    "setdomainname",
    "iopl",
    "ioperm",
    "syslog",
    // With READ_IMPLIES_EXEC every mapping would be executable.
    "personality",
    "vhangup",
];

const PROT_EXEC: u64 = 0x4;
const SHM_EXEC: u64 = 0o100_000;
/// The argument of `mmap`, `mprotect`, `pkey_mprotect` and `shmat` that may ask for it.
const PROTECTION: u32 = 2;

/// Returns the profile of the Wasm runner: everything but a list is allowed. Foreign
/// architectures are killed.
#[must_use]
pub fn wasm_runner_profile() -> Seccomp {
    let deny = |names: &[&str], args: Vec<SeccompArg>| SeccompRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(1),
        args,
    };
    let bit = |bit: u64| SeccompArg {
        index: PROTECTION,
        value: bit,
        value_two: bit,
        op: "SCMP_CMP_MASKED_EQ".to_owned(),
    };
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        syscalls: vec![
            deny(&DENIED, Vec::new()),
            deny(&["mmap", "mprotect", "pkey_mprotect"], vec![bit(PROT_EXEC)]),
            deny(&["shmat"], vec![bit(SHM_EXEC)]),
        ],
        ..Seccomp::default()
    }
}

/// Returns [`wasm_runner_profile`] compiled: an array of `struct sock_filter`.
///
/// # Panics
/// Never: the profile is a constant that tests go through.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "the profile is a constant that tests go through"
)]
pub fn wasm_runner_filter() -> Vec<u8> {
    compile(&wasm_runner_profile())
        .expect("the runner's profile compiles")
        .program
}
