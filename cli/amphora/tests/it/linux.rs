//! What only a Linux container shows: isolation, limits, nothing of the caller inside.

use crate::fixtures::busybox_image;
use crate::sandbox::{Sandbox, path};

pub(crate) fn busybox() -> Sandbox {
    let mut s = Sandbox::new();
    s.load_image(&busybox_image("bb"));
    s.run(&["run", "--rm", "bb", "true"]).ok();
    s.settle();
    s.mark();
    s
}

/// Runs a script in a container of busybox.
pub(crate) fn sh(s: &Sandbox, flags: &[&str], script: &str) -> String {
    let mut args = vec!["run", "--rm"];
    args.extend(flags);
    args.extend(["bb", "sh", "-c", script]);
    s.run(&args).ok()
}

#[test]
fn namespaces_are_its_own() {
    let s = busybox();
    let inside = sh(
        &s,
        &[],
        "for n in pid mnt net uts ipc cgroup; do readlink /proc/self/ns/$n; done",
    );
    let names = ["pid", "mnt", "net", "uts", "ipc", "cgroup"];
    assert_eq!(inside.lines().count(), names.len(), "{inside}");
    for (line, name) in inside.lines().zip(names) {
        assert!(line.starts_with(&format!("{name}:[")), "{inside}");
        let outside = std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
        assert_ne!(line, outside.to_str().unwrap());
    }
    assert_eq!(sh(&s, &[], "echo $$"), "1\n");
    assert_eq!(sh(&s, &["-h", "box"], "hostname"), "box\n");
    let mounts = sh(&s, &[], "cut -d ' ' -f 5 /proc/self/mountinfo");
    for mount in mounts.lines() {
        let own = ["/proc", "/dev", "/sys", "/etc/"]
            .iter()
            .any(|p| mount.starts_with(p));
        assert!(
            own || mount == "/",
            "a mount of the host is visible: {mount}"
        );
    }
}

#[test]
fn dev_proc_and_sys_are_as_the_specification_lists() {
    let s = busybox();
    let dev = sh(&s, &[], "ls /dev");
    for name in [
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ] {
        assert!(dev.lines().any(|l| l == name), "{name} is not in:\n{dev}");
    }
    assert_eq!(sh(&s, &[], "echo x > /dev/null; head -c 4 /dev/zero | wc -c 2>/dev/null || true; stat -c %t:%T /dev/null").lines().last(), Some("1:3"));
    // Masked, read-only, writable.
    assert_eq!(
        sh(
            &s,
            &[],
            "for f in kcore keys timer_list; do test -e /proc/$f && head -c 9 /proc/$f; done; true"
        ),
        ""
    );
    assert_eq!(
        sh(
            &s,
            &[],
            "ls /proc/scsi /sys/firmware 2>/dev/null | grep -v :; true"
        ),
        ""
    );
    for file in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm/ksm/run",
    ] {
        let out = s.run(&["run", "--rm", "bb", "sh", "-c", &format!("echo 1 > {file}")]);
        assert_ne!(out.code, 0, "{file} is writable");
    }
}

