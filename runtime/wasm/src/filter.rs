//! The last wall: system calls that neither a runner nor a compiler makes. Anything else a guest
//! could only reach by breaking out of Wasm; then it finds no way to new code, new programs, or
//! privileged corners of the kernel. It stands in place of the filter a Linux container gets.

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// First number of the x32 interface, whose calls would pass a filter by number.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const PROT_EXEC: u32 = 4;

// Offsets in `struct seccomp_data`; arguments by their lower half (little-endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARG_0: u32 = 16;
const ARG_2: u32 = 32;

// Classic BPF.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `kexec_file_load(2)`, which libc has for some architectures only.
const KEXEC_FILE_LOAD: libc::c_long = if cfg!(target_arch = "aarch64") {
    294
} else {
    320
};

/// Refused with `EPERM` to both.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
    // With SHM_EXEC a segment is executable memory.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_syslog,
];

/// Refused to the compiler as well: it talks to nobody.
const NO_NETWORK: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
];

/// The filter of a runner whose code is in place: no more executable memory. Threads may be made
/// (names are looked up on one), processes not.
pub(crate) fn runner() -> Vec<u8> {
    build(&[DENIED])
}

/// The filter of the compiler.
pub(crate) fn compiler() -> Vec<u8> {
    build(&[DENIED, NO_NETWORK])
}

fn build(denied: &[&[libc::c_long]]) -> Vec<u8> {
    let refuse = ERRNO | libc::EPERM.cast_unsigned();
    let mut cases = Vec::new();
    for &number in denied.iter().copied().flatten() {
        cases.push((number, Code::default().with(RETURN, 0, 0, refuse)));
    }
    // Its arguments are in memory, out of a filter's reach; libcs then use `clone`.
    let unknown = ERRNO | libc::ENOSYS.cast_unsigned();
    cases.push((
        libc::SYS_clone3,
        Code::default().with(RETURN, 0, 0, unknown),
    ));
    for number in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        cases.push((number, Code::unless(ARG_2, PROT_EXEC, ALLOW, refuse)));
    }
    let thread = libc::CLONE_THREAD.cast_unsigned();
    cases.push((libc::SYS_clone, Code::unless(ARG_0, thread, refuse, ALLOW)));
    cases.sort_by_key(|(number, _)| *number);

    let mut code = Code::default()
        .with(LOAD, 0, 0, ARCH)
        .with(JUMP_EQUAL, 1, 0, AUDIT_ARCH)
        .with(RETURN, 0, 0, refuse)
        .with(LOAD, 0, 0, NUMBER);
    #[cfg(target_arch = "x86_64")]
    {
        code = code
            .with(JUMP_AT_LEAST, 0, 1, X32)
            .with(RETURN, 0, 0, refuse);
    }
    code.0.extend(tree(&cases).0);
    code.0
}

/// A search tree over the sorted numbers: the kernel walks it once for every system call there
/// is when it loads the filter.
fn tree(cases: &[(libc::c_long, Code)]) -> Code {
    const LEAF: usize = 3;
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    if cases.len() <= LEAF {
        let mut code = Code::default();
        for (case, body) in cases {
            code = code.with(JUMP_EQUAL, 0, body.len(), number(*case));
            code.0.extend_from_slice(&body.0);
        }
        return code.with(RETURN, 0, 0, ALLOW);
    }
    let (low, high) = cases.split_at(cases.len() / 2);
    let middle = high.first().map_or(u32::MAX, |(case, _)| number(*case));
    let low = tree(low);
    let mut code = Code::default().with(JUMP_AT_LEAST, low.len(), 0, middle);
    code.0.extend(low.0);
    code.0.extend(tree(high).0);
    code
}

/// An array of `struct sock_filter`.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn with(mut self, code: u16, jump_true: u8, jump_false: u8, value: u32) -> Self {
        self.0.extend_from_slice(&code.to_ne_bytes());
        self.0.extend_from_slice(&[jump_true, jump_false]);
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Answers `clear` when none of the bits is set in an argument, else `set`.
    fn unless(argument: u32, bits: u32, clear: u32, set: u32) -> Self {
        Self::default()
            .with(LOAD, 0, 0, argument)
            .with(JUMP_BITS, 0, 1, bits)
            .with(RETURN, 0, 0, set)
            .with(RETURN, 0, 0, clear)
    }

    /// Number of instructions, a jump's distance; the lists above keep it far below the limit.
    fn len(&self) -> u8 {
        u8::try_from(self.0.len() / amphora_sys::seccomp::INSN_LEN).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, which a filter does not outlive.
    fn under(filter: Vec<u8>, body: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            amphora_sys::seccomp::load(&filter, 0).unwrap();
            body();
        });
        thread.join().unwrap();
    }

    /// Interprets a filter for one call.
    fn answer(filter: &[u8], number: libc::c_long, arguments: [u32; 3]) -> u32 {
        let insns = filter.chunks_exact(8).collect::<Vec<_>>();
        let (mut at, mut value) = (0, 0);
        for _ in 0..insns.len() {
            let insn = insns[at];
            let code = u16::from_ne_bytes([insn[0], insn[1]]);
            let k = u32::from_ne_bytes(insn[4..8].try_into().unwrap());
            let holds = match code {
                RETURN => return k,
                LOAD => {
                    value = match k {
                        NUMBER => u32::try_from(number).unwrap(),
                        ARCH => AUDIT_ARCH,
                        argument => arguments[(argument as usize - 16) / 8],
                    };
                    at += 1;
                    continue;
                }
                JUMP_EQUAL => value == k,
                JUMP_AT_LEAST => value >= k,
                _ => value & k != 0,
            };
            at += 1 + usize::from(insn[if holds { 2 } else { 3 }]);
        }
        panic!("filter does not end");
    }

    #[test]
    fn every_number_gets_its_answer() {
        let (runner, compiler) = (runner(), compiler());
        let refuse = ERRNO | libc::EPERM.cast_unsigned();
        let special = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
        for number in (0..600).filter(|number| !special.contains(number)) {
            let expected = match number {
                libc::SYS_clone3 => ERRNO | libc::ENOSYS.cast_unsigned(),
                libc::SYS_clone => refuse,
                number if DENIED.contains(&number) => refuse,
                _ => ALLOW,
            };
            assert_eq!(answer(&runner, number, [0; 3]), expected, "{number}");
            let expected = if NO_NETWORK.contains(&number) {
                refuse
            } else {
                expected
            };
            assert_eq!(answer(&compiler, number, [0; 3]), expected, "{number}");
        }
        for number in special {
            assert_eq!(answer(&runner, number, [0, 0, 3]), ALLOW);
            assert_eq!(answer(&runner, number, [0, 0, 5]), refuse);
        }
        for number in [libc::SYS_shmget, libc::SYS_shmat] {
            assert_eq!(answer(&runner, number, [0; 3]), refuse, "shared memory");
        }
        let thread = libc::CLONE_THREAD.cast_unsigned();
        assert_eq!(answer(&runner, libc::SYS_clone, [thread, 0, 0]), ALLOW);
    }

    #[test]
    fn no_program_no_process_and_no_namespace() {
        under(runner(), || {
            let error = std::process::Command::new("/bin/true")
                .status()
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            assert!(amphora_sys::ns::new_netns().is_err());
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            assert!(std::fs::read("/proc/version").is_ok());
        });
        under(compiler(), || {
            let error = std::net::TcpListener::bind("127.0.0.1:0").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        });
    }
}
