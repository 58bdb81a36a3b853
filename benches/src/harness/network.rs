//! A row beside the table, 18: how fast bytes come through a network.

use std::rc::Rc;

use anyhow::{Context, Result};

use super::args::Args;
use super::engine::{Engine, Kind, output, strings};
use super::host::Place;
use super::report::{Budget, Entry, Row};
use super::timing::{Contestant, Sample, interleave};

const NAME: &str = "stream";
const PORT: &str = "9000";
/// The published ports, one for each of [`Kind::ALL`].
const PUBLISHED: [u16; 3] = [19000, 19001, 19002];

/// A server in a container, with a published port.
struct Stream {
    engine: Engine,
    sender: std::path::PathBuf,
    megabytes: String,
    address: String,
    gateway: String,
}

impl Stream {
    fn new(kind: Kind, port: u16, args: &Args, place: &Place) -> Result<Self> {
        let engine = Engine::new(kind, place, "stream")?;
        engine.load_hello(place)?;
        let _gone = engine.output(&["rm", "-f", NAME]);
        let publish = format!("{port}:{PORT}");
        let options = [
            "-d",
            "--name",
            NAME,
            "-p",
            &publish,
            "--entrypoint",
            "/bin/stream",
        ];
        engine.run_output(&[&options[..], &[engine.hello(), "serve", PORT]].concat())?;
        let shown: serde_json::Value = serde_json::from_str(&engine.output(&["inspect", NAME])?)?;
        let networks = &shown[0]["NetworkSettings"]["Networks"];
        let network = networks.as_object().and_then(|all| all.values().next());
        let of = |key: &str| {
            let value = network.and_then(|n| n[key].as_str());
            value
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
                .with_context(|| format!("no {key}"))
        };
        Ok(Self {
            sender: place.fixtures.rootfs().join("bin/stream"),
            megabytes: args.stream_mb.to_string(),
            address: format!("{}:{PORT}", of("IPAddress")?),
            gateway: format!("{}:{port}", of("Gateway")?),
            engine,
        })
    }

    /// From another container.
    fn neighbour(&self) -> Result<Sample> {
        let engine = &self.engine;
        let options = ["--rm", "--entrypoint", "/bin/stream", engine.hello()];
        let words = ["send", &self.address, &self.megabytes];
        sample(&engine.run_output(&[&options[..], &words].concat())?)
    }

    /// From the host, by the published port of its own address.
    fn published(&self) -> Result<Sample> {
        let words = strings(&["send", &self.gateway, &self.megabytes]);
        sample(&output(&self.sender, &words)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _gone = self.engine.output(&["rm", "-f", NAME]);
    }
}

fn sample(said: &str) -> Result<Sample> {
    let us = said
        .trim()
        .parse()
        .with_context(|| format!("it said {said:?}"))?;
    Ok(Sample {
        us,
        ..Sample::default()
    })
}

pub(super) fn throughput(args: &Args, place: &Place) -> Vec<Row> {
    /// Rounds: each moves hundreds of megabytes.
    const ROUNDS: usize = 9;
    let mut streams = Vec::new();
    let mut skipped = Vec::new();
    for (kind, port) in Kind::ALL.into_iter().zip(PUBLISHED) {
        if args.without.iter().any(|name| name == kind.name()) {
            continue;
        }
        match Stream::new(kind, port, args, place) {
            Ok(stream) => streams.push((kind, Rc::new(stream))),
            Err(error) => skipped.push(Entry::skipped(kind.name(), format!("{error:#}"))),
        }
    }
    let row = |way: &str, run: fn(&Stream) -> Result<Sample>| {
        let contestants = streams.iter().map(|(kind, stream)| {
            let stream = Rc::clone(stream);
            Contestant {
                name: kind.name().to_owned(),
                run: Box::new(move || run(&stream)),
            }
        });
        let outcomes = interleave(contestants.collect(), args.rounds.min(ROUNDS));
        let mut entries: Vec<Entry> = outcomes.iter().map(Entry::of).collect();
        entries.extend(skipped.iter().cloned());
        let budget = Budget {
            number: 18,
            title: format!("TCP {way}, per megabyte"),
            unit: "us/MB",
            yardsticks: &["docker"],
            first: 1.0,
            goal: 1.0,
        };
        Row::new(budget, entries)
    };
    vec![
        row("from container to container", Stream::neighbour),
        row("to a published port of the host", Stream::published),
    ]
}