#[test]
fn capabilities_and_seccomp_are_docker_s() {
    let s = busybox();
    let status = sh(
        &s,
        &[],
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status",
    );
    assert!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    assert!(status.contains("CapBnd:\t00000000a80425fb"), "{status}");
    assert!(status.contains("CapInh:\t0000000000000000"), "{status}");
    assert!(
        status.contains("NoNewPrivs:\t0") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    let none = sh(
        &s,
        &["--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
        "grep -E '^(CapEff|NoNew)' /proc/self/status",
    );
    assert!(
        none.contains("CapEff:\t0000000000000000") && none.contains("NoNewPrivs:\t1"),
        "{none}"
    );
    let open = sh(
        &s,
        &["--security-opt", "seccomp=unconfined"],
        "grep Seccomp: /proc/self/status",
    );
    assert!(open.contains("Seccomp:\t0"), "{open}");
    // Seccomp refuses a new user namespace, the missing capability a mount.
    assert_ne!(
        s.run(&["run", "--rm", "bb", "unshare", "-U", "true"]).code,
        0
    );
    assert_ne!(
        s.run(&["run", "--rm", "bb", "mount", "-t", "tmpfs", "x", "/tmp"])
            .code,
        0
    );
    // Devices beyond Docker's list cannot be opened, though a node can be made.
    let node = s.run(&[
        "run",
        "--rm",
        "bb",
        "sh",
        "-c",
        "mknod /tmp/d b 254 0 && dd if=/tmp/d of=/dev/null count=1",
    ]);
    assert!(node.stderr.contains("not permitted"), "{node:?}");
}

#[test]
fn users_and_directories() {
    let s = busybox();
    assert_eq!(
        sh(&s, &["-u", "alice"], "id"),
        "uid=1000(alice) gid=1000(alice) groups=10(wheel),1000(alice)\n"
    );
    assert_eq!(sh(&s, &["-u", "77:88"], "id"), "uid=77 gid=88 groups=88\n");
    assert_eq!(sh(&s, &["-w", "/made/here"], "pwd"), "/made/here\n");
    s.run(&["run", "--rm", "-u", "nobody-here", "bb", "true"])
        .fails(125, "unable to find user nobody-here");
    let capless = sh(&s, &["-u", "alice"], "grep CapEff /proc/self/status");
    assert!(capless.contains("0000000000000000"), "{capless}");
}

#[test]
fn the_caller_does_not_leak_in() {
    let s = busybox();
    let look = "umask; cut -d \" \" -f 19 /proc/self/stat; ulimit -n; ls -l /proc/self/fd | grep -c pipe; grep -E 'Sig(Ign|Blk)' /proc/self/status; env; cat /proc/self/oom_score_adj; cat /proc/self/sessionid; cat /proc/self/limits";
    let plain = sh(&s, &["-h", "h"], look);
    let mut command = std::process::Command::new("sh");
    let script = format!(
        "ulimit -S -n 64; umask 077; trap '' TERM HUP INT; exec 9</etc/passwd; exec nice -n 10 prlimit --sigpending=100: --rttime=5000000: {} run --rm -h h bb sh -c '{}'",
        env!("CARGO_BIN_EXE_amphora"),
        look.replace('\'', "'\\''")
    );
    let odd = command
        .args(["-c", &script])
        .env("AMPHORA_ROOT", s.root())
        .env("AMPHORA_RUN_ROOT", s.run_root())
        .env("SECRET", "x")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&odd.stdout),
        plain,
        "{}",
        String::from_utf8_lossy(&odd.stderr)
    );
    assert!(!plain.contains("SECRET"));
}

#[test]
fn descriptors_inside_are_only_stdio() {
    let s = busybox();
    let fds = sh(&s, &[], "ls /proc/1/fd; true");
    let open: Vec<&str> = fds
        .lines()
        .filter(|l| l.parse::<u32>().is_ok_and(|n| n < 10))
        .collect();
    assert_eq!(open, ["0", "1", "2"], "{fds}");
}

#[test]
fn commands_that_cannot_start() {
    let s = busybox();
    s.run(&["run", "--rm", "bb", "nonsense"])
        .fails(127, "executable file not found in $PATH");
    s.run(&["run", "--rm", "bb", "/etc/passwd"])
        .fails(126, "permission denied");
    s.run(&["run", "--rm", "bb", "/no/such"])
        .fails(127, "no such file or directory");
    s.run(&["run", "--rm", "--entrypoint", "/bin/false", "bb"])
        .fails(1, "");
}

#[test]
fn pids_limit_refuses_a_fork() {
    if !crate::sandbox::has_controller("pids") {
        return;
    }
    let s = busybox();
    let out = s.run(&[
        "run",
        "--rm",
        "--pids-limit",
        "6",
        "bb",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo unreachable",
    ]);
    assert!(out.stderr.contains("can't fork"), "{out:?}");
}

#[test]
fn cpus_throttle() {
    if !crate::sandbox::has_controller("cpu") {
        return;
    }
    let s = Sandbox::ready();
    let rounds = |flags: &[&str]| -> u64 {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend(["probe-linux", "spin", "600"]);
        s.run(&args).ok().trim().parse().unwrap()
    };
    let (free, held) = (rounds(&[]), rounds(&["--cpus", "0.2"]));
    assert!(
        held * 2 < free,
        "0.2 CPUs did {held} rounds, all of them {free}"
    );
}

#[test]
fn hosts_and_resolver_files_are_there() {
    let s = busybox();
    let hosts = sh(
        &s,
        &["-h", "box", "--add-host", "db:10.1.2.3"],
        "cat /etc/hosts",
    );
    assert!(
        hosts.contains("127.0.0.1\tlocalhost") && hosts.contains("box"),
        "{hosts}"
    );
    assert!(hosts.contains("10.1.2.3\tdb"), "{hosts}");
    assert!(sh(&s, &[], "cat /etc/resolv.conf").contains("nameserver"));
    assert_eq!(sh(&s, &["-h", "box"], "cat /etc/hostname"), "box\n");
    let route = sh(&s, &[], "ip route");
    assert!(route.starts_with("default via "), "{route}");
}

#[test]
fn what_a_container_writes_stays_until_it_is_removed() {
    let s = busybox();
    s.run(&[
        "create",
        "--name",
        "keep",
        "bb",
        "sh",
        "-c",
        "cat /note; echo written > /note",
    ])
    .ok();
    s.run(&["start", "-a", "keep"]).fails(0, "No such file");
    assert_eq!(s.run(&["start", "-a", "keep"]).ok(), "written\n");
    s.run(&["rm", "keep"]).ok();
}

