//! Device policies: what the list of the runtime specification amounts to, and how either version
//! of the kernel is told.

use std::collections::BTreeMap;

use amphora_spec::runtime::DeviceCgroup;
use amphora_sys::bpf::Insn;

use crate::CgroupError;

const READ: u8 = 1;
const WRITE: u8 = 2;
const MKNOD: u8 = 4;
const ALL: u8 = READ | WRITE | MKNOD;

/// Devices every container may use: making any node, and null, full, zero, random, urandom, tty,
/// console, ptmx and the pseudo terminals behind it.
const DEFAULT_ALLOWED: [(Kind, Option<u32>, Option<u32>, u8); 11] = [
    (Kind::Char, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Char, Some(1), Some(3), ALL),
    (Kind::Char, Some(1), Some(5), ALL),
    (Kind::Char, Some(1), Some(7), ALL),
    (Kind::Char, Some(1), Some(8), ALL),
    (Kind::Char, Some(1), Some(9), ALL),
    (Kind::Char, Some(5), Some(0), ALL),
    (Kind::Char, Some(5), Some(1), ALL),
    (Kind::Char, Some(5), Some(2), ALL),
    (Kind::Char, Some(136), None, ALL),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Char,
    Block,
}

/// Major and minor are `None` for "any".
type Device = (Kind, Option<u32>, Option<u32>);

/// A default answer and the exceptions to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    allow: bool,
    /// Accesses that get the opposite answer.
    exceptions: BTreeMap<Device, u8>,
}

impl Policy {
    /// The policy of a container that asks for nothing.
    pub(crate) fn standard() -> Self {
        let mut policy = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        policy.add_defaults();
        policy
    }

