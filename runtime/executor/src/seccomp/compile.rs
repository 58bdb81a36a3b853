//! From checked rules to a program.

use std::collections::BTreeMap;

use amphora_spec::runtime::Seccomp;
use amphora_sys::seccomp::FLAG_NEW_LISTENER;

use super::arch::X32_BIT;
use super::assemble::{Label, Program, Target, Test};
use super::rules::{Cond, KILL_PROCESS, NOTIFY_NAME, Op, Rule, Rules};
use super::{Arch, SeccompError};

/// `BPF_MAXINSNS`.
const PROGRAM_MAX: usize = 4096;

/// Offsets in `struct seccomp_data`; both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Every flag that a profile may name.
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// An array of `struct sock_filter`.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` for `seccomp(2)`.
    pub flags: u32,
}

impl Filter {
    /// Returns the number of instructions.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.program.len() / 8
    }
}

/// Compiles a profile for this machine.
///
/// # Errors
/// Names the field whose value is malformed or not supported.
pub fn compile(profile: &Seccomp) -> Result<Filter, SeccompError> {
    compile_for(Arch::NATIVE, profile)
}

/// Compiles a profile for a kernel of the architecture `native`.
///
/// # Errors
/// Names the field whose value is malformed or not supported.
pub fn compile_for(native: Arch, profile: &Seccomp) -> Result<Filter, SeccompError> {
    let flags = flags(profile)?;
    listener(profile)?;
    let mut arches = vec![native];
    for name in &profile.architectures {
        match Arch::parse(name)? {
            Some(arch) if arch.runs_on(native) && !arches.contains(&arch) => arches.push(arch),
            _ => {}
        }
    }
    let mut program = Program::default();
    // The native architecture is looked at first, so it is written last.
    let mut next = Target::Answer(KILL_PROCESS);
    for arch in arches.iter().rev() {
        let rules = Rules::new(profile, *arch)?;
        let entry = tree(&mut program, &rules, *arch);
        let check = program.branch(Test::Eq, arch.audit(), Target::Label(entry), next);
        next = Target::Label(check);
    }
    program.load(ARCH);
    if program.len() > PROGRAM_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter {
        program: program.bytes(),
        flags,
    })
}

/// Whether a rule asks somebody outside.
fn asks(profile: &Seccomp) -> bool {
    profile
        .syscalls
        .iter()
        .any(|rule| rule.action == NOTIFY_NAME)
}

fn listener(profile: &Seccomp) -> Result<(), SeccompError> {
    let field = "linux.seccomp.listenerPath";
    let path = profile.listener_path.as_str();
    if path.is_empty() && asks(profile) {
        return Err(SeccompError::invalid(
            format!("{field} for {NOTIFY_NAME}"),
            path,
        ));
    }
    if path.is_empty() && !profile.listener_metadata.is_empty() {
        let metadata = &profile.listener_metadata;
        return Err(SeccompError::invalid(
            "linux.seccomp.listenerMetadata without listenerPath",
            metadata,
        ));
    }
    if path.contains('\0') || !(path.is_empty() || path.starts_with('/')) {
        return Err(SeccompError::invalid(field, path));
    }
    Ok(())
}

fn flags(profile: &Seccomp) -> Result<u32, SeccompError> {
    let asks = asks(profile);
    let mut flags = if asks { FLAG_NEW_LISTENER } else { 0 };
    for flag in &profile.flags {
        match flag.as_str() {
            // A process that loads its filter before it has threads has none to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            "SECCOMP_FILTER_FLAG_LOG" => flags |= FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags |= FLAG_SPEC_ALLOW,
            // The kernel takes it beside a listener only.
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" if asks => flags |= FLAG_WAIT_KILLABLE_RECV,
            other => return Err(SeccompError::unsupported("linux.seccomp.flags", other)),
        }
    }
    Ok(flags)
}

/// From this number on, up to the next interval, this is what happens.
#[derive(Debug, Clone, Copy)]
struct Interval {
    start: u32,
    target: Target,
}

/// Writes everything for one architecture; its beginning loads the number.
fn tree(program: &mut Program, rules: &Rules, arch: Arch) -> Label {
    let intervals = intervals(program, rules, arch);
    let entry = search(program, &intervals);
    program.goto(entry);
    program.load(NUMBER)
}

