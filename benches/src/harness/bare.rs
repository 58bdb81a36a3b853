//! Row 1: bare runtimes on the same bundle, alone and beside a thousand other containers.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use amphora_executor::seccomp::default_profile;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::args::Args;
use super::engine::{command, environment, find, output, strings};
use super::host::Place;
use super::report::{Budget, Row};
use super::rows::Field;
use super::timing::Timed;

const OURS: &str = "amphora";
const NAMES: [&str; 4] = [OURS, "crun", "runc", "youki"];
/// Who is asked for [`OTHERS`]: the rest would take minutes for them.
const QUICK: [&str; 2] = [OURS, "crun"];
/// Containers that wait for their start beside the one that is timed.
const OTHERS: usize = 1000;

/// A runtime with a state directory of its own; its containers go with it.
struct Runtime {
    program: PathBuf,
    root: String,
    bundle: String,
    others: usize,
}

impl Runtime {
    fn new(name: &str, place: &Place, others: usize) -> Result<Self> {
        let program = if name == OURS {
            ours(place)?
        } else {
            find(name).context("not installed")?
        };
        let root = format!("/run/bench-{name}-{others}");
        let bundle = bundle(place, others)?;
        let mut made = Self {
            program,
            root,
            bundle,
            others: 0,
        };
        for number in 0..others {
            made.create(number)?;
        }
        Ok(made)
    }

    fn args(&self, rest: &[&str]) -> Vec<String> {
        strings(&[&["--root", &self.root], rest].concat())
    }

    fn create(&mut self, number: usize) -> Result<()> {
        let id = format!("other-{number}");
        let args = self.args(&["create", "--bundle", &self.bundle, &id]);
        // It keeps its streams: they must not be ours.
        let status = command(&self.program, &args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "create {id} ended with {status}");
        self.others += 1;
        Ok(())
    }

    fn timed(&self) -> Result<Timed> {
        let args = self.args(&["run", "--bundle", &self.bundle, "timed"]);
        let said = output(&self.program, &args)?;
        ensure!(said.trim() == "hello", "it said {said:?} instead of hello");
        Timed::new(&self.program, &args, &environment())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for number in 0..self.others {
            let id = format!("other-{number}");
            let _gone = output(&self.program, &self.args(&["delete", "--force", &id]));
        }
    }
}

/// The binary under the name that makes it a runtime.
fn ours(place: &Place) -> Result<PathBuf> {
    let program = place.programs.join("amphora");
    ensure!(program.exists(), "not installed");
    let link = place.store.join("amphora-runc");
    if !link.exists() {
        std::os::unix::fs::symlink(program, &link)?;
    }
    Ok(link)
}

/// One bundle for all: our own default specification with Docker's seccomp profile.
fn bundle(place: &Place, others: usize) -> Result<String> {
    let dir = place.store.join(format!("bundle-bare-{others}"));
    let path = dir.to_str().context("a path of text")?.to_owned();
    let config = dir.join("config.json");
    if config.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(&dir)?;
    output(&ours(place)?, &strings(&["spec", "--bundle", &path]))?;
    let text = std::fs::read_to_string(&config)?;
    place.fixtures.bundle(&dir, &text, "/bin/hello")?;
    confine(&config)?;
    Ok(path)
}

fn confine(config: &Path) -> Result<()> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(config)?)?;
    let bounding: Vec<String> =
        serde_json::from_value(spec["process"]["capabilities"]["bounding"].clone())?;
    spec["linux"]["seccomp"] = serde_json::to_value(default_profile(&bounding))?;
    std::fs::write(config, serde_json::to_vec_pretty(&spec)?)?;
    Ok(())
}

fn row(args: &Args, place: &Place, names: &[&str], others: usize) -> Row {
    let mut field = Field::new(args);
    for &name in names {
        field.add_with(name, || {
            let held = Runtime::new(name, place, others)?;
            let timed = held.timed()?;
            Ok((held, timed))
        });
    }
    let beside = match others {
        0 => String::new(),
        others => format!(", beside {others} created containers"),
    };
    let budget = Budget {
        number: 1,
        title: format!("a runtime's run of hello with seccomp{beside}"),
        unit: "us",
        yardsticks: &["crun"],
        first: 0.7,
        goal: 0.5,
    };
    field.race(budget)
}

pub(super) fn rows(args: &Args, place: &Place) -> Vec<Row> {
    vec![
        row(args, place, &NAMES, 0),
        row(args, place, &QUICK, OTHERS),
    ]
}