    /// What a list of rules, applied in order upon "deny everything", amounts to; the devices of
    /// [`Policy::standard`] are always allowed.
    pub(crate) fn from_rules(rules: &[DeviceCgroup]) -> Result<Self, CgroupError> {
        let mut policy = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            policy.apply(rule, &format!("linux.resources.devices[{index}]"))?;
        }
        policy.add_defaults();
        Ok(policy)
    }

    /// Everything is allowed; there is nothing to enforce.
    pub(crate) fn allows_all(&self) -> bool {
        self.allow && self.exceptions.is_empty()
    }

    fn add_defaults(&mut self) {
        if self.allow {
            return;
        }
        for (kind, major, minor, access) in DEFAULT_ALLOWED {
            *self.exceptions.entry((kind, major, minor)).or_default() |= access;
        }
    }

    fn apply(&mut self, rule: &DeviceCgroup, field: &str) -> Result<(), CgroupError> {
        let access = parse_access(&rule.access, field)?;
        let major = parse_number(rule.major, field, "major")?;
        let minor = parse_number(rule.minor, field, "minor")?;
        let kinds: &[Kind] = match rule.kind.as_str() {
            "c" | "u" => &[Kind::Char],
            "b" => &[Kind::Block],
            "a" | "" if major.is_none() && minor.is_none() && access == ALL => {
                self.allow = rule.allow;
                self.exceptions.clear();
                return Ok(());
            }
            "a" | "" => &[Kind::Char, Kind::Block],
            other => return Err(CgroupError::invalid(field, format!("type \"{other}\""))),
        };
        for kind in kinds {
            let device = (*kind, major, minor);
            if rule.allow == self.allow {
                self.retract(device, access, field)?;
            } else {
                *self.exceptions.entry(device).or_default() |= access;
            }
        }
        Ok(())
    }

    /// Takes an exception back. Part of a wildcard cannot be taken out: the kernel's v1 lists
    /// have no such notion, and leaving it in would silently mean something else.
    fn retract(&mut self, device: Device, access: u8, field: &str) -> Result<(), CgroupError> {
        let (kind, major, minor) = device;
        self.exceptions.retain(|&(k, ma, mi), held| {
            let inside =
                k == kind && (major.is_none() || major == ma) && (minor.is_none() || minor == mi);
            if inside {
                *held &= !access;
            }
            *held != 0
        });
        let wider = self.exceptions.iter().any(|(&(k, ma, mi), held)| {
            k == kind
                && (ma.is_none() || major.is_none() || ma == major)
                && (mi.is_none() || minor.is_none() || mi == minor)
                && held & access != 0
        });
        if wider {
            return Err(CgroupError::invalid(
                field,
                "it takes back a part of a wildcard rule",
            ));
        }
        Ok(())
    }

    /// What `devices.list` says; `None` where everything is allowed.
    pub(crate) fn from_v1_list(list: &str) -> Option<Self> {
        parse_v1_list(list).map(|exceptions| Self {
            allow: false,
            exceptions,
        })
    }

    /// Files and lines to write, in order, into a v1 `devices` cgroup.
    pub(crate) fn v1_lines(&self) -> Vec<(&'static str, String)> {
        let (base, opposite) = if self.allow {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let mut lines = vec![(base, "a".to_owned())];
        for (&(kind, major, minor), &access) in &self.exceptions {
            lines.push((opposite, line(kind, major, minor, access)));
        }
        lines
    }

    /// Files and lines that lead from what `devices.list` says to this policy: what is used under both
    /// is never refused meanwhile.
    pub(crate) fn v1_changes(&self, list: &str) -> Vec<(&'static str, String)> {
        let Some(old) = parse_v1_list(list).filter(|_| !self.allow) else {
            return self.v1_lines();
        };
        let beyond = |a: &BTreeMap<Device, u8>, b: &BTreeMap<Device, u8>| {
            let more = |(device, access): (&Device, &u8)| {
                let more = access & !b.get(device).copied().unwrap_or(0);
                (more != 0).then(|| line(device.0, device.1, device.2, more))
            };
            a.iter().filter_map(more).collect::<Vec<_>>()
        };
        let allow = beyond(&self.exceptions, &old);
        let deny = beyond(&old, &self.exceptions);
        let allow = allow.into_iter().map(|line| ("devices.allow", line));
        let deny = deny.into_iter().map(|line| ("devices.deny", line));
        allow.chain(deny).collect()
    }

    /// Whether `devices.list` says exactly this policy.
    pub(crate) fn equals_v1_list(&self, list: &str) -> bool {
        if self.allow {
            return self.exceptions.is_empty() && list.trim() == "a *:* rwm";
        }
        let mut have: Vec<&str> = list
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let want: Vec<String> = self
            .exceptions
            .iter()
            .map(|(d, access)| line(d.0, d.1, d.2, *access))
            .collect();
        let mut want: Vec<&str> = want.iter().map(String::as_str).collect();
        have.sort_unstable();
        want.sort_unstable();
        have == want
    }

    /// What is allowed, in systemd's words; `None` where it has none for it.
    pub(crate) fn systemd_list(&self) -> Option<Vec<(String, String)>> {
        if self.allow {
            return None;
        }
        let entry = |(&(kind, major, minor), &access): (&Device, &u8)| {
            let what = if kind == Kind::Block { "block" } else { "char" };
            let path = match (major, minor) {
                (None, None) => format!("{what}-*"),
                (Some(major), None) => format!("{what}-{major}"),
                (Some(major), Some(minor)) => format!("/dev/{what}/{major}:{minor}"),
                (None, Some(_)) => return None,
            };
            Some((path, letters(access)))
        };
        self.exceptions.iter().map(entry).collect()
    }

    /// All that the policy says, in a name for a directory: equal names are equal programs. Its number
    /// is another whenever [`Policy::program`] is.
    pub(crate) fn name(&self) -> String {
        let mut name = String::from(if self.allow { "1,allow" } else { "1,deny" });
        for (&(kind, major, minor), &access) in &self.exceptions {
            name.push(',');
            name.push_str(&line(kind, major, minor, access).replace(' ', "="));
        }
        name
    }

    /// The program for `BPF_PROG_TYPE_CGROUP_DEVICE`.
    pub(crate) fn program(&self) -> Vec<Insn> {
        let mut out = vec![
            load(2, 0), // r2 = access << 16 | type
            mov(3, 2),  // r3 = access
            alu_imm(RSH, 3, 16),
            alu_imm(AND, 2, 0xffff), // r2 = type
            load(4, 4),              // r4 = major
            load(5, 8),              // r5 = minor
        ];
        for (&(kind, major, minor), &access) in &self.exceptions {
            self.emit(&mut out, kind, major, minor, access);
        }
        out.push(mov_imm(0, i32::from(self.allow)));
        out.push(EXIT);
        out
    }

    fn emit(
        &self,
        out: &mut Vec<Insn>,
        kind: Kind,
        major: Option<u32>,
        minor: Option<u32>,
        access: u8,
    ) {
        let mut tests: Vec<Insn> = vec![jump(JNE, 2, if kind == Kind::Block { 1 } else { 2 })];
        tests.extend(major.map(|n| jump(JNE, 4, n.cast_signed())));
        tests.extend(minor.map(|n| jump(JNE, 5, n.cast_signed())));
        if access != ALL {
            tests.push(mov(1, 3));
            if self.allow {
                // A denied access among those asked for denies all of them.
                tests.push(alu_imm(AND, 1, i32::from(bpf_access(access))));
                tests.push(jump(JEQ, 1, 0));
            } else {
                tests.push(alu_imm(AND, 1, i32::from(!bpf_access(access) & ALL)));
                tests.push(jump(JNE, 1, 0));
            }
        }
        let end = tests.len() + 2;
        for (at, test) in tests.iter_mut().enumerate() {
            if test.code == JNE || test.code == JEQ {
                test.off = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
            }
        }
        out.append(&mut tests);
        out.push(mov_imm(0, i32::from(!self.allow)));
        out.push(EXIT);
    }
}

