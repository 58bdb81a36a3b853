//! What an idle supervisor costs.

use std::fs;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[("a_hundred_idle_supervisors_stay_small", idle)];

/// Private dirty memory of one supervisor, in KiB: the goal is 100.
const DIRTY_MAX: u64 = 128;

fn field(pid: i32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn idle() {
    let begin = std::time::Instant::now();
    let boxes: Vec<_> = (0..100)
        .map(|_| {
            let test = TestBox::new();
            let spawned = test.start("echo started; seq 1 20000; exec sleep 1000");
            (test, spawned)
        })
        .collect();
    let started = begin.elapsed();
    let dirty = |pid| field(pid, "Private_Dirty:");
    until("idle buffers to go", || {
        boxes
            .iter()
            .all(|(_, s)| dirty(s.supervisor_pid) < DIRTY_MAX)
    });
    let sum = |name: &str| {
        boxes
            .iter()
            .map(|(_, s)| field(s.supervisor_pid, name))
            .sum::<u64>()
    };
    println!(
        "  100 started in {started:?}; each idle: PSS {} KiB, private dirty {} KiB, RSS {} KiB",
        sum("Pss:") / 100,
        sum("Private_Dirty:") / 100,
        sum("Rss:") / 100,
    );
    for (test, spawned) in &boxes {
        kill(spawned.init_pid, 9);
        assert_eq!(test.wait().code, 137);
        test.finished();
        reap(spawned.supervisor_pid);
    }
}
