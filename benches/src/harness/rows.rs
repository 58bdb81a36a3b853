//! The rows of the budget table. A new row is a function here (or a module beside) and a line in
//! [`measure`].

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::Args;
use super::engine::{Engine, Kind, command, environment, find, output, strings};
use super::host::Place;
use super::report::{Budget, Entry, Report, Row};
use super::timing::{Contestant, Sample, Timed, interleave, pids};
use super::{bare, exec, idle, list, logs, network, pull, scale, wires};

/// Longest wait for a clean host after a sequence.
const CLEAN: Duration = Duration::from_secs(60);

/// Measures the rows asked for.
pub(super) fn run(args: &Args, place: &Place) -> Result<Report> {
    let load = || {
        std::fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let load_before = load();
    let mut rows = Vec::new();
    for number in &args.rows {
        writeln!(std::io::stderr(), "row {number}")?;
        rows.extend(measure(*number, args, place)?);
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(Report {
        cgroup: format!("{:?}", args.cgroup).to_lowercase(),
        kernel: release.trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        load_before,
        load_after: load(),
        versions: versions(place),
        rows,
    })
}

fn measure(number: u32, args: &Args, place: &Place) -> Result<Vec<Row>> {
    Ok(match number {
        1 => bare::rows(args, place),
        2 => vec![start(args, place)?],
        3 => vec![floor(args, place)?],
        4 => vec![sequence(args, place)?],
        5 => vec![wasm(args, place)?],
        8 => idle::row(args, place),
        9 => scale::rows(args, place),
        10 => vec![list::row(args, place)],
        11 => exec::rows(args, place),
        12 => vec![wires::row(args, place)],
        13 => pull::rows(args, place)?,
        15 => logs::rows(args, place),
        18 => network::throughput(args, place),
        other => anyhow::bail!("row {other} has no measurement yet"),
    })
}

fn versions(place: &Place) -> Vec<(String, String)> {
    let names = [
        "podman", "dockerd", "crun", "runc", "youki", "wasmtime", "wasmedge", "conmon",
    ];
    let mut found: Vec<(String, std::path::PathBuf)> = names
        .iter()
        .filter_map(|&name| Some((name.to_owned(), find(name)?)))
        .collect();
    found.push(("amphora".to_owned(), place.programs.join("amphora")));
    let version = |path: &Path| output(path, &strings(&["--version"])).ok();
    found
        .into_iter()
        .filter_map(|(name, path)| Some((name, version(&path)?.lines().next()?.to_owned())))
        .collect()
}

/// The contestants of one row: who can take part, and who cannot and why.
pub(super) struct Field<'a> {
    args: &'a Args,
    rounds: usize,
    contestants: Vec<Contestant>,
    pub(super) entries: Vec<Entry>,
}

impl<'a> Field<'a> {
    pub(super) fn new(args: &'a Args) -> Self {
        Self {
            args,
            rounds: args.rounds,
            contestants: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// Has more rounds, of something that is short.
    pub(super) const fn longer(mut self, times: usize) -> Self {
        self.rounds *= times;
        self
    }

    /// Adds a contestant, unless it is left out or its preparation fails.
    fn add(&mut self, name: &str, prepare: impl FnOnce() -> Result<Timed>) {
        self.add_with(name, || Ok(((), prepare()?)));
    }

    /// As [`Field::add`], for one that needs something held (a daemon, a container) until the end.
    pub(super) fn add_with<T: 'static>(
        &mut self,
        name: &str,
        prepare: impl FnOnce() -> Result<(T, Timed)>,
    ) {
        let counts = self.args.instructions;
        self.add_any(name, || {
            let (held, mut timed) = prepare()?;
            if counts {
                timed.count_instructions();
            }
            Ok(Box::new(move || {
                let _alive = &held;
                timed.run()
            }))
        });
    }

    pub(super) fn add_any(&mut self, name: &str, prepare: impl FnOnce() -> Result<Run>) {
        if self.args.without.iter().any(|left_out| left_out == name) {
            return;
        }
        match prepare() {
            Ok(run) => self.contestants.push(Contestant {
                name: name.to_owned(),
                run,
            }),
            Err(error) => self
                .entries
                .push(Entry::skipped(name, format!("{error:#}"))),
        }
    }

    /// Lets them run, and returns what came of each.
    pub(super) fn outcomes(mut self) -> Vec<Entry> {
        let outcomes = interleave(self.contestants, self.rounds);
        self.entries.extend(outcomes.iter().map(Entry::of));
        self.entries
    }

    pub(super) fn race(self, budget: Budget) -> Row {
        Row::new(budget, self.outcomes())
    }
}

pub(super) type Run = Box<dyn FnMut() -> Result<Sample>>;

/// `amphora run --rm hello`, ready to be timed. The engine value must outlive the runs only where
/// it has a daemon, which amphora has not.
fn amphora_hello(place: &Place) -> Result<Timed> {
    let engine = Engine::new(Kind::Amphora, place, "start")?;
    engine.load_hello(place)?;
    engine.run_timed(&["--rm", "hello"])
}

/// A runtime and a bundle for it, made from its own default specification.
pub(super) fn bundle(name: &str, place: &Place, run: &str) -> Result<(PathBuf, String)> {
    let program = find(name).context("not installed")?;
    let label = Path::new(run).file_name().unwrap_or_default();
    let dir = place
        .store
        .join(format!("bundle-{name}-{}", label.display()));
    std::fs::create_dir_all(&dir)?;
    let mut spec = command(&program, &strings(&["spec"]));
    let made = spec.current_dir(&dir).output()?;
    anyhow::ensure!(made.status.success(), "it makes no specification");
    let text = std::fs::read_to_string(dir.join("config.json"))?;
    place.fixtures.bundle(&dir, &text, run)?;
    let bundle = dir.to_str().context("a path of text")?;
    Ok((program, bundle.to_owned()))
}

/// A runtime run on a bundle made from its own default specification.
fn bare_runtime(name: &str, place: &Place) -> Result<Timed> {
    let (program, bundle) = bundle(name, place, "/bin/hello")?;
    let args = strings(&["run", "--bundle", &bundle, &format!("bench-{name}")]);
    output(&program, &args)?;
    Timed::new(&program, &args, &environment())
}

fn start(args: &Args, place: &Place) -> Result<Row> {
    let mut field = Field::new(args);
    field.add("amphora", || amphora_hello(place));
    for name in ["crun", "runc", "youki"] {
        field.add(name, || bare_runtime(name, place));
    }
    Ok(field.race(Budget {
        number: 2,
        title: "run --rm hello against a bare runtime".to_owned(),
        unit: "us",
        yardsticks: &["crun"],
        first: 1.5,
        goal: 0.45,
    }))
}

/// The floor as a server with a kind of network: one start per line.
fn floor_server(place: &Place, network: &str) -> Result<Run> {
    let program = place.programs.join("floor");
    anyhow::ensure!(
        program.exists(),
        "the program floor is not beside the harness"
    );
    let rootfs = place.fixtures.rootfs().display().to_string();
    let dir = place.store.join(format!("floor-{network}"));
    let dir = dir.display().to_string();
    let mut args = strings(&[
        "--serve", "--net", network, "--dir", &dir, "--lower", &rootfs,
    ]);
    let unified = Path::new("/sys/fs/cgroup/unified");
    let cgroup = if unified.exists() {
        unified
    } else {
        Path::new("/sys/fs/cgroup")
    };
    args.extend(strings(&["--cgroup", &cgroup.display().to_string()]));
    // The container's outputs are the server's: null for it would also hide the answers, so it
    // prints them beside the containers' greetings.
    let mut child = command(&program, &args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    let mut answers = BufReader::new(child.stdout.take().context("piped")?).lines();
    Ok(Box::new(move || {
        writeln!(input, "start")?;
        for line in answers.by_ref() {
            let line = line?;
            let first = line
                .split(' ')
                .next()
                .and_then(|word| word.parse::<u64>().ok());
            if let Some(total) = first {
                let us = Duration::from_nanos(total).as_secs_f64() * 1e6;
                return Ok(Sample {
                    us,
                    ..Sample::default()
                });
            }
        }
        anyhow::bail!("the floor ended")
    }))
}

fn floor(args: &Args, place: &Place) -> Result<Row> {
    let mut field = Field::new(args);
    field.add("amphora", || amphora_hello(place));
    field.add_any("floor", || floor_server(place, "2"));
    Ok(field.race(Budget {
        number: 3,
        title: "run --rm hello against the kernel's floor".to_owned(),
        unit: "us",
        yardsticks: &["floor"],
        first: 3.0,
        goal: 1.5,
    }))
}

/// Wasmtime as a program, or the crate's runner in its place.
fn bare_wasmtime(place: &Place) -> Result<Timed> {
    let program = find("wasmtime").context("not installed")?;
    let module = place.fixtures.hello_wasm().display().to_string();
    let compiled = place.store.join("hello.cwasm").display().to_string();
    output(&program, &strings(&["compile", "-o", &compiled, &module]))?;
    Timed::new(
        &program,
        &strings(&["run", "--allow-precompiled", &compiled]),
        &environment(),
    )
}

fn wasmtime_runner(place: &Place) -> Result<Timed> {
    let program = place.programs.join("wasmtime-runner");
    anyhow::ensure!(
        program.exists(),
        "built only with --features wasmtime-runner"
    );
    let module = place.fixtures.hello_wasm().display().to_string();
    let compiled = place.store.join("hello-runner.cwasm").display().to_string();
    output(&program, &strings(&["compile", &module, &compiled]))?;
    Timed::new(&program, &strings(&["run", &compiled]), &environment())
}

fn wasm(args: &Args, place: &Place) -> Result<Row> {
    let module = place.fixtures.hello_wasm().display().to_string();
    let mut field = Field::new(args);
    field.add("amphora", || {
        let engine = Engine::new(Kind::Amphora, place, "wasm")?;
        engine.output(&["image", "add", &module, "-t", "hello-wasm"])?;
        let said = engine.run_output(&["--rm", "--network", "none", "hello-wasm"])?;
        anyhow::ensure!(said.trim() == "hello", "it said {said:?} instead of hello");
        engine.run_timed(&["--rm", "--network", "none", "hello-wasm"])
    });
    field.add("wasmtime", || bare_wasmtime(place));
    field.add("wasmtime-runner", || wasmtime_runner(place));
    field.add("wasmedge", || {
        let program = find("wasmedge").context("not installed")?;
        output(&program, std::slice::from_ref(&module))?;
        Timed::new(&program, std::slice::from_ref(&module), &environment())
    });
    Ok(field.race(Budget {
        number: 5,
        title: "wasm hello run --rm --network none against bare wasmtime".to_owned(),
        unit: "us",
        yardsticks: &["wasmtime", "wasmtime-runner"],
        first: 2.0,
        goal: 1.0,
    }))
}

/// What engines leave on a host.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: usize,
    links: usize,
    mounts: usize,
    cgroups: usize,
}

impl Traces {
    fn take() -> Self {
        while crate::kernel::reap_one() {}
        let lines =
            |path: &str| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        Self {
            processes: pids().len(),
            links: lines("/proc/net/dev"),
            mounts: lines("/proc/self/mountinfo"),
            cgroups: engine_cgroups(Path::new("/sys/fs/cgroup"), 0),
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.processes <= before.processes
            && self.links <= before.links
            && self.mounts <= before.mounts
            && self.cgroups <= before.cgroups
    }
}

/// Counts cgroups, a few levels deep: deeper ones belong to what runs in containers.
fn engine_cgroups(dir: &Path, depth: usize) -> usize {
    const DEPTH: usize = 4;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let dirs = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    if depth == DEPTH {
        return dirs.count();
    }
    dirs.map(|entry| 1 + engine_cgroups(&entry.path(), depth + 1))
        .sum()
}

/// Time per run of a sequence, until nothing of it is left.
fn one_sequence(kind: Kind, args: &Args, place: &Place) -> Result<f64> {
    let engine = Engine::new(kind, place, "sequence")?;
    engine.load_hello(place)?;
    let mut timed = engine.run_timed(&["--rm", engine.hello()])?;
    std::thread::sleep(Duration::from_secs(1));
    let before = Traces::take();
    let begin = Instant::now();
    for _run in 0..args.sequence {
        timed.run()?;
    }
    let ran = begin.elapsed();
    while !Traces::take().is_within(&before) {
        anyhow::ensure!(
            begin.elapsed() < ran + CLEAN,
            "not clean after {CLEAN:?}: {:?}, before {before:?}",
            Traces::take()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let runs = u32::try_from(args.sequence.max(1))?;
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(runs))
}

fn sequence(args: &Args, place: &Place) -> Result<Row> {
    let mut entries = Vec::new();
    for kind in Kind::ALL {
        if args.without.iter().any(|name| name == kind.name()) {
            continue;
        }
        entries.push(match one_sequence(kind, args, place) {
            Ok(us) => Entry::values(kind.name(), &[us]),
            Err(error) => Entry::skipped(kind.name(), format!("{error:#}")),
        });
    }
    Ok(Row::new(
        Budget {
            number: 4,
            title: format!(
                "{} runs in sequence until the host is clean, each",
                args.sequence
            ),
            unit: "us",
            yardsticks: &["docker", "podman"],
            first: 0.1,
            goal: 0.03,
        },
        entries,
    ))
}
