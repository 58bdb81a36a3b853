//! Compiled programs on an interpreter, against the rules; and loaded for real.

use std::path::Path;

use amphora_spec::runtime::{Seccomp, SeccompArg, SeccompRule};
use proptest::prelude::*;

use super::docker::default_profile_for;
use super::rules::{ALLOW, KILL_PROCESS, Rules};
use super::{
    ACTIONS, ARCHITECTURES, Arch, FLAGS, Filter, OPERATORS, compile, compile_for, default_filter,
    docker_profile,
};

/// What containers have unless told otherwise.
const DEFAULT_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const NONE: [&str; 0] = [];

/// Runs a program as the kernel does.
fn run(program: &[u8], arch: u32, number: u32, args: &[u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let mut accumulator = 0_u32;
    let mut at = 0_usize;
    loop {
        let insn = &program[at * 8..at * 8 + 8];
        let code = u16::from_le_bytes([insn[0], insn[1]]);
        let k = u32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { insn[2] } else { insn[3] });
        match code {
            0x20 => {
                let from = k as usize;
                let word = data[from..from + 4].try_into().expect("four bytes");
                accumulator = u32::from_le_bytes(word);
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x06 => return k,
            other => panic!("unexpected instruction {other:#x}"),
        }
    }
}

/// The answer that the rules give.
fn naive(rules: &Rules, arch: Arch, number: u32, args: &[u64; 6]) -> u32 {
    if arch == Arch::X86_64 && number >= 0x4000_0000 && number != u32::MAX {
        return KILL_PROCESS;
    }
    rules.answer(number, args)
}

/// Values around those that rules compare with.
fn interesting(profile: &Seccomp) -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, 1 << 32, 0xffff_ffff];
    for arg in profile.syscalls.iter().flat_map(|rule| &rule.args) {
        for value in [arg.value, arg.value_two, arg.value | arg.value_two] {
            values.extend([
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value ^ 1 << 32,
                value ^ 1 << 63,
                !value,
            ]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn check(native: Arch, profile: &Seccomp, numbers: &[u32]) {
    let filter = compile_for(native, profile).expect("compiles");
    let arches = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm];
    for arch in arches {
        let listed = profile
            .architectures
            .iter()
            .any(|name| Arch::parse(name).expect("known") == Some(arch) && arch.runs_on(native));
        let rules = Rules::new(profile, arch).expect("valid");
        for &number in numbers {
            // Only a call with conditions depends on its arguments.
            let few = rules
                .rules_of(number)
                .first()
                .is_none_or(|rule| rule.conds.is_empty());
            let values = if few {
                vec![0, u64::MAX]
            } else {
                interesting(profile)
            };
            for (index, value) in values
                .iter()
                .flat_map(|value| (0..6).map(move |i| (i, *value)))
            {
                let mut args = [values[values.len() / 2]; 6];
                args[index] = value;
                let got = run(&filter.program, arch.audit(), number, &args);
                let want = if arch == native || listed {
                    naive(&rules, arch, number, &args)
                } else {
                    KILL_PROCESS
                };
                assert_eq!(got, want, "{arch:?} call {number} {args:x?} on {native:?}");
            }
        }
    }
}

fn numbers() -> Vec<u32> {
    let edges = [
        0xf_0001,
        0xf_0005,
        0x3fff_ffff,
        0x4000_0000,
        0x4000_0001,
        u32::MAX - 1,
        u32::MAX,
    ];
    (0..600).chain(edges).collect()
}

#[test]
fn default_profile_answers_as_its_rules_for_every_call() {
    let caps: [&[&str]; 6] = [
        &DEFAULT_CAPS,
        &NONE,
        &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"],
        &["CAP_SYS_PTRACE", "CAP_SYS_NICE", "CAP_SYSLOG"],
        &[
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYS_TIME",
            "CAP_SYS_RAWIO",
            "CAP_SYS_BOOT",
        ],
        &[
            "CAP_DAC_READ_SEARCH",
            "CAP_SYS_MODULE",
            "CAP_SYS_PACCT",
            "CAP_SYS_TTY_CONFIG",
        ],
    ];
    for caps in caps {
        for native in [Arch::X86_64, Arch::Aarch64] {
            check(native, &default_profile_for(native, caps), &numbers());
        }
    }
}

/// Reads `default.json` by itself, without the code under test.
fn allowed_by_json(here: &str, caps: &[&str], name: &str, args: &[u64; 6]) -> u32 {
    let json: serde_json::Value =
        serde_json::from_str(include_str!("default.json")).expect("valid");
    let strings = |value: &serde_json::Value| -> Vec<String> {
        let items = value.as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    for rule in json["syscalls"].as_array().expect("a list") {
        let has = |cap: &String| caps.contains(&cap.as_str());
        let (yes, no) = (&rule["includes"], &rule["excludes"]);
        let arches = strings(&yes["arches"]);
        if !strings(&rule["names"]).iter().any(|have| have == name)
            || strings(&no["caps"]).iter().any(has)
            || strings(&no["arches"]).iter().any(|arch| arch == here)
            || !strings(&yes["caps"]).iter().all(has)
            || !(arches.is_empty() || arches.iter().any(|arch| arch == here))
        {
            continue;
        }
        let conds = rule["args"].as_array().cloned().unwrap_or_default();
        let holds = conds.iter().all(|cond| {
            let arg = args[usize::try_from(cond["index"].as_u64().expect("index")).expect("small")];
            let value = cond["value"].as_u64().expect("value");
            match cond["op"].as_str().expect("op") {
                "SCMP_CMP_EQ" => arg == value,
                "SCMP_CMP_NE" => arg != value,
                "SCMP_CMP_MASKED_EQ" => arg & value == cond["valueTwo"].as_u64().unwrap_or(0),
                other => panic!("unexpected {other}"),
            }
        });
        if holds {
            let errno = u32::try_from(rule["errnoRet"].as_u64().unwrap_or(1)).expect("small");
            let allow = rule["action"] == "SCMP_ACT_ALLOW";
            return if allow { ALLOW } else { 0x0005_0000 | errno };
        }
    }
    0x0005_0001
}

#[test]
fn default_filter_is_what_the_json_says() {
    let arg_sets = [
        [0_u64; 6],
        [40; 6],
        [8; 6],
        [0x0002_0008; 6],
        [0xffff_ffff; 6],
        [u64::MAX; 6],
        [0x1000_0000; 6],
        [0x0100_0000; 6],
        [2; 6],
    ];
    for caps in [
        &DEFAULT_CAPS[..],
        &["CAP_SYS_ADMIN"],
        &["CAP_SYS_CHROOT", "CAP_SYS_TIME"],
    ] {
        let made = |arch| compile_for(arch, &default_profile_for(arch, caps)).expect("compiles");
        let (x86_64, aarch64) = (made(Arch::X86_64).program, made(Arch::Aarch64).program);
        for number in 0..600_u32 {
            let wide = syscalls::x86_64::Sysno::new(number as usize).map(|call| call.name());
            let arm = syscalls::aarch64::Sysno::new(number as usize).map(|call| call.name());
            for args in &arg_sets {
                let want = |here: &str, name: Option<&str>| {
                    name.map_or(0x0005_0001, |name| allowed_by_json(here, caps, name, args))
                };
                let got = run(&x86_64, Arch::X86_64.audit(), number, args);
                assert_eq!(got, want("amd64", wide), "{wide:?} {args:x?}");
                let got = run(&aarch64, Arch::Aarch64.audit(), number, args);
                assert_eq!(got, want("arm64", arm), "{arm:?} {args:x?}");
            }
        }
    }
}

/// Programs of an architecture that this kernel cannot run make no calls; if one did, it would be
/// killed. So nothing is compiled for them, and naming them changes nothing.
#[test]
fn architectures_of_other_machines_change_nothing() {
    let plain = default_profile_for(Arch::X86_64, &DEFAULT_CAPS);
    let plain = Seccomp {
        architectures: Vec::new(),
        ..plain
    };
    let names = [
        "X32",
        "ARM",
        "AARCH64",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "LOONGARCH64",
        "M68K",
        "SH",
        "SHEB",
    ];
    let all = Seccomp {
        architectures: names.map(|name| format!("SCMP_ARCH_{name}")).to_vec(),
        ..plain.clone()
    };
    let filter = compile_for(Arch::X86_64, &all).expect("compiles");
    assert_eq!(filter, compile_for(Arch::X86_64, &plain).expect("compiles"));
    // AUDIT_ARCH of s390x and riscv64; read(2).
    for audit in [0x8000_0016, 0xc000_00f3] {
        for number in [0, 3, 63] {
            assert_eq!(run(&filter.program, audit, number, &[0; 6]), KILL_PROCESS);
        }
    }
}

#[test]
fn what_is_told_is_taken() {
    for action in ACTIONS {
        let names = ["mkdirat".to_owned()];
        for op in OPERATORS {
            let arg = SeccompArg {
                op: op.to_owned(),
                ..SeccompArg::default()
            };
            let rule = SeccompRule {
                names: names.to_vec(),
                action: action.to_owned(),
                args: vec![arg],
                ..SeccompRule::default()
            };
            let profile = Seccomp {
                default_action: "SCMP_ACT_ALLOW".to_owned(),
                architectures: ARCHITECTURES.map(str::to_owned).to_vec(),
                listener_path: "/x".to_owned(),
                flags: if action == "SCMP_ACT_NOTIFY" {
                    FLAGS.map(str::to_owned).to_vec()
                } else {
                    Vec::new()
                },
                syscalls: vec![rule],
                ..Seccomp::default()
            };
            compile(&profile).expect(action);
        }
    }
}

#[test]
fn a_rule_that_asks_asks_and_has_a_listener() {
    let profile: Seccomp = serde_json::from_str(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"listenerPath":"/x",
        "architectures":null,
        "flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV","SECCOMP_FILTER_FLAG_LOG"],
        "syscalls":[{"names":["mkdirat"],"action":"SCMP_ACT_NOTIFY","args":null},
        {"names":null,"action":"SCMP_ACT_ALLOW"}]}"#,
    )
    .expect("test input");
    for (arch, number) in [(Arch::X86_64, 258), (Arch::Aarch64, 34)] {
        let filter = compile_for(arch, &profile).expect("compiles");
        assert_eq!(filter.flags, 1 << 1 | 1 << 3 | 1 << 5);
        let answer = |number| run(&filter.program, arch.audit(), number, &[0; 6]);
        assert_eq!(answer(number), 0x7fc0_0000);
        assert_eq!(answer(number + 1), 0x0005_0000 | 38);
    }
}

#[test]
fn checked_in_programs_are_up_to_date() {
    for (name, native) in [("x86_64", Arch::X86_64), ("aarch64", Arch::Aarch64)] {
        for (set, caps) in [("default", &DEFAULT_CAPS[..]), ("none", &NONE)] {
            let filter = compile_for(native, &default_profile_for(native, caps)).expect("compiles");
            println!("{name} {set}: {} instructions", filter.instructions());
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/seccomp/{name}-{set}.bpf"));
            if std::env::vars_os().any(|(key, _)| key == "AMPHORA_BLESS") {
                std::fs::write(&file, &filter.program).expect("write");
            }
            let kept = std::fs::read(&file).expect("read");
            assert!(
                kept == filter.program,
                "run the test once with AMPHORA_BLESS=1: {file:?}"
            );
        }
    }
}

#[test]
fn fast_path_equals_the_compiler() {
    let sets: [&[&str]; 5] = [
        &DEFAULT_CAPS,
        &NONE,
        &["CAP_KILL"],
        &["CAP_SYS_ADMIN"],
        &["CAP_SYS_CHROOT", "CAP_BPF"],
    ];
    for caps in sets {
        let slow = compile(&super::default_profile(caps)).expect("compiles");
        assert_eq!(default_filter(caps), slow.program, "{caps:?}");
    }
    let time = |caps: &[&str]| {
        let start = std::time::Instant::now();
        for _ in 0..100 {
            std::hint::black_box(default_filter(std::hint::black_box(caps)));
        }
        start.elapsed() / 100
    };
    println!(
        "default: {:?}, others: {:?}",
        time(&DEFAULT_CAPS),
        time(&["CAP_SYS_ADMIN"])
    );
}

#[test]
fn malformed_profiles_are_refused_by_field() {
    let refuse = |json: &str, part: &str| {
        let profile: Seccomp = serde_json::from_str(json).expect("test input");
        let error = compile(&profile).expect_err(json).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, "defaultAction");
    refuse(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "defaultAction");
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#,
        "errnoRet",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["VAX"]}"#,
        "VAX",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["F"]}"#,
        "flags",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"x"}"#,
        "listenerPath",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#,
        "listenerMetadata",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        "WAIT_KILLABLE_RECV",
    );
    refuse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#,
        "errnoRet beside SCMP_ACT_ALLOW",
    );
    let notify = |name: &str, path: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"{path}","syscalls":[
            {{"names":["{name}"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
        )
    };
    refuse(&notify("mkdir", ""), "listenerPath for SCMP_ACT_NOTIFY");
    refuse(
        &notify("write", "/x"),
        "syscalls[0].names with SCMP_ACT_NOTIFY",
    );
    let rule = |args: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {{"names":["read"],"action":"SCMP_ACT_KILL","args":[{args}]}}]}}"#
        )
    };
    refuse(
        &rule(r#"{"index":6,"value":0,"op":"SCMP_CMP_EQ"}"#),
        "syscalls[0].args index",
    );
    refuse(
        &rule(r#"{"index":0,"value":0,"op":"SCMP_CMP_XX"}"#),
        "syscalls[0].args op",
    );
}

#[test]
fn dockers_format_is_read_strictly() {
    let error = docker_profile("{", &NONE)
        .expect_err("not json")
        .to_string();
    assert!(error.contains("parse"), "{error}");
    let old = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"name":"read","action":"SCMP_ACT_ALLOW","args":[]},
        {"names":["write"],"action":"SCMP_ACT_ALLOW","args":null,"includes":{"minKernel":"99.1"}},
        {"names":["close"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"4.8"}}]}"#;
    let profile = docker_profile(old, &NONE).expect("valid");
    assert_eq!(profile.syscalls.len(), 1);
    assert_eq!(profile.syscalls[0].names, ["read"]);
}

