//! Row 9: a start beside a thousand containers, and one that publishes a port beside a thousand ports.

use std::time::Duration;

use anyhow::Result;

use super::args::Args;
use super::engine::{Engine, Kind};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::timing::{Contestant, Timed, interleave};

/// Running containers, or published ports, beside the one that is timed.
const OTHERS: usize = 999;
/// How long the others are left alone once the last of them has been started.
const REST: Duration = Duration::from_secs(5);
/// Ports that are published when the first of the two is timed.
const FIRST_PORTS: usize = 9;
/// The first port of others.
const PORT: usize = 20_000;
/// Its port is beyond all of theirs.
const OWN: [&str; 4] = ["--rm", "-p", "10000:80", "hello"];

/// Containers of an engine, to be removed.
struct Others<'a> {
    engine: &'a Engine,
    count: usize,
}

impl Others<'_> {
    fn add(&mut self, more: &[&str]) -> Result<()> {
        let name = format!("other-{}", self.count);
        let pause = ["--entrypoint", "/bin/pause", self.engine.hello()];
        let options = [&["-d", "--name", name.as_str()], more, &pause].concat();
        self.engine.run_output(&options)?;
        self.count += 1;
        Ok(())
    }
}

impl Drop for Others<'_> {
    fn drop(&mut self) {
        let names: Vec<String> = (0..self.count).map(|n| format!("other-{n}")).collect();
        let mut args = vec!["rm", "-f"];
        args.extend(names.iter().map(String::as_str));
        let _gone = self.engine.output(&args);
    }
}

/// One command, timed in a row.
fn alone(name: &str, mut timed: Timed, rounds: usize) -> Vec<Entry> {
    let contestant = Contestant {
        name: name.to_owned(),
        run: Box::new(move || timed.run()),
    };
    let outcomes = interleave(vec![contestant], rounds);
    outcomes.iter().map(Entry::of).collect()
}

/// The first and the thousandth of something; the kernel is in between, so they cannot take turns.
fn compare(
    args: &Args,
    place: &Place,
    run: &[&str],
    grow: &mut dyn FnMut(&mut Others<'_>, usize) -> Result<()>,
) -> Result<Vec<Entry>> {
    let engine = Engine::new(Kind::Amphora, place, "scale")?;
    engine.load_hello(place)?;
    let mut others = Others {
        engine: &engine,
        count: 0,
    };
    grow(&mut others, 0)?;
    let mut entries = alone("first", engine.run_timed(run)?, args.rounds);
    grow(&mut others, 1)?;
    // A supervisor gives back what it needed for the start alone in its first quiet second.
    std::thread::sleep(REST);
    entries.extend(alone("amphora", engine.run_timed(run)?, args.rounds));
    Ok(entries)
}

fn containers(args: &Args, place: &Place) -> Result<Vec<Entry>> {
    compare(args, place, &["--rm", "hello"], &mut |others, phase| {
        let missing = if phase == 0 { 0 } else { OTHERS };
        (0..missing).try_for_each(|_| others.add(&[]))
    })
}

fn ports(args: &Args, place: &Place) -> Result<Vec<Entry>> {
    const EACH: usize = 99;
    compare(args, place, &OWN, &mut |others, phase| {
        let wanted = if phase == 0 { FIRST_PORTS } else { OTHERS };
        let mut from = if phase == 0 { 0 } else { FIRST_PORTS };
        while from < wanted {
            let to = (from + EACH).min(wanted);
            let (first, last) = (PORT + from, PORT + to - 1);
            others.add(&["-p", &format!("{first}-{last}:{first}-{last}")])?;
            from = to;
        }
        Ok(())
    })
}

/// Row 9.
pub(super) fn rows(args: &Args, place: &Place) -> Vec<Row> {
    let row = |title: &str, entries: Result<Vec<Entry>>| {
        let budget = Budget {
            number: 9,
            title: title.to_owned(),
            unit: "us",
            yardsticks: &["first"],
            first: 1.5,
            goal: 1.1,
        };
        let failed = |error| vec![Entry::skipped("amphora", format!("{error:#}"))];
        Row::new(budget, entries.unwrap_or_else(failed))
    };
    vec![
        row(
            "run --rm hello, the 1,000th container beside the first",
            containers(args, place),
        ),
        row(
            "run --rm -p hello, the 1,000th port beside the 10th",
            ports(args, place),
        ),
    ]
}
