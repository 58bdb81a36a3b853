//! A seccomp program shaped like Docker's default profile: system call numbers cut into ranges
//! with one verdict each, searched as a balanced tree.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, ENOSYS,
    EPERM, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter,
};

/// x86-64 numbers that the default profile refuses without further capabilities.
const DENIED: [u32; 40] = [
    101, 103, 153, 155, 161, 163, 164, 165, 166, 167, 168, 169, 172, 173, 175, 176, 179, 180, 212,
    227, 246, 248, 249, 250, 272, 298, 304, 308, 313, 321, 323, 425, 426, 427, 428, 429, 430, 431,
    432, 435,
];
const CLONE: u32 = 56;
const CLONE3: u32 = 435;
const CLONE_NAMESPACES: u32 = 0x7E02_0000;
const ARCH_X86_64: u32 = 0xC000_003E;
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;
const KNOWN: u32 = 470;

const REFUSE: u32 = SECCOMP_RET_ERRNO | EPERM as u32;
const UNKNOWN: u32 = SECCOMP_RET_ERRNO | ENOSYS as u32;

fn verdict(number: u32) -> u32 {
    match number {
        CLONE3 => UNKNOWN,
        335..=423 | 463.. => REFUSE,
        number if DENIED.contains(&number) => REFUSE,
        _ => SECCOMP_RET_ALLOW,
    }
}

/// Ranges of equal verdict: the first number of each, ascending.
fn ranges() -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in 0..KNOWN {
        let verdict = verdict(number);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    }
    ranges
}

fn op(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        jt,
        jf,
        ..op(BPF_JMP | code | BPF_K, k)
    }
}

/// Emits the search of `ranges` for the number in the accumulator: left half first, so that a
/// number at or above the middle jumps over it.
fn search(program: &mut Vec<sock_filter>, ranges: &[(u32, u32)]) {
    match ranges {
        [] => {}
        [(_, verdict)] => program.push(op(BPF_RET | BPF_K, *verdict)),
        _ => {
            let (left, right) = ranges.split_at(ranges.len().div_ceil(2));
            let mut below = Vec::new();
            search(&mut below, left);
            let middle = right.first().map_or(0, |(number, _)| *number);
            let over = u8::try_from(below.len()).unwrap_or(u8::MAX);
            program.push(jump(BPF_JGE, middle, over, 0));
            program.append(&mut below);
            search(program, right);
        }
    }
}

/// The whole program.
pub(super) fn program() -> Vec<sock_filter> {
    let load = |offset| op(BPF_LD | BPF_W | BPF_ABS, offset);
    let mut program = vec![
        load(OFFSET_ARCH),
        jump(BPF_JEQ, ARCH_X86_64, 1, 0),
        op(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        load(OFFSET_NR),
        jump(BPF_JEQ, CLONE, 0, 5),
        load(OFFSET_ARG0),
        op(BPF_ALU | BPF_AND | BPF_K, CLONE_NAMESPACES),
        jump(BPF_JEQ, 0, 0, 1),
        op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        op(BPF_RET | BPF_K, REFUSE),
    ];
    search(&mut program, &ranges());
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the tree part by hand.
    fn run(program: &[sock_filter], number: u32) -> u32 {
        let mut at = 4;
        loop {
            let step = program[at];
            let code = u32::from(step.code);
            if code == BPF_RET | BPF_K {
                return step.k;
            }
            let taken = if code == BPF_JMP | BPF_JEQ | BPF_K {
                number == step.k
            } else {
                assert_eq!(code, BPF_JMP | BPF_JGE | BPF_K);
                number >= step.k
            };
            at += 1 + usize::from(if taken { step.jt } else { step.jf });
        }
    }

    #[test]
    fn the_tree_gives_every_number_its_verdict() {
        let program = program();
        for number in (0..KNOWN).filter(|number| *number != CLONE) {
            assert_eq!(
                run(&program, number),
                verdict(number),
                "system call {number}"
            );
        }
    }

    #[test]
    fn the_tree_is_small() {
        assert!(program().len() < 200);
    }
}
