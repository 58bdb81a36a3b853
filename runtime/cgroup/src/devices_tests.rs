//! The program against the rules, on a small interpreter.

use amphora_spec::runtime::DeviceCgroup;
use amphora_sys::bpf::Insn;

use super::{ALL, Kind, MKNOD, Policy, READ, WRITE, bpf_access};

fn rule(
    allow: bool,
    kind: &str,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> DeviceCgroup {
    DeviceCgroup {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    }
}

/// Runs the few instructions the generator uses.
fn run(program: &[Insn], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    let type_bits = if kind == Kind::Block { 1 } else { 2 };
    let context = [
        u32::from(bpf_access(access)) << 16 | type_bits,
        major,
        minor,
    ];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let insn = program[at];
        let to = usize::from(insn.regs & 15);
        let from = usize::from(insn.regs >> 4);
        let imm = insn.imm.cast_unsigned();
        at += 1;
        let low = u32::try_from(registers[to] & 0xffff_ffff).expect("masked");
        match insn.code {
            0x61 => {
                assert_eq!(from, 1, "loads come from the context");
                registers[to] =
                    u64::from(context[usize::try_from(insn.off).expect("positive") / 4]);
            }
            0xbc => registers[to] = registers[from] & 0xffff_ffff,
            0xb7 => registers[to] = u64::from(imm),
            0x74 => registers[to] = u64::from(low >> imm),
            0x54 => registers[to] = u64::from(low & imm),
            0x16 if low == imm => at += usize::try_from(insn.off).expect("forward"),
            0x56 if low != imm => at += usize::try_from(insn.off).expect("forward"),
            0x16 | 0x56 => {}
            0x95 => return registers[0] != 0,
            other => panic!("unexpected instruction {other:#x}"),
        }
    }
}

/// What the exception list means, without a program.
fn naive(policy: &Policy, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    let matching = policy.exceptions.iter().filter(|((k, ma, mi), _)| {
        *k == kind && ma.is_none_or(|n| n == major) && mi.is_none_or(|n| n == minor)
    });
    let mut matching = matching.map(|(_, held)| *held);
    if policy.allow {
        !matching.any(|held| held & access != 0)
    } else {
        matching.any(|held| held & access == access)
    }
}

#[test]
fn program_answers_as_the_rules_do() {
    let policies = [
        Policy::standard(),
        Policy::from_rules(&[rule(true, "a", None, None, "rwm")]).expect("valid"),
        Policy::from_rules(&[
            rule(true, "c", Some(10), Some(229), "rw"),
            rule(true, "b", Some(8), None, "r"),
            rule(true, "c", Some(0xffff_fffe), Some(1), "rwm"),
        ])
        .expect("valid"),
        Policy::from_rules(&[
            rule(true, "", None, None, ""),
            rule(false, "b", Some(8), None, "w"),
            rule(false, "c", Some(1), Some(11), "rwm"),
        ])
        .expect("valid"),
    ];
    let numbers = [0, 1, 3, 5, 8, 9, 10, 11, 136, 229, 0xffff_fffe];
    for policy in &policies {
        let program = policy.program();
        for kind in [Kind::Char, Kind::Block] {
            for major in numbers {
                for minor in numbers {
                    for access in 1..=ALL {
                        assert_eq!(
                            run(&program, kind, major, minor, access),
                            naive(policy, kind, major, minor, access),
                            "{policy:?} {kind:?} {major}:{minor} {access}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn standard_policy_allows_null_and_no_disk() {
    let policy = Policy::standard();
    assert!(naive(&policy, Kind::Char, 1, 3, READ | WRITE));
    assert!(naive(&policy, Kind::Char, 136, 7, ALL));
    assert!(naive(&policy, Kind::Block, 8, 0, MKNOD));
    assert!(!naive(&policy, Kind::Block, 8, 0, READ));
    assert!(!naive(&policy, Kind::Char, 10, 200, READ));
    assert!(!naive(&policy, Kind::Char, 1, 11, READ));
}

#[test]
fn dockers_own_list_is_the_standard_policy() {
    let rules = [
        rule(false, "", None, None, "rwm"),
        rule(true, "c", Some(1), Some(5), "rwm"),
        rule(true, "c", Some(1), Some(3), "rwm"),
        rule(true, "c", Some(5), Some(1), "rwm"),
        rule(false, "c", Some(10), Some(229), "rwm"),
    ];
    assert_eq!(
        Policy::from_rules(&rules).expect("valid"),
        Policy::standard()
    );
    assert_eq!(Policy::from_rules(&[]).expect("valid"), Policy::standard());
}

#[test]
fn bad_rules_are_refused_by_field() {
    let bad = [
        rule(true, "x", None, None, "r"),
        rule(true, "c", Some(1), Some(2), "rq"),
        rule(true, "c", Some(-2), None, "r"),
        rule(true, "c", Some(1 << 40), None, "r"),
    ];
    for rule in bad {
        let error = Policy::from_rules(&[rule])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("linux.resources.devices[0]"), "{error}");
    }
    let hole = [
        rule(true, "c", Some(136), None, "rwm"),
        rule(false, "c", Some(136), Some(2), "r"),
    ];
    let error = Policy::from_rules(&hole).expect_err("refused").to_string();
    assert!(
        error.contains("devices[1]") && error.contains("wildcard"),
        "{error}"
    );
}

#[test]
fn v1_list_is_compared_as_a_set() {
    let policy = Policy::from_rules(&[]).expect("valid");
    let mut lines: Vec<String> = policy
        .v1_lines()
        .into_iter()
        .skip(1)
        .map(|(_, l)| l)
        .collect();
    lines.reverse();
    assert!(policy.equals_v1_list(&lines.join("\n")));
    lines.pop();
    assert!(!policy.equals_v1_list(&lines.join("\n")));
    assert!(!policy.equals_v1_list("a *:* rwm\n"));
}

#[test]
fn a_change_allows_before_it_denies_and_leaves_the_rest() {
    let old = Policy::from_rules(&[rule(true, "c", Some(10), Some(229), "rw")]).expect("valid");
    let list: Vec<String> = old.v1_lines().into_iter().skip(1).map(|l| l.1).collect();
    let new = Policy::from_rules(&[
        rule(true, "c", Some(10), Some(229), "rm"),
        rule(true, "b", Some(7), None, "r"),
    ])
    .expect("valid");
    let want = [
        ("devices.allow", "c 10:229 m"),
        ("devices.allow", "b 7:* r"),
        ("devices.deny", "c 10:229 w"),
    ]
    .map(|(file, line)| (file, line.to_owned()));
    assert_eq!(new.v1_changes(&list.join("\n")), want);
    assert_eq!(new.v1_changes("a *:* rwm\n"), new.v1_lines());
    let all = Policy::from_rules(&[rule(true, "a", None, None, "rwm")]).expect("valid");
    assert_eq!(all.v1_changes(&list.join("\n")), all.v1_lines());
}