fn intervals(program: &mut Program, rules: &Rules, arch: Arch) -> Vec<Interval> {
    let mut blocks: BTreeMap<Vec<&Rule>, Target> = BTreeMap::new();
    let default = Target::Answer(rules.default);
    let mut found = vec![Interval {
        start: 0,
        target: default,
    }];
    let mut add = |start: u32, target: Target| match found.last_mut() {
        Some(last) if last.target == target => {}
        Some(last) if last.start == start => last.target = target,
        _ => found.push(Interval { start, target }),
    };
    let mut after = 0;
    for (number, held) in rules.calls() {
        if number > after {
            add(after, default);
        }
        let target = match held.as_slice() {
            [only] if only.conds.is_empty() => Target::Answer(only.action),
            _ => match blocks.get(&held) {
                Some(block) => *block,
                None => {
                    let written = block(program, &held, default);
                    blocks.insert(held, written);
                    written
                }
            },
        };
        add(number, target);
        after = number + 1;
    }
    add(after, default);
    if arch == Arch::X86_64 {
        // x32: other numbers under the same architecture. -1 is what a tracer leaves behind to
        // skip a call, and has the bit too.
        add(X32_BIT, Target::Answer(KILL_PROCESS));
        add(u32::MAX, default);
    }
    merge(found)
}

/// Joins neighbours that became equal when one of them was replaced.
fn merge(intervals: Vec<Interval>) -> Vec<Interval> {
    let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        if out.last().is_none_or(|last| last.target != interval.target) {
            out.push(interval);
        }
    }
    out
}

/// Writes a balanced tree of comparisons; the accumulator holds the number.
fn search(program: &mut Program, intervals: &[Interval]) -> Target {
    let (lower, upper) = intervals.split_at(intervals.len() / 2);
    match (lower.is_empty(), upper.first()) {
        (false, Some(middle)) => {
            let yes = search(program, upper);
            let no = search(program, lower);
            Target::Label(program.branch(Test::Ge, middle.start, yes, no))
        }
        (_, Some(only)) => only.target,
        (_, None) => Target::Answer(KILL_PROCESS),
    }
}

/// Writes the rules of one system call, or names the answer if there are no conditions.
fn block(program: &mut Program, rules: &[&Rule], default: Target) -> Target {
    let mut next = default;
    for rule in rules.iter().rev() {
        let mut yes = Target::Answer(rule.action);
        for cond in rule.conds.iter().rev() {
            yes = Target::Label(compare(program, *cond, yes, next));
        }
        next = yes;
    }
    next
}

/// Writes one comparison of a 64-bit argument, upper half first.
fn compare(program: &mut Program, cond: Cond, yes: Target, no: Target) -> Label {
    let low_at = ARGS + 8 * cond.arg;
    let high_at = low_at + 4;
    let (high, low) = halves(cond.value);
    match cond.op {
        Op::Eq => equal(
            program,
            (high_at, high, u32::MAX),
            (low_at, low, u32::MAX),
            yes,
            no,
        ),
        Op::Ne => equal(
            program,
            (high_at, high, u32::MAX),
            (low_at, low, u32::MAX),
            no,
            yes,
        ),
        Op::MaskedEq(mask) => {
            let (high_mask, low_mask) = halves(mask);
            equal(
                program,
                (high_at, high, high_mask),
                (low_at, low, low_mask),
                yes,
                no,
            )
        }
        Op::Ge => greater(program, cond, Test::Ge, yes, no),
        Op::Gt => greater(program, cond, Test::Gt, yes, no),
        Op::Lt => greater(program, cond, Test::Ge, no, yes),
        Op::Le => greater(program, cond, Test::Gt, no, yes),
    }
}

/// Offset, value and mask of one half.
type Half = (u32, u32, u32);

fn equal(program: &mut Program, high: Half, low: Half, yes: Target, no: Target) -> Label {
    let mut next = yes;
    for (offset, value, mask) in [low, high] {
        if mask == 0 && value == 0 {
            continue;
        }
        program.branch(Test::Eq, value, next, no);
        if mask != u32::MAX {
            program.and(mask);
        }
        next = Target::Label(program.load(offset));
    }
    program.goto(next)
}

fn greater(program: &mut Program, cond: Cond, test: Test, yes: Target, no: Target) -> Label {
    let low_at = ARGS + 8 * cond.arg;
    let (high, low) = halves(cond.value);
    program.branch(test, low, yes, no);
    let low_half = Target::Label(program.load(low_at));
    let same = Target::Label(program.branch(Test::Eq, high, low_half, no));
    program.branch(Test::Gt, high, yes, same);
    program.load(low_at + 4)
}

fn halves(value: u64) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
    (half(value >> 32), half(value))
}