const OPS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..16_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
        Just(0xffff_ffff),
        Just(0xffff_ffff_0000_0000),
    ]
}

fn any_arg() -> impl Strategy<Value = SeccompArg> {
    (
        0..6_u32,
        any_value(),
        any_value(),
        proptest::sample::select(&OPS[..]),
    )
        .prop_map(|(index, value, value_two, op)| SeccompArg {
            index,
            value,
            value_two,
            op: op.to_owned(),
        })
}

fn any_action() -> impl Strategy<Value = (String, Option<u32>)> {
    prop_oneof![
        Just(("SCMP_ACT_ALLOW".to_owned(), None)),
        Just(("SCMP_ACT_KILL".to_owned(), None)),
        Just(("SCMP_ACT_KILL_PROCESS".to_owned(), None)),
        Just(("SCMP_ACT_TRAP".to_owned(), None)),
        Just(("SCMP_ACT_LOG".to_owned(), None)),
        (0..4096_u32).prop_map(|errno| ("SCMP_ACT_ERRNO".to_owned(), Some(errno))),
        (0..65536_u32).prop_map(|data| ("SCMP_ACT_TRACE".to_owned(), Some(data))),
    ]
}

fn any_rule() -> impl Strategy<Value = SeccompRule> {
    let name = (0..470_usize).prop_map(|number| {
        let call = syscalls::x86_64::Sysno::new(number);
        call.map_or_else(
            || format!("unknown_{number}"),
            |call| call.name().to_owned(),
        )
    });
    let args = prop_oneof![Just(Vec::new()), proptest::collection::vec(any_arg(), 0..4)];
    (proptest::collection::vec(name, 1..12), any_action(), args).prop_map(
        |(names, (action, errno_ret), args)| SeccompRule {
            names,
            action,
            errno_ret,
            args,
        },
    )
}

