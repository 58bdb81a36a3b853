//! Row 11: a program run in a container that runs already.

use anyhow::Result;

use super::args::Args;
use super::engine::{Engine, Kind, environment, output, strings};
use super::host::Place;
use super::report::{Budget, Row};
use super::rows::{Field, bundle};
use super::timing::Timed;

const NAME: &str = "exec";

/// Whatever must be undone after the row.
enum Held {
    /// A daemon ends with it.
    Engine(Engine),
    /// A container of a bare runtime.
    Bare(std::path::PathBuf, String),
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = match self {
            Self::Engine(engine) => engine.output(&["rm", "-f", NAME]),
            Self::Bare(program, id) => output(program, &strings(&["delete", "-f", id])),
        };
    }
}

fn engine(kind: Kind, place: &Place) -> Result<(Held, Timed)> {
    let engine = Engine::new(kind, place, "exec")?;
    engine.load_hello(place)?;
    let image = engine.hello();
    engine.run_output(&["-d", "--name", NAME, "--entrypoint", "/bin/pause", image])?;
    let said = engine.output(&["exec", NAME, "/bin/hello"])?;
    anyhow::ensure!(said.trim() == "hello", "it said {said:?} instead of hello");
    let timed = engine.timed(&["exec", NAME, "/bin/hello"])?;
    Ok((Held::Engine(engine), timed))
}

fn bare(name: &str, place: &Place) -> Result<(Held, Timed)> {
    let (program, bundle) = bundle(name, place, "/bin/pause")?;
    let id = format!("bench-exec-{name}");
    // Its streams are the container's: it must not hold ours open.
    let status = super::engine::command(
        &program,
        &strings(&["run", "--detach", "--bundle", &bundle, &id]),
    )
    .stdout(std::process::Stdio::null())
    .stderr(std::process::Stdio::null())
    .status()?;
    anyhow::ensure!(status.success(), "run ended with {status}");
    let held = Held::Bare(program.clone(), id.clone());
    let args = strings(&["exec", &id, "/bin/hello"]);
    let said = output(&program, &args)?;
    anyhow::ensure!(said.trim() == "hello", "it said {said:?} instead of hello");
    Ok((held, Timed::new(&program, &args, &environment())?))
}

pub(super) fn rows(args: &Args, place: &Place) -> Vec<Row> {
    let mut field = Field::new(args);
    for kind in Kind::ALL {
        field.add_with(kind.name(), || engine(kind, place));
    }
    for name in ["crun", "runc", "youki"] {
        field.add_with(name, || bare(name, place));
    }
    let entries = field.outcomes();
    let budget = |against: &str, yardsticks, first, goal| Budget {
        number: 11,
        title: format!("exec in a running container, against {against}"),
        unit: "us",
        yardsticks,
        first,
        goal,
    };
    vec![
        Row::new(budget("crun", &["crun"], 1.0, 0.5), entries.clone()),
        Row::new(budget("docker", &["docker"], 0.2, 0.05), entries),
    ]
}
