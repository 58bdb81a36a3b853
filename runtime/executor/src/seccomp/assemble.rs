//! Classic BPF, written from its end to its beginning.
//!
//! Jumps of classic BPF only go forward, so when the last instruction is written first, the target
//! of every jump is already there. A conditional jump reaches 255 instructions; where the target is
//! further away, a copy of it (an answer) or a long jump to it is put in between.

use std::collections::HashMap;

/// Bytes of `struct sock_filter`.
const INSN_LEN: usize = 8;
/// Furthest target of a conditional jump.
const REACH: usize = 255;

const LD: u16 = 0x20; // LD | W | ABS
const AND: u16 = 0x54; // ALU | AND | K
const JA: u16 = 0x05;
const JEQ: u16 = 0x15; // JMP | JEQ | K
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06; // RET | K

/// How a conditional jump compares the accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Eq,
    Gt,
    Ge,
}

/// A place to jump to: counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// An answer, wherever one is near.
    Answer(u32),
    /// A place.
    Label(Label),
}

#[derive(Debug, Clone, Copy)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// Last instruction first.
    reversed: Vec<Insn>,
    /// The copy of each answer that was written last, which is the nearest.
    answers: HashMap<u32, Label>,
}

impl Program {
    pub(super) fn len(&self) -> usize {
        self.reversed.len()
    }

    fn push(&mut self, code: u16, k: u32) -> Label {
        self.push_jump(code, k, 0, 0)
    }

    fn push_jump(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Label {
        self.reversed.push(Insn { code, jt, jf, k });
        Label(self.reversed.len())
    }

    /// Loads 32 bits of `struct seccomp_data`.
    pub(super) fn load(&mut self, offset: u32) -> Label {
        self.push(LD, offset)
    }

    /// Masks the accumulator.
    pub(super) fn and(&mut self, mask: u32) -> Label {
        self.push(AND, mask)
    }

    /// Ends with an answer; shares one that is near.
    pub(super) fn answer(&mut self, action: u32) -> Label {
        let label = self.push(RET, action);
        self.answers.insert(action, label);
        label
    }

    /// Distance of a target from the instruction to be written next.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }

    /// Goes on at `target`: nothing to write if it is what was written last.
    pub(super) fn goto(&mut self, target: Target) -> Label {
        match target {
            Target::Answer(action) => match self.answers.get(&action) {
                Some(&label) if self.distance(label) == 0 => label,
                _ => self.answer(action),
            },
            Target::Label(label) if self.distance(label) == 0 => label,
            Target::Label(label) => {
                let distance = u32::try_from(self.distance(label)).unwrap_or(u32::MAX);
                self.push(JA, distance)
            }
        }
    }

    /// A label for the target that the instruction to be written next can jump to.
    fn near(&mut self, target: Target, room: usize) -> Label {
        let known = match target {
            Target::Answer(action) => self.answers.get(&action).copied(),
            Target::Label(label) => Some(label),
        };
        match known {
            Some(label) if self.distance(label) + room <= REACH => label,
            _ => match target {
                Target::Answer(action) => self.answer(action),
                Target::Label(_) => self.goto(target),
            },
        }
    }

    /// Compares the accumulator with `k` and goes to `yes` or to `no`.
    pub(super) fn branch(&mut self, test: Test, k: u32, yes: Target, no: Target) -> Label {
        // Making room for the second target moves the first one away by one instruction at most.
        let yes = self.near(yes, 1);
        let no = self.near(no, 0);
        let code = match test {
            Test::Eq => JEQ,
            Test::Gt => JGT,
            Test::Ge => JGE,
        };
        let offset = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
        self.push_jump(
            code,
            k,
            offset(self.distance(yes)),
            offset(self.distance(no)),
        )
    }

    /// The program as an array of `struct sock_filter`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.reversed.len() * INSN_LEN);
        for insn in self.reversed.iter().rev() {
            out.extend_from_slice(&insn.code.to_ne_bytes());
            out.push(insn.jt);
            out.push(insn.jf);
            out.extend_from_slice(&insn.k.to_ne_bytes());
        }
        out
    }
}
