//! The process of a container: identity, rights, limits, environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use amphora_spec::runtime::{Rlimit, User};
use amphora_sys::pidfd::Exit;
use amphora_sys::plan::Op;

use crate::fixture::{Container, field};

#[test]
fn capabilities_are_dockers_default() {
    let status = Container::new(&["cat", "/proc/self/status"]).says();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(field(&status, set), "00000000a80425fb", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "0");
    assert_eq!(field(&status, "Seccomp"), "2");
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
}

#[test]
fn another_user_has_its_groups_and_no_capabilities_but_the_ambient() {
    let mut container =
        Container::sh("id; cat /proc/self/status; echo out > /dev/stdout; touch /x");
    container.spec.process.user = User {
        uid: 1000,
        gid: 1001,
        umask: None,
        additional_gids: vec![1001, 4, 20],
    };
    container.spec.process.no_new_privileges = true;
    let said = container.run().unwrap();
    let out = said.out;
    assert!(
        out.starts_with("uid=1000 gid=1001 groups=4,20,1001\n"),
        "{out}"
    );
    assert_eq!(field(&out, "CapEff"), "0000000000000000");
    assert_eq!(field(&out, "CapBnd"), "00000000a80425fb");
    assert_eq!(field(&out, "NoNewPrivs"), "1");
    assert!(out.contains("\nout\n"), "{out}");
    assert!(out.ends_with("touch: /x: Permission denied\n"), "{out}");
    assert_eq!(said.exit, Exit::Code(1));

    let caps = container.spec.process.capabilities.as_mut().unwrap();
    for set in [&mut caps.ambient, &mut caps.inheritable] {
        *set = vec!["CAP_NET_BIND_SERVICE".into()];
    }
    let out = container.run().unwrap().out;
    assert_eq!(field(&out, "CapEff"), "0000000000000400");
}

#[test]
fn no_capabilities_means_none() {
    let mut container = Container::new(&["cat", "/proc/self/status"]);
    container.spec.process.capabilities = None;
    let status = container.says();
    assert_eq!(field(&status, "CapBnd"), "0000000000000000");
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
}

/// Allows everything: load and return.
const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];

#[test]
fn seccomp_filter_is_loaded_before_and_after_no_new_privs() {
    for nnp in [false, true] {
        let mut container = Container::new(&["cat", "/proc/self/status"]);
        container.spec.process.no_new_privileges = nnp;
        let bundle = container.bundle();
        let options = amphora_executor::BaseOptions {
            seccomp: Some(amphora_executor::seccomp::Filter {
                program: ALLOW.to_vec(),
                flags: 0,
            }),
            program: amphora_executor::Program::Entrypoint,
        };
        let plan = amphora_executor::base_plan(&bundle, options).unwrap();
        let at = |wanted: fn(&Op) -> bool| plan.ops.iter().position(wanted).unwrap();
        let (filter, caps) = (
            at(|op| matches!(op, Op::Seccomp { .. })),
            at(|op| matches!(op, Op::BoundingSet(_))),
        );
        assert_eq!(filter > caps, nnp);
        let status = run_plan(plan);
        bundle.cgroup.remove().unwrap();
        assert_eq!(field(&status, "Seccomp"), "2");
        assert_eq!(field(&status, "NoNewPrivs"), if nnp { "1" } else { "0" });
    }
}

fn run_plan(mut plan: amphora_sys::LaunchPlan) -> String {
    use std::io::Read;
    use std::os::fd::AsFd;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let out = plan.add_fd(write);
    plan.stdio = Some([out, out, out]);
    let launched = amphora_sys::launch(&plan).unwrap();
    drop(plan);
    let mut text = String::new();
    fs::File::from(read).read_to_string(&mut text).unwrap();
    amphora_sys::pidfd::wait(launched.pidfd.as_fd(), amphora_sys::pidfd::Wait::Block).unwrap();
    text
}

#[test]
fn default_filter_refuses_what_dockers_does_and_unconfined_has_none() {
    let script = "grep ^Seccomp: /proc/self/status; unshare -U true; unshare -m true";
    let mut container = Container::sh(script);
    let out = container.run().unwrap().out;
    assert_eq!(out.matches("Operation not permitted").count(), 2, "{out}");
    assert_eq!(field(&out, "Seccomp"), "2");
    container.seccomp = amphora_executor::SeccompChoice::Unconfined;
    let out = container.run().unwrap().out;
    assert_eq!(field(&out, "Seccomp"), "0");
    assert_eq!(out.matches("Operation not permitted").count(), 1, "{out}");
}

#[test]
fn program_by_descriptor_gets_its_descriptors_at_their_numbers() {
    let mut container = Container::sh("true");
    let bundle = container.bundle();
    let file = container.dir.join("given");
    fs::write(&file, "given\n").unwrap();
    let busybox = fs::File::open("/bin/busybox").unwrap();
    let script = "cat <&4; ls /proc/self/fd; ls /bin/busybox; cat /proc/1/comm; echo $A";
    let options = amphora_executor::BaseOptions {
        seccomp: None,
        program: amphora_executor::Program::Fd {
            program: busybox.into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".into(), "A=1".into()],
            fds: vec![
                (fs::File::open(&file).unwrap().into(), 4),
                (fs::File::open("/dev/null").unwrap().into(), 3),
            ],
        },
    };
    let plan = amphora_executor::base_plan(&bundle, options).unwrap();
    let text = run_plan(plan);
    bundle.cgroup.remove().unwrap();
    assert!(
        text.starts_with("given\n0\n1\n2\n3\n4\n5\n/bin/busybox\n"),
        "{text}"
    );
    assert!(text.ends_with("\n1\n"), "{text}");
}

