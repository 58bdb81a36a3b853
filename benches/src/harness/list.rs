//! Row 10: `ps` with a thousand containers.

use anyhow::Result;

use super::args::Args;
use super::engine::{Engine, Kind};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::timing::{Contestant, interleave};

/// Containers in the list; they are created and do not run.
const CONTAINERS: usize = 1000;
/// The budget in microseconds, which stands in the table as a contestant.
const GOAL_US: f64 = 5000.0;

pub(super) fn row(args: &Args, place: &Place) -> Row {
    let mut contestants = Vec::new();
    let mut entries = vec![Entry::values("5 ms", &[GOAL_US])];
    for kind in Kind::ALL {
        if args.without.iter().any(|name| name == kind.name()) {
            continue;
        }
        let prepare = || -> Result<(Engine, super::timing::Timed)> {
            let engine = Engine::new(kind, place, "list")?;
            engine.load_hello(place)?;
            for _container in 0..CONTAINERS {
                engine.output(&["create", engine.hello()])?;
            }
            let all = engine.output(&["ps", "-aq"])?;
            anyhow::ensure!(all.lines().count() == CONTAINERS, "not all are listed");
            let timed = engine.timed(&["ps", "-a"])?;
            Ok((engine, timed))
        };
        match prepare() {
            Ok((engine, mut timed)) => contestants.push(Contestant {
                name: kind.name().to_owned(),
                run: Box::new(move || {
                    // A daemon ends with its engine.
                    let _alive = &engine;
                    timed.run()
                }),
            }),
            Err(error) => entries.push(Entry::skipped(kind.name(), format!("{error:#}"))),
        }
    }
    let outcomes = interleave(contestants, args.rounds);
    entries.extend(outcomes.iter().map(Entry::of));
    Row::new(
        Budget {
            number: 10,
            title: format!("ps -a with {CONTAINERS} containers"),
            unit: "us",
            yardsticks: &["5 ms"],
            first: 6.0,
            goal: 1.0,
        },
        entries,
    )
}
