//! Row 10: `ps` with a thousand containers.

use super::args::Args;
use super::engine::{Engine, Kind};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::rows::Field;

/// Containers in the list; they are created and do not run.
const CONTAINERS: usize = 1000;
/// The budget in microseconds, which stands in the table as a contestant.
const GOAL_US: f64 = 5000.0;

pub(super) fn row(args: &Args, place: &Place) -> Row {
    let mut field = Field::new(args);
    field.entries.push(Entry::values("5 ms", &[GOAL_US]));
    for kind in Kind::ALL {
        // A daemon ends with its engine.
        field.add_with(kind.name(), || {
            let engine = Engine::new(kind, place, "list")?;
            engine.load_hello(place)?;
            for _container in 0..CONTAINERS {
                engine.output(&["create", engine.hello()])?;
            }
            let all = engine.output(&["ps", "-aq"])?;
            anyhow::ensure!(all.lines().count() == CONTAINERS, "not all are listed");
            let timed = engine.timed(&["ps", "-a"])?;
            Ok((engine, timed))
        });
    }
    field.race(Budget {
        number: 10,
        title: format!("ps -a with {CONTAINERS} containers"),
        unit: "us",
        yardsticks: &["5 ms"],
        first: 6.0,
        goal: 1.0,
    })
}