#[test]
fn mount_targets_cannot_leave_the_root() {
    let s = Sandbox::new();
    let archive = s.dir.join("evil.tar");
    let mut image = busybox_image("evil");
    image = image.layer(
        &[
            crate::fixtures::link("escape", "../../../../../../tmp"),
            crate::fixtures::link("etc/hosts", "/../../../../tmp/amphora-it/canary"),
        ],
        crate::fixtures::Wrap::Plain,
    );
    image.write_oci(&archive);
    s.run(&["load", "-i", path(&archive)]).ok();
    std::fs::write(s.dir.join("canary"), "alive").unwrap();
    let out = s.run(&[
        "run",
        "--rm",
        "-v",
        "v:/escape/amphora-it",
        "evil",
        "sh",
        "-c",
        "echo x > /tmp/amphora-it/f; cat /etc/hosts",
    ]);
    assert_eq!(
        std::fs::read_to_string(s.dir.join("canary")).unwrap(),
        "alive"
    );
    assert!(!s.dir.join("f").exists(), "a mount left the root: {out:?}");
}

#[test]
fn the_host_s_files_are_not_a_host_network_s_to_change() {
    let s = busybox();
    let files = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
    let read = || files.map(|f| std::fs::read(f).unwrap_or_default());
    let before = read();
    let script = "cat /etc/hosts; for f in hosts resolv.conf hostname; do echo scribble >>/etc/$f; done; hostname";
    let flags = ["--network", "host", "--add-host", "extra:192.0.2.7"];
    let shown = sh(&s, &flags, script);
    assert_eq!(read(), before);
    assert!(shown.contains("192.0.2.7\textra\n"), "{shown}");
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    assert_eq!(shown.lines().last(), Some(&*name));
}

#[test]
fn a_tmpfs_in_a_volume_is_not_covered_by_it() {
    let s = busybox();
    let flags = ["-v", "outer:/srv", "--tmpfs", "/srv/cache"];
    sh(
        &s,
        &flags,
        "echo secret >/srv/cache/key; echo kept >/srv/file",
    );
    assert_eq!(
        sh(&s, &["-v", "outer:/srv"], "ls /srv /srv/cache"),
        "/srv:\ncache\nfile\n\n/srv/cache:\n"
    );
    s.run(&["volume", "rm", "outer"]).ok();
}

#[test]
fn an_anonymous_volume_stays_while_another_container_names_it() {
    let s = busybox();
    s.run(&[
        "run", "-d", "--rm", "--name", "first", "-v", "/data", "bb", "sleep", "600",
    ])
    .ok();
    let shown = s.inspect("first");
    let volume = shown["Mounts"][0]["Name"].as_str().unwrap().to_owned();
    let bind = format!("{volume}:/x");
    s.run(&[
        "run",
        "--name",
        "second",
        "-v",
        &bind,
        "bb",
        "sh",
        "-c",
        "echo mine >/x/file",
    ])
    .ok();
    s.run(&["stop", "-t", "0", "first"]).ok();
    s.settle();
    assert_eq!(
        s.run(&["run", "--rm", "-v", &bind, "bb", "cat", "/x/file"])
            .ok(),
        "mine\n"
    );
    s.run(&["rm", "second"]).ok();
    s.run(&["volume", "rm", &volume]).ok();
}

#[test]
fn a_start_that_fails_keeps_the_last_exit_code() {
    let s = busybox();
    let args = [
        "run", "--name", "three", "-p", "8085:80", "bb", "sh", "-c", "exit 3",
    ];
    s.run(&args).fails(3, "");
    let taken = std::net::TcpListener::bind("0.0.0.0:8085").unwrap();
    s.run(&["start", "three"]).fails(1, "8085");
    assert_eq!(s.inspect("three")["State"]["Status"], "exited");
    assert_eq!(s.run(&["wait", "three"]).ok(), "3\n");
    drop(taken);
    s.run(&["start", "-a", "three"]).fails(3, "");
    s.run(&["rm", "three"]).ok();
}

#[test]
fn forced_removal_of_what_is_not_there_says_so_and_succeeds() {
    let s = busybox();
    let out = s.run(&["rm", "-f", "nobody"]);
    assert_eq!((out.code, out.stdout.as_str()), (0, ""));
    assert!(out.stderr.contains("No such container: nobody"), "{out:?}");
    s.run(&["run", "-d", "--name", "long", "bb", "true"]).ok();
    s.run(&["stop", "-t", "9223372036854775807", "long"]).ok();
    s.run(&["rm", "long"]).ok();
}
