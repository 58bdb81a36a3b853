//! Row 15: how fast the json-file log takes lines, and gives them back.

use anyhow::Result;

use super::args::Args;
use super::engine::{Engine, Kind};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::timing::{Contestant, Sample, interleave};

const NAME: &str = "lines";

/// Lets a container write into its log, and reads it.
struct Lines {
    engine: Engine,
    megabytes: u32,
}

impl Lines {
    fn new(kind: Kind, args: &Args, place: &Place) -> Result<Self> {
        let engine = Engine::new(kind, place, "logs")?;
        engine.load_hello(place)?;
        let megabytes = args.log_mb;
        Ok(Self { engine, megabytes })
    }

    /// Microseconds per megabyte from the start of the container to its end.
    fn write(&self) -> Result<Sample> {
        // A run that is not there yet is no error here.
        let _gone = self.engine.output(&["rm", "-f", NAME]);
        let megabytes = self.megabytes.to_string();
        let driver = match self.engine.kind {
            Kind::Amphora | Kind::Docker => "json-file",
            Kind::Podman => "k8s-file",
        };
        let mut options = vec!["-d", "--name", NAME, "--log-driver", driver];
        // Nobody rotates, so that all is there to be read.
        options.extend(["--log-opt", "max-size=1g", "--entrypoint", "/bin/lines"]);
        options.extend([self.engine.hello(), &megabytes]);
        let begin = std::time::Instant::now();
        self.engine.run_output(&options)?;
        let code = self.engine.output(&["wait", NAME])?;
        let us = begin.elapsed().as_secs_f64() * 1e6;
        anyhow::ensure!(code.trim() == "0", "it ended with {code}");
        Ok(self.sample(us))
    }

    fn read(&self) -> Result<Sample> {
        let mut timed = self.engine.timed(&["logs", NAME])?;
        Ok(self.sample(timed.run()?.us))
    }

    fn sample(&self, us: f64) -> Sample {
        Sample {
            us: us / f64::from(self.megabytes),
            ..Sample::default()
        }
    }

    fn check(&self) -> Result<()> {
        let log = self.engine.output(&["logs", NAME])?;
        let expected = usize::try_from(self.megabytes)? * 1_000_000;
        anyhow::ensure!(log.len() == expected, "{} of {expected} bytes", log.len());
        Ok(())
    }
}

fn race(
    engines: &[(Kind, std::rc::Rc<Lines>)],
    rounds: usize,
    run: fn(&Lines) -> Result<Sample>,
) -> Vec<Entry> {
    let contestants = engines
        .iter()
        .map(|(kind, lines)| {
            let lines = std::rc::Rc::clone(lines);
            Contestant {
                name: kind.name().to_owned(),
                run: Box::new(move || run(&lines)),
            }
        })
        .collect();
    interleave(contestants, rounds)
        .iter()
        .map(Entry::of)
        .collect()
}

pub(super) fn rows(args: &Args, place: &Place) -> Vec<Row> {
    /// Rounds: each moves a hundred megabytes.
    const ROUNDS: usize = 7;
    let mut engines = Vec::new();
    let mut skipped = Vec::new();
    for kind in Kind::ALL {
        if args.without.iter().any(|name| name == kind.name()) {
            continue;
        }
        let prepared = Lines::new(kind, args, place).and_then(|lines| {
            lines.write()?;
            lines.check()?;
            Ok(lines)
        });
        match prepared {
            Ok(lines) => engines.push((kind, std::rc::Rc::new(lines))),
            Err(error) => skipped.push(Entry::skipped(kind.name(), format!("{error:#}"))),
        }
    }
    let rounds = args.rounds.min(ROUNDS);
    let row = |what: &str, mut entries: Vec<Entry>| {
        entries.extend(skipped.iter().cloned());
        Row::new(
            Budget {
                number: 15,
                title: format!("json-file log, {what}, per megabyte"),
                unit: "us/MB",
                yardsticks: &["docker"],
                // Twice and four times the throughput.
                first: 0.5,
                goal: 0.25,
            },
            entries,
        )
    };
    let written = row("write", race(&engines, rounds, Lines::write));
    let read = row("read back", race(&engines, rounds, Lines::read));
    for (_, lines) in &engines {
        let _gone = lines.engine.output(&["rm", "-f", NAME]);
    }
    vec![written, read]
}
