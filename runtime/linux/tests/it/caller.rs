//! The caller's session does not leak in: this binary starts itself under a shell that has
//! changed all it can, and the container must look the same.

use std::process::Command;

use crate::fixture::Container;

const SCRIPT: &str = "umask; set -- $(cat /proc/self/stat); shift 18; echo $1; ulimit -Sn; ulimit -St; ulimit -Ss; cat /proc/self/oom_score_adj; \
    grep -E 'Sig(Blk|Ign)|Cpus_allowed_list' /proc/self/status; pwd; env; \
    cat /proc/self/personality /proc/self/timerslack_ns; \
    head -c 0 /proc/self/sched; od -An -tx1 -N0 /dev/null; ls /proc/self/fd";

/// Run by the other test, in a process of its own.
#[test]
fn inner() {
    // The inner half of the test below does nothing by itself.
    if std::env::var_os("AMPHORA_INNER").is_none() {
        return;
    }
    let out = Container::sh(SCRIPT).says();
    println!("<<<{out}>>>");
}

fn started_by(shell: &str) -> String {
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "{shell}; AMPHORA_INNER=1 exec \"$0\" --exact caller::inner --nocapture --test-threads=1"
    );
    let output = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .arg(own)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let inner = text
        .split_once("<<<")
        .and_then(|(_, rest)| rest.split_once(">>>"));
    inner
        .unwrap_or_else(|| panic!("{text}{output:?}"))
        .0
        .to_owned()
}

#[test]
fn caller_does_not_leak_into_the_container() {
    let plain = started_by("true");
    let strange = started_by(
        "ulimit -S -n 64; ulimit -S -s 4096; ulimit -S -t 1000; umask 077; trap '' TERM HUP PIPE; \
         renice -n 7 $$ >/dev/null; cd /usr/lib; export LEAK=1; exec 9</dev/null; \
         echo 400 > /proc/self/oom_score_adj; taskset -p 1 $$ >/dev/null 2>&1; \
         chrt -b -p 0 $$ >/dev/null 2>&1; ionice -c 3 -p $$ 2>/dev/null",
    );
    assert_eq!(plain, strange);
    let lines: Vec<&str> = plain.lines().collect();
    assert_eq!(
        lines[..5],
        ["0022", "0", "1024", "unlimited", "8192"],
        "{plain}"
    );
    assert_eq!(lines[5], "0");
    assert!(plain.contains("SigIgn:\t0000000000000000"), "{plain}");
}

#[test]
fn hard_limits_of_the_caller_are_lifted_as_far_as_the_kernel_lets_us() {
    let strange = started_by("ulimit -n 64");
    let soft: u64 = strange.lines().nth(2).unwrap().parse().unwrap();
    // Raising a hard limit takes CAP_SYS_RESOURCE.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caps = crate::fixture::field(&status, "CapEff").to_owned();
    let may_raise = u64::from_str_radix(&caps, 16).unwrap() & (1 << 24) != 0;
    assert_eq!(soft, if may_raise { 1024 } else { 64 });
}
