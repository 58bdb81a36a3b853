//! Supervisors killed at every stage, and those that take over.

use std::fs;
use std::os::fd::AsFd;

use amphora_cgroup::Cgroup;
use amphora_spec::release::Release;
use amphora_spec::runtime::Resources;
use amphora_supervisor::*;
use amphora_sys::{LaunchPlan, Op};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    (
        "a_killed_supervisor_blocks_output_and_an_adopted_one_goes_on",
        adopt_live,
    ),
    (
        "an_adopted_code_is_read_after_a_foreign_reaper",
        adopt_reaped,
    ),
    ("an_end_nobody_saw_is_recorded_as_unknown", adopt_dead),
    ("an_end_already_recorded_is_kept", adopt_recorded),
    ("a_start_killed_at_any_moment_is_put_right", killed_start),
    ("a_container_out_of_memory_is_recorded_as_such", oom),
    (
        "a_child_in_the_middle_of_its_plan_is_put_right",
        killed_in_launch,
    ),
    (
        "a_starter_that_dies_before_the_hand_over_leaves_nothing",
        dead_starter,
    ),
];

fn adopt_live() {
    let mut test = TestBox::new();
    fs::write(test.root.join("name"), "").unwrap();
    test.config.release = vec![Release::Unlink(test.root.join("name"))];
    test.config.log.max_size = 0;
    let spawned = test.start("seq 1 100000; echo middle >&2; seq 1 100000; exit 21");
    let log = test.config.data_dir.join("logs/json.log");
    until("some output", || {
        fs::metadata(&log).is_ok_and(|m| m.len() > 0)
    });
    kill_supervisor(&test, spawned.supervisor_pid);
    let state = test.state();
    assert!(state.init_alive().unwrap(), "the container lives");
    // It fills the pipe and waits.
    let mode = AttachMode {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    assert!(Client::attach(&test.config.run_dir, mode).is_err());
    assert!(state.init_alive().unwrap());
    let adopted = adopt(AdoptRequest {
        attach: Some(mode),
        ..test.adopt_request()
    })
    .unwrap();
    assert_eq!(adopted.init_pid, Some(spawned.init_pid));
    assert!(test.state().adopted && is_alive(test.run_dir().as_fd()).unwrap());
    let mut client = adopted.client.unwrap();
    let (out, err, status) = drain(&mut client);
    assert_eq!(status.code, 21);
    assert!(out.ends_with(b"\n100000\n") && err == b"middle\n");
    let record = test.record();
    assert_eq!((record.code, record.error.as_str()), (21, ""));
    assert!(!test.root.join("name").exists());
    // What the killed supervisor had read and not yet logged is lost, nothing else.
    let log = test.logged("stdout");
    assert!(log.starts_with("1\n2\n") && log.ends_with("\n99999\n100000\n"));
    let want: usize = (1..=100_000_u32)
        .map(|n| n.to_string().len() + 1)
        .sum::<usize>()
        * 2;
    assert!(want - log.len() <= 64 << 10, "{} of {want}", log.len());
    test.finished();
    reap(adopted.supervisor_pid);
    reap(spawned.init_pid);
}

fn adopt_reaped() {
    let test = TestBox::new();
    let spawned = test.start("trap 'exit 17' TERM; while :; do sleep 0.02; done");
    kill_supervisor(&test, spawned.supervisor_pid);
    let adopted = adopt(test.adopt_request()).unwrap();
    let reaper = std::thread::spawn(move || reap(spawned.init_pid));
    // The shell may not have set its trap yet; TERM is then ignored by a namespace's init.
    until("the end", || {
        let ended = test.state().status == Status::Exited;
        if !ended {
            let _ = Client::connect(&test.config.run_dir).and_then(|mut c| c.signal(15));
        }
        ended
    });
    reaper.join().unwrap();
    assert_eq!(test.record().code, 17);
    assert_eq!(test.record().error, "");
    test.finished();
    reap(adopted.supervisor_pid);
}

fn adopt_dead() {
    let mut test = TestBox::new();
    fs::write(test.root.join("name"), "").unwrap();
    test.config.release = vec![Release::Unlink(test.root.join("name"))];
    let spawned = test.start("exec sleep 1000");
    kill_supervisor(&test, spawned.supervisor_pid);
    kill(spawned.init_pid, 9);
    reap(spawned.init_pid);
    let adopted = adopt(test.adopt_request()).unwrap();
    assert_eq!(adopted.init_pid, None);
    test.finished();
    let record = test.record();
    assert_eq!(record.code, ExitRecord::UNKNOWN);
    assert!(record.error.contains("killed"), "{record:?}");
    assert_eq!(test.state().status, Status::Exited);
    assert!(!test.root.join("name").exists());
    reap(adopted.supervisor_pid);
}

fn adopt_recorded() {
    let test = TestBox::new();
    let spawned = test.start("exit 12");
    assert_eq!(test.wait().code, 12);
    test.finished();
    reap(spawned.supervisor_pid);
    let before = test.record();
    fs::remove_file(test.root.join("finished")).unwrap();
    // As if it had been killed between the record and `finish`.
    let adopted = adopt(test.adopt_request()).unwrap();
    assert_eq!(adopted.init_pid, None);
    test.finished();
    assert_eq!(test.record(), before);
    reap(adopted.supervisor_pid);
}

/// Kills the supervisor some microseconds after it is born, over the whole length of a start.
fn killed_start() {
    let mut seen = [0; 3];
    // A duration that no other process sleeps for.
    let mark = format!("1000.{}", std::process::id());
    for round in 0..60_u32 {
        let mut test = TestBox::new();
        // A child of which no record was made yet is found by its cgroup.
        let cgroup = cgroup(round, &Resources::default());
        test.config.cgroup = Some(cgroup.handle());
        let mut plan = shell(&format!("exec sleep {mark}"));
        join(&mut plan, &cgroup);
        let (root, delay) = (test.root.clone(), round * 10);
        let killer = std::thread::spawn(move || kill_at(&root, delay));
        let result = spawn(test.request(plan));
        killer.join().unwrap();
        if let Ok(spawned) = &result {
            kill_supervisor(&test, spawned.supervisor_pid);
        }
        // A child in the middle of its plan holds the lock until it is its program.
        until("a free lock", || !is_alive(test.run_dir().as_fd()).unwrap());
        let state = State::read(test.run_dir().as_fd()).unwrap();
        seen[usize::from(state.is_some()) + usize::from(result.is_ok())] += 1;
        if state.is_some() {
            let adopted = adopt(test.adopt_request()).unwrap();
            if let Some(init) = adopted.init_pid {
                kill(init, 9);
            }
            test.finished();
            assert!(!test.state().init_alive().unwrap());
            reap(adopted.supervisor_pid);
        }
        reap_orphans();
        until("no process left", || {
            !left_over(&format!("sleep\u{0}{mark}"))
        });
        remove(&cgroup);
    }
    println!("  killed before any record, in the middle, after the start: {seen:?}");
}

fn cgroup(n: u32, resources: &Resources) -> Cgroup {
    let name = format!("amphora-sup-{}-{n}", std::process::id());
    Cgroup::create("amphora-sup-test", &name, resources).unwrap()
}

/// Removes the cgroup, and its parent with the last one.
fn remove(cgroup: &Cgroup) {
    cgroup.remove().unwrap();
    for parent in cgroup.paths().iter().filter_map(|path| path.parent()) {
        let _ = fs::remove_dir(parent);
    }
}

fn join(plan: &mut LaunchPlan, cgroup: &Cgroup) {
    plan.cgroup = cgroup
        .launch_fd()
        .map(|fd| plan.add_fd(fd.try_clone_to_owned().unwrap()));
    for tasks in cgroup.tasks_fds().unwrap() {
        let tasks = plan.add_fd(tasks);
        plan.ops.push(Op::JoinCgroup { tasks });
    }
}

/// The kernel kills for want of memory, and the record says so.
fn oom() {
    let mut test = TestBox::new();
    let limit = serde_json::json!({"memory": {"limit": 16 << 20}});
    let cgroup = cgroup(1000, &serde_json::from_value(limit).unwrap());
    test.config.cgroup = Some(cgroup.handle());
    let mut plan = shell("exec tail /dev/zero");
    join(&mut plan, &cgroup);
    let spawned = spawn(test.request(plan)).unwrap();
    assert_eq!(
        test.wait(),
        ExitStatus {
            code: 137,
            signal: 9,
            oom_killed: true
        }
    );
    assert!(test.record().oom_killed);
    test.finished();
    reap(spawned.supervisor_pid);
    remove(&cgroup);
}

/// Waits for the supervisor of a starting test, a little longer, and kills it.
fn kill_at(root: &std::path::Path, microseconds: u32) {
    let me = std::process::id();
    let children = format!("/proc/{me}/task/{me}/children");
    let begin = std::time::Instant::now();
    let pid = loop {
        let text = fs::read_to_string(&children).unwrap();
        if let Some(pid) = text.split(' ').find_map(|p| p.trim().parse().ok()) {
            break pid;
        }
        if begin.elapsed() > DEADLINE || root.join("finished").exists() {
            return;
        }
    };
    let begin = std::time::Instant::now();
    while begin.elapsed().as_micros() < u128::from(microseconds) {
        std::hint::spin_loop();
    }
    kill(pid, 9);
}

/// The child stands in the middle of its plan when its supervisor is killed.
fn killed_in_launch() {
    let test = TestBox::new();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut plan = shell("exec sleep 1000");
    let release = plan.add_fd(read);
    plan.ops.push(Op::Await { release });
    let result = std::thread::scope(|scope| {
        let starting = scope.spawn(|| spawn(test.request(plan)));
        let state = || State::read(test.run_dir().as_fd()).unwrap();
        until("a recorded child", || {
            state().is_some_and(|s| s.init_pid > 0)
        });
        assert_eq!(state().unwrap().status, Status::Starting);
        kill(state().unwrap().supervisor_pid, 9);
        starting.join().unwrap()
    });
    assert!(
        matches!(result, Err(SupervisorError::Died { .. })),
        "{result:?}"
    );
    // The child goes on and becomes its program; with that it lets go of the lock.
    rustix::io::write(&write, b"x").unwrap();
    until("a free lock", || !is_alive(test.run_dir().as_fd()).unwrap());
    let state = test.state();
    assert!(state.init_alive().unwrap());
    let adopted = adopt(test.adopt_request()).unwrap();
    assert_eq!(adopted.init_pid, None);
    test.finished();
    assert!(
        test.record().error.contains("while it started"),
        "{:?}",
        test.record()
    );
    until("the end of the child", || !state.init_alive().unwrap());
    assert_eq!(test.logged("stdout"), "");
    reap(adopted.supervisor_pid);
    reap(state.init_pid);
}

fn reap_orphans() {
    while let Ok(Some(_)) = waitpid(None::<Pid>, WaitOptions::NOHANG) {}
}

fn left_over(cmdline: &str) -> bool {
    reap_orphans();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|c| c.starts_with(cmdline))
    })
}

fn dead_starter() {
    use amphora_sys::process::{Spawn, spawn_self};
    let test = TestBox::new();
    let (ours, theirs) = amphora_sys::channel::pair().unwrap();
    let args = ["amphora", "supervise"].map(|a| std::ffi::CString::new(a).unwrap());
    let launched = spawn_self(&Spawn {
        program: test.exe.as_fd(),
        args: &args,
        env: &[],
        fds: &[(theirs.as_fd(), 3)],
        cgroup: None,
        cgroup_tasks: &[],
    })
    .unwrap();
    drop((ours, theirs));
    reap(launched.pid);
    assert_eq!(fs::read_dir(&test.config.run_dir).unwrap().count(), 0);
}