fn line(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> String {
    let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
    let kind = if kind == Kind::Block { 'b' } else { 'c' };
    let access = letters(access);
    format!("{kind} {}:{} {access}", number(major), number(minor))
}

fn letters(access: u8) -> String {
    let mut text = String::new();
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if access & bit != 0 {
            text.push(letter);
        }
    }
    text
}

/// The exceptions of a list that denies by default.
fn parse_v1_list(list: &str) -> Option<BTreeMap<Device, u8>> {
    let mut found = BTreeMap::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let (kind, number, access) = (words.next()?, words.next()?, words.next()?);
        let kind = match kind {
            "c" => Kind::Char,
            "b" => Kind::Block,
            _ => return None,
        };
        let (major, minor) = number.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            text => text.parse().ok().map(Some),
        };
        let access = parse_access(access, "").ok()?;
        *found
            .entry((kind, number(major)?, number(minor)?))
            .or_default() |= access;
    }
    Some(found)
}

fn parse_access(text: &str, field: &str) -> Result<u8, CgroupError> {
    if text.is_empty() {
        return Ok(ALL);
    }
    text.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => Err(CgroupError::invalid(field, format!("access \"{text}\""))),
    })
}

fn parse_number(number: Option<i64>, field: &str, what: &str) -> Result<Option<u32>, CgroupError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n)
            .map(Some)
            .map_err(|_| CgroupError::invalid(field, format!("{what} number {n}"))),
    }
}

/// `BPF_DEVCG_ACC_*` order: mknod, read, write.
fn bpf_access(access: u8) -> u8 {
    let bit = |from: u8, to: u8| if access & from != 0 { to } else { 0 };
    bit(MKNOD, 1) | bit(READ, 2) | bit(WRITE, 4)
}

const JEQ: u8 = 0x16; // JMP32 | JEQ | K
const JNE: u8 = 0x56; // JMP32 | JNE | K
const RSH: u8 = 0x74; // ALU | RSH | K
const AND: u8 = 0x54; // ALU | AND | K
const EXIT: Insn = Insn {
    code: 0x95,
    regs: 0,
    off: 0,
    imm: 0,
};

fn load(to: u8, off: i16) -> Insn {
    Insn {
        code: 0x61,
        regs: to | 1 << 4,
        off,
        imm: 0,
    } // LDX | W | MEM, from r1
}

fn mov(to: u8, from: u8) -> Insn {
    Insn {
        code: 0xbc,
        regs: to | from << 4,
        off: 0,
        imm: 0,
    } // ALU | MOV | X
}

fn mov_imm(to: u8, imm: i32) -> Insn {
    Insn {
        code: 0xb7,
        regs: to,
        off: 0,
        imm,
    } // ALU64 | MOV | K
}

fn alu_imm(code: u8, to: u8, imm: i32) -> Insn {
    Insn {
        code,
        regs: to,
        off: 0,
        imm,
    }
}

fn jump(code: u8, register: u8, imm: i32) -> Insn {
    Insn {
        code,
        regs: register,
        off: 0,
        imm,
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
