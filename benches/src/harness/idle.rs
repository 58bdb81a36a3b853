//! Memory of idle containers: the user space that an engine keeps per container, and the kernel's
//! share, counted alike for all.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::args::Args;
use super::engine::{Engine, Kind};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::timing::pids;

/// Longest wait for processes to come to rest.
const REST: Duration = Duration::from_secs(20);

/// How a check is asked for, and how often. Long enough for a quiet moment between two checks.
const HEALTH: [&str; 4] = ["--health-cmd", "true", "--health-interval", "6s"];
/// From the last start until every container has been checked.
const CHECKED: Duration = Duration::from_secs(7);

/// KiB per container.
struct Idle {
    user: f64,
    with_kernel: f64,
}

fn measure(kind: Kind, args: &Args, place: &Place, more: &[&str]) -> Result<Idle> {
    let engine = Engine::new(kind, place, "idle")?;
    engine.load_hello(place)?;
    // One first, so that what an engine makes once (a bridge, a cache) is not counted.
    run_paused(&engine, "idle-first", &[])?;
    rest();
    let before: HashSet<i32> = pids().into_iter().collect();
    let kernel_before = kernel_kib()?;
    for index in 0..args.idle {
        run_paused(&engine, &format!("idle-{index}"), more)?;
    }
    if !more.is_empty() {
        std::thread::sleep(CHECKED);
        for index in 0..args.idle {
            checked(&engine, &format!("idle-{index}"))?;
        }
    }
    rest();
    let kernel = kernel_kib()? - kernel_before;
    let mut user = 0.0;
    for pid in pids().into_iter().filter(|pid| !before.contains(pid)) {
        user += pss_kib(pid).unwrap_or(0.0);
    }
    stop_all(&engine, args.idle)?;
    let count = f64::from(u32::try_from(args.idle.max(1))?);
    Ok(Idle {
        user: user / count,
        with_kernel: (user + kernel) / count,
    })
}

fn run_paused(engine: &Engine, name: &str, more: &[&str]) -> Result<()> {
    let image = engine.hello();
    let mut options = vec!["-d", "--name", name, "--entrypoint", "/bin/pause"];
    options.extend(more);
    options.push(image);
    engine.run_output(&options).map(drop)
}

/// A figure with checks that do not happen would be worth nothing.
fn checked(engine: &Engine, name: &str) -> Result<()> {
    let said = engine.output(&["inspect", "-f", "{{.State.Health.Status}}", name])?;
    ensure!(said.trim() == "healthy", "{name} is {:?}", said.trim());
    Ok(())
}

fn stop_all(engine: &Engine, count: usize) -> Result<()> {
    let names: Vec<String> = (0..count).map(|index| format!("idle-{index}")).collect();
    let mut args = vec!["rm", "-f", "idle-first"];
    args.extend(names.iter().map(String::as_str));
    engine.output(&args).map(drop)
}

/// Waits until the number of processes stands still for a second.
fn rest() {
    let deadline = Instant::now() + REST;
    let mut last = (pids().len(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(1) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        while crate::kernel::reap_one() {}
        let now = pids().len();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

/// Proportional set size of one process, the workload's own (`pause`) left out.
fn pss_kib(pid: i32) -> Option<f64> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if comm.trim() == "pause" {
        return None;
    }
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field(&rollup, "Pss:")
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Kernel memory that grows with containers.
fn kernel_kib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let names = [
        "SUnreclaim:",
        "SReclaimable:",
        "KernelStack:",
        "PageTables:",
        "Percpu:",
    ];
    let mut sum = 0.0;
    for name in names {
        sum += field(&text, name).with_context(|| format!("/proc/meminfo has no {name}"))?;
    }
    ensure!(sum > 0.0, "/proc/meminfo says nothing");
    Ok(sum)
}

/// What the row counts, with the checks that it is counted with.
const VARIANTS: [(&str, &[&str]); 2] = [("", &[]), (", a healthcheck every 6 s", &HEALTH)];

/// Row 8: user space alone and with the kernel's share, without and with healthchecks.
pub(super) fn row(args: &Args, place: &Place) -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, more) in VARIANTS {
        rows.extend(variant(args, place, what, more));
    }
    rows
}

fn variant(args: &Args, place: &Place, what: &str, more: &[&str]) -> [Row; 2] {
    const KIB_PER_MIB: f64 = 1024.0;
    let mut user = Vec::new();
    let mut whole = Vec::new();
    for kind in Kind::ALL {
        let name = kind.name();
        if args.without.iter().any(|left_out| left_out == name) {
            continue;
        }
        match measure(kind, args, place, more) {
            Ok(idle) => {
                user.push(Entry::values(name, &[idle.user]));
                whole.push(Entry::values(name, &[idle.with_kernel]));
            }
            Err(error) => user.push(Entry::skipped(name, format!("{error:#}"))),
        }
    }
    // The budget is absolute: a stand-in contestant carries it.
    user.push(Entry::values("1 MiB", &[KIB_PER_MIB]));
    whole.push(Entry::values("1 MB", &[1000.0]));
    let row = |counted: &str, yardsticks, first, goal, entries| {
        let title = format!(
            "idle container{what}, {counted}, over {} containers",
            args.idle
        );
        let budget = Budget {
            number: 8,
            title,
            unit: "KiB",
            yardsticks,
            first,
            goal,
        };
        Row::new(budget, entries)
    };
    [
        row("user space PSS", &["1 MiB"], 0.3, 0.1, user),
        row("with kernel memory", &["1 MB"], f64::INFINITY, 0.5, whole),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "Rss:  12 kB\nPss:   34 kB\n";
        assert_eq!(field(text, "Pss:"), Some(34.0));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn the_machine_tells_its_kernel_memory() {
        assert!(kernel_kib().unwrap() > 0.0);
    }
}