fn any_profile() -> impl Strategy<Value = Seccomp> {
    let arches = proptest::sample::subsequence(
        vec![
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_X86",
            "SCMP_ARCH_X32",
            "SCMP_ARCH_AARCH64",
            "SCMP_ARCH_ARM",
        ],
        0..5,
    );
    (
        any_action(),
        arches,
        proptest::collection::vec(any_rule(), 0..40),
    )
        .prop_map(
            |((default_action, default_errno_ret), arches, syscalls)| Seccomp {
                default_action,
                default_errno_ret,
                architectures: arches.into_iter().map(str::to_owned).collect(),
                syscalls,
                ..Seccomp::default()
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_profile_answers_as_its_rules(profile in any_profile()) {
        check(Arch::X86_64, &profile, &numbers());
        check(Arch::Aarch64, &profile, &numbers());
    }
}

#[test]
fn far_jumps_reach() {
    // Every second call has conditions of its own: blocks far beyond 255 instructions.
    let rule = |number: usize| {
        let call = syscalls::x86_64::Sysno::new(number)?;
        let value = number as u64;
        Some(SeccompRule {
            names: vec![call.name().to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(u32::try_from(number).ok()?),
            args: vec![SeccompArg {
                index: 1,
                value,
                op: "SCMP_CMP_GT".to_owned(),
                value_two: 0,
            }],
        })
    };
    let profile = Seccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        syscalls: (0..600).step_by(2).filter_map(rule).collect(),
        ..Seccomp::default()
    };
    check(Arch::X86_64, &profile, &numbers());
    let filter = compile_for(Arch::X86_64, &profile).expect("compiles");
    assert!(filter.instructions() > 1000, "{}", filter.instructions());
}

/// Loads a filter into a thread of its own and does something there.
fn under<T: Send + 'static>(filter: &Filter, f: impl FnOnce() -> T + Send + 'static) -> T {
    let filter = filter.clone();
    let thread = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).expect("no_new_privs");
        let start = std::time::Instant::now();
        amphora_sys::seccomp::load(&filter.program, filter.flags).expect("load");
        println!(
            "loaded {} instructions in {:?}",
            filter.instructions(),
            start.elapsed()
        );
        f()
    });
    thread.join().expect("the thread lives")
}

/// The error number of a call made under a filter; 0 when it succeeds.
#[expect(unsafe_code, reason = "raw calls, to see what the filter answers")]
fn errno(call: syscalls::Sysno, args: [usize; 3]) -> i32 {
    // SAFETY: only calls that fail in the filter or that change nothing are made here.
    let result = unsafe { syscalls::syscall!(call, args[0], args[1], args[2]) };
    result.map_or_else(syscalls::Errno::into_raw, |_| 0)
}

#[test]
fn the_kernel_answers_as_expected_under_the_default() {
    use syscalls::Sysno;
    let filter = Filter {
        program: default_filter(&DEFAULT_CAPS),
        flags: 0,
    };
    let got = under(&filter, || {
        [
            errno(Sysno::keyctl, [0, 0, 0]),
            errno(Sysno::clone3, [0, 0, 0]),
            errno(Sysno::getppid, [0, 0, 0]),
            errno(Sysno::unshare, [0, 0, 0]),
            errno(Sysno::socket, [40, 1, 0]),
            errno(Sysno::personality, [0xffff_ffff, 0, 0]),
            errno(Sysno::personality, [0x0040_0000, 0, 0]),
        ]
    });
    assert_eq!(got, [1, 38, 0, 1, 1, 0, 1]);
}
