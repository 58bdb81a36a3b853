//! `floor`: the kernel's floor for one container start, stage by stage.
//!
//! `floor --rounds 200` prints a table; `--json` prints numbers; `--serve` does one start for each
//! line on standard input and answers with the nanoseconds of both totals, so that another program
//! can take turns with it.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use amphora_benches::fixtures::Fixtures;
use amphora_benches::floor::{Floor, Network, Options, Stage, Times};
use amphora_benches::stats::Summary;
use anyhow::{Context, Result};
use clap::Parser;

/// Measure what the kernel itself needs for one container start
#[derive(Debug, Parser)]
struct Args {
    /// Measured starts; five more are thrown away
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Network: 0 the host's, 1 an empty namespace, 2 veth, bridge, address, route
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=2))]
    net: u8,
    /// Where fixtures and writable layers go; put it on the file system that is compared
    #[arg(long, default_value = "/tmp/amphora-floor")]
    dir: PathBuf,
    /// Lower directories, topmost first, instead of the fixture's
    #[arg(long)]
    lower: Vec<PathBuf>,
    /// Program inside the lower directories
    #[arg(long, default_value = "/bin/hello")]
    program: String,
    /// A cgroup v2 directory [default: the first cgroup2 mount]
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Make no cgroups
    #[arg(long)]
    no_cgroup: bool,
    /// Let the overlay sync at its end; without it the mount is volatile, as for `--rm`
    #[arg(long)]
    sync: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// One start per line of standard input
    #[arg(long)]
    serve: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cgroup = match (&args.cgroup, args.no_cgroup) {
        (_, true) => None,
        (Some(given), false) => Some(given.clone()),
        (None, false) => Some(first_cgroup2()?),
    };
    let lowers = if args.lower.is_empty() {
        vec![Fixtures::make(&args.dir)?.rootfs()]
    } else {
        args.lower.clone()
    };
    let mut floor = Floor::new(Options {
        network: match args.net {
            0 => Network::Host,
            1 => Network::Loopback,
            _ => Network::Bridge,
        },
        lowers,
        store: args.dir.join("store"),
        cgroup,
        program: args.program.clone(),
        volatile: !args.sync,
    })?;
    if args.serve {
        return serve(&mut floor);
    }
    for _warm_up in 0..5 {
        floor.start()?;
    }
    let times: Vec<Times> = (0..args.rounds)
        .map(|_| floor.start())
        .collect::<Result<_>>()?;
    report(&args, &times)
}

fn first_cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.context("no cgroup2 is mounted; give --cgroup or --no-cgroup")
}

fn serve(floor: &mut Floor) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        line?;
        let times = floor.start()?;
        writeln!(
            out,
            "{} {}",
            times.get(Stage::Total),
            times.get(Stage::TotalClean)
        )?;
        out.flush()?;
    }
    Ok(())
}

fn report(args: &Args, times: &[Times]) -> Result<()> {
    let micros = |stage| -> Vec<f64> {
        times
            .iter()
            .map(|times| std::time::Duration::from_nanos(times.get(stage)))
            .map(|time| time.as_secs_f64() * 1e6)
            .collect()
    };
    let mut out = std::io::stdout().lock();
    let rows: Vec<(Stage, Summary)> = Stage::ALL
        .into_iter()
        .filter_map(|stage| Some((stage, Summary::of(&micros(stage))?)))
        .collect();
    if args.json {
        let stages: serde_json::Map<_, _> = rows
            .iter()
            .map(|(stage, summary)| (stage.label().to_owned(), serde_json::json!(summary)))
            .collect();
        let all = serde_json::json!({"net": args.net, "unit": "us", "stages": stages});
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(
        out,
        "net={} sync={} rounds={}",
        args.net,
        args.sync,
        times.len()
    )?;
    for (stage, summary) in rows {
        let Summary {
            median, min, p90, ..
        } = summary;
        let label = stage.label();
        writeln!(
            out,
            "  {label:<34} median {median:8.1} us  min {min:8.1}  p90 {p90:8.1}"
        )?;
    }
    Ok(())
}
