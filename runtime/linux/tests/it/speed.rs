//! How long a start takes. Not a test: run with `AMPHORA_MEASURE=1` and `--nocapture`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use amphora_executor::Workload;
use amphora_linux::LinuxWorkload;
use amphora_sys::pidfd::{Wait, wait};

use crate::fixture::Container;

fn shown(name: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[times.len() * part / 100].as_micros();
    println!(
        "{name:<32} min {:>5} p50 {:>5} p90 {:>5} us",
        times[0].as_micros(),
        at(50),
        at(90)
    );
}

#[test]
fn launch_of_true() {
    if std::env::var_os("AMPHORA_MEASURE").is_none() {
        return;
    }
    measure(|_| {});
}

/// As a container on a network starts: its namespace is there already.
#[test]
fn launch_of_true_in_a_network_that_is_there() {
    if std::env::var_os("AMPHORA_MEASURE").is_none() {
        return;
    }
    let netns = amphora_sys::ns::new_netns().unwrap();
    measure(|plan| {
        plan.clone_flags &= !(libc::CLONE_NEWNET as u64);
        let ns = plan.add_fd(netns.try_clone().unwrap());
        let join = amphora_sys::Op::SetNs {
            ns,
            kind: libc::CLONE_NEWNET,
        };
        for op in &mut plan.ops {
            if *op == amphora_sys::Op::LoopbackUp {
                *op = join.clone();
            }
        }
    });
}

/// For a machine that is not quiet: under `chrt -f 1 taskset -c 1`, which the container would
/// otherwise rightly leave.
#[test]
fn launch_of_true_with_the_callers_scheduling() {
    if std::env::var_os("AMPHORA_MEASURE").is_none() {
        return;
    }
    measure(|plan| {
        plan.ops
            .retain(|op| !matches!(op, amphora_sys::Op::ResetInherited));
    });
}

fn measure(change: impl Fn(&mut amphora_sys::LaunchPlan)) {
    const RUNS: usize = 300;
    let mut container = Container::new(&["true"]);
    let bundle = container.bundle();
    let (mut prepare, mut launched_in, mut whole) = (vec![], vec![], vec![]);
    for _ in 0..RUNS {
        let root = Container::clone_of(&container.root());
        let bundle = amphora_executor::Bundle {
            id: bundle.id.clone(),
            spec: bundle.spec.clone(),
            root,
            mounts: Vec::new(),
            netns: None,
            join: None,
            cgroup: bundle.cgroup.handle().open().unwrap().unwrap(),
            module: None,
            seccomp: bundle.seccomp,
            init: false,
        };
        let start = Instant::now();
        let mut plan = LinuxWorkload.prepare(&bundle).unwrap();
        change(&mut plan);
        let prepared = Instant::now();
        let launched = amphora_sys::launch(&plan).unwrap();
        let executed = Instant::now();
        wait(launched.pidfd.as_fd(), Wait::Block).unwrap();
        let done = Instant::now();
        prepare.push(prepared - start);
        launched_in.push(executed - prepared);
        whole.push(done - prepared);
    }
    shown("prepare", &mut prepare);
    shown("launch to exec", &mut launched_in);
    shown("launch to reaped", &mut whole);
    bundle.cgroup.remove().unwrap();
}

/// What each step adds: plans cut off after it, all ending in the same program.
#[test]
fn launch_step_by_step() {
    if std::env::var_os("AMPHORA_MEASURE").is_none() {
        return;
    }
    const RUNS: usize = 120;
    let mut container = Container::new(&["true"]);
    let bundle = container.bundle();
    let busybox = std::fs::File::open("/bin/busybox").unwrap();
    let whole = LinuxWorkload.prepare(&bundle).unwrap();
    let steps = whole.ops.len();
    let flags = whole.clone_flags;
    let mut before = 0;
    for cut in 0..=steps + 1 {
        let mut best = u128::MAX;
        for _ in 0..RUNS {
            let bundle = amphora_executor::Bundle {
                id: bundle.id.clone(),
                spec: bundle.spec.clone(),
                root: Container::clone_of(&container.root()),
                mounts: Vec::new(),
                netns: None,
                join: None,
                cgroup: bundle.cgroup.handle().open().unwrap().unwrap(),
                module: None,
                seccomp: bundle.seccomp,
                init: false,
            };
            let mut plan = LinuxWorkload.prepare(&bundle).unwrap();
            plan.ops.truncate(cut.saturating_sub(1));
            plan.clone_flags = if cut == 0 { 0 } else { flags };
            let program = plan.add_fd(busybox.try_clone().unwrap().into());
            let argv = vec![c"true".to_owned()];
            plan.exec = Some(amphora_sys::plan::Exec::Fd {
                program,
                argv,
                envp: vec![],
            });
            let start = Instant::now();
            let launched = amphora_sys::launch(&plan).unwrap();
            let done = start.elapsed().as_micros();
            wait(launched.pidfd.as_fd(), Wait::Block).unwrap();
            best = best.min(done);
        }
        let name = match cut {
            0 => "fork and exec".to_owned(),
            1 => "namespaces".to_owned(),
            _ => whole.ops[cut - 2].to_string(),
        };
        println!("{:>6} {:>+6} us  {name}", best, best.cast_signed() - before);
        before = best.cast_signed();
    }
    bundle.cgroup.remove().unwrap();
}
