//! Pull of a large image from a registry on loopback into an empty store, with dropped caches.

use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::args::Args;
use super::engine::{Engine, Kind, command, find, strings};
use super::host::Place;
use super::registry::REPOSITORY;
use super::report::{Budget, Entry, Row};

const ADDRESS: &str = "127.0.0.1:5000";
const REGISTRY_START: Duration = Duration::from_secs(20);

struct Registry(Child);

impl Registry {
    fn start(place: &Place) -> Result<Self> {
        let program = find("docker-registry").context("docker-registry is not installed")?;
        let config = Path::new("/run/bench-registry.yml");
        let root = place.store.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {ADDRESS}\n",
            root.display()
        );
        std::fs::write(config, text)?;
        let log = std::fs::File::create("/run/bench-registry.log")?;
        let args = strings(&["serve", "/run/bench-registry.yml"]);
        let child = command(&program, &args)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let registry = Self(child);
        let deadline = Instant::now() + REGISTRY_START;
        while TcpStream::connect(ADDRESS).is_err() {
            ensure!(Instant::now() < deadline, "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("failed to drop caches")
}

/// One pull into an empty store, in microseconds.
fn pull_once(kind: Kind, tag: &str, turn: usize, place: &Place) -> Result<f64> {
    // Docker's daemon keeps its store; removing the image empties it.
    let label = if kind == Kind::Docker {
        "pull".to_owned()
    } else {
        format!("pull-{tag}-{turn}")
    };
    let engine = Engine::new(kind, place, &label)?;
    let image = format!("{ADDRESS}/{REPOSITORY}:{tag}");
    let args: &[&str] = match kind {
        Kind::Amphora | Kind::Docker => &["pull", &image],
        Kind::Podman => &["pull", "--tls-verify=false", &image],
    };
    let mut timed = engine.timed(args)?;
    drop_caches()?;
    let sample = match timed.run() {
        Ok(sample) => sample,
        // Once more, for what it says.
        Err(error) => {
            engine.output(args).context(error)?;
            anyhow::bail!("it failed once and then succeeded")
        }
    };
    engine.output(&["rmi", &image])?;
    let store = place.store.join(format!("{}-{label}", kind.name()));
    if kind == Kind::Amphora {
        drop(engine);
        std::fs::remove_dir_all(store)?;
    }
    Ok(sample.us)
}

fn row(tag: &str, args: &Args, place: &Place) -> Row {
    let mut taking_part: Vec<(Kind, Vec<f64>, Option<String>)> = Kind::ALL
        .into_iter()
        .filter(|kind| !args.without.iter().any(|name| name == kind.name()))
        .map(|kind| (kind, Vec::new(), None))
        .collect();
    for turn in 0..args.pulls {
        for (kind, values, failure) in &mut taking_part {
            if failure.is_some() {
                continue;
            }
            match pull_once(*kind, tag, turn, place) {
                Ok(us) => values.push(us / 1e3),
                Err(error) => *failure = Some(format!("{error:#}")),
            }
        }
    }
    let entries = taking_part
        .into_iter()
        .map(|(kind, values, failure)| Entry {
            skipped: failure,
            ..Entry::values(kind.name(), &values)
        })
        .collect();
    Row::new(
        Budget {
            number: 13,
            title: format!(
                "pull of {} MB, 5 layers, {tag}, dropped caches",
                args.pull_mb
            ),
            unit: "ms",
            yardsticks: &["docker", "podman"],
            first: 0.7,
            goal: 0.4,
        },
        entries,
    )
}

/// Row 13 for both compressions.
pub(super) fn rows(args: &Args, place: &Place) -> Result<Vec<Row>> {
    let registry = match Registry::start(place) {
        Ok(registry) => registry,
        Err(error) => {
            let skipped = vec![Entry::skipped("registry", format!("{error:#}"))];
            let budget = Budget {
                number: 13,
                title: "pull".to_owned(),
                unit: "ms",
                yardsticks: &["docker", "podman"],
                first: 0.7,
                goal: 0.4,
            };
            return Ok(vec![Row::new(budget, skipped)]);
        }
    };
    let rows = ["gzip", "zstd"]
        .into_iter()
        .map(|tag| row(tag, args, place))
        .collect();
    drop(registry);
    Ok(rows)
}