#[test]
fn environment_is_exactly_the_specs() {
    let mut container = Container::new(&["/bin/env"]);
    container.spec.process.env = ["B=2", "A=one two", "EMPTY=", "NOVALUE"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(container.says(), "B=2\nA=one two\nEMPTY=\nNOVALUE\n");
}

#[test]
fn limits_umask_and_score_are_set() {
    let mut container =
        Container::sh("ulimit -Sn; ulimit -Hn; ulimit -c; umask; cat /proc/self/oom_score_adj");
    let limit = |kind: &str, soft, hard| Rlimit {
        kind: kind.into(),
        soft,
        hard,
    };
    container.spec.process.rlimits =
        vec![limit("RLIMIT_NOFILE", 9, 10), limit("RLIMIT_CORE", 0, 0)];
    container.spec.process.user.umask = Some(0o027);
    container.spec.process.oom_score_adj = Some(300);
    assert_eq!(container.says(), "9\n10\n0\n0027\n300\n");
}

#[test]
fn working_directory_is_made_or_entered_through_links_inside() {
    let mut container = Container::sh("pwd; /bin/busybox pwd");
    std::os::unix::fs::symlink("/../../tmp/deep", container.root().join("desk")).unwrap();
    container.spec.process.cwd = "/desk/dir".into();
    assert_eq!(container.says(), "/tmp/deep/dir\n/tmp/deep/dir\n");
    container.spec.process.cwd = "/bin/sh".into();
    let error = container.run().unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to change to working directory \"/bin/sh\""
    );
    // A descriptor of the host is no way out (CVE-2024-21626).
    container.spec.process.cwd = "/proc/self/fd/7".into();
    assert!(container.run().is_err());
}

#[test]
fn working_directory_of_another_user_is_entered() {
    let mut container = Container::sh("pwd; ls");
    let private = container.root().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&private, Some(1000), Some(1000)).unwrap();
    container.spec.process.cwd = "/private".into();
    container.spec.process.user = User {
        uid: 1000,
        gid: 1000,
        ..User::default()
    };
    assert_eq!(container.says(), "/private\n");
}

#[test]
fn terminal_is_in_the_containers_devpts_and_controls_the_session() {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let mut container =
        Container::sh("tty; stat -c '%F %U' /dev/console; read x; echo got $x >/dev/tty");
    container.spec.process.terminal = true;
    let bundle = container.bundle();
    let mut plan =
        amphora_executor::Workload::prepare(&amphora_linux::LinuxWorkload, &bundle).unwrap();
    let (ours, theirs) = amphora_sys::channel::pair().unwrap();
    plan.console = Some(plan.add_fd(theirs));
    let launched = amphora_sys::launch(&plan).unwrap();
    drop(plan);
    let (_, mut fds) = amphora_sys::channel::recv(ours.as_fd(), 16)
        .unwrap()
        .unwrap();
    let mut terminal = fs::File::from(fds.remove(0));
    terminal.write_all(b"hello\n").unwrap();
    let mut text = Vec::new();
    let mut part = [0u8; 256];
    // The last reader of a terminal is told EIO.
    while let Ok(n @ 1..) = terminal.read(&mut part) {
        text.extend_from_slice(&part[..n]);
    }
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    amphora_sys::pidfd::wait(launched.pidfd.as_fd(), amphora_sys::pidfd::Wait::Block).unwrap();
    bundle.cgroup.remove().unwrap();
    assert!(text.contains("/dev/pts/0\n"), "{text}");
    assert!(text.contains("character special file"), "{text}");
    assert!(text.ends_with("got hello\n"), "{text}");
}

#[test]
fn launch_waits_at_the_gate_until_released() {
    use std::os::fd::AsFd;
    let mut container = Container::sh("exit 5");
    let bundle = container.bundle();
    let mut plan =
        amphora_executor::Workload::prepare(&amphora_linux::LinuxWorkload, &bundle).unwrap();
    let (gate, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let gate = plan.add_fd(gate);
    plan.ops.push(Op::Await { release: gate });
    let pending = amphora_sys::launch::start(&plan).unwrap();
    pending.wait_ready().unwrap();
    let comm = fs::read_to_string(format!("/proc/{}/comm", pending.launched().pid)).unwrap();
    assert_ne!(comm, "sh\n");
    rustix::io::write(&release, b"x").unwrap();
    let launched = pending.finish().unwrap();
    let exit = amphora_sys::pidfd::wait(launched.pidfd.as_fd(), amphora_sys::pidfd::Wait::Block);
    assert_eq!(exit.unwrap(), Some(Exit::Code(5)));
    bundle.cgroup.remove().unwrap();
}
