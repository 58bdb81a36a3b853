//! Row 12: what gives a container its network, beside the kernel's floor for the same objects.
//!
//! Both run in the harness's own process, in its network namespace: no start of a program, which
//! takes ten times as long, is in between.

use std::path::Path;
use std::time::Instant;

use amphora_network::{AttachRequest, NetworkAttachment, Networks};
use amphora_spec::ContainerId;
use anyhow::Result;

use crate::floor::Wires;

use super::args::Args;
use super::host::Place;
use super::report::{Budget, Row};
use super::rows::Field;
use super::timing::Sample;

/// How many rounds take as long as one of a row that starts programs.
const EACH: usize = 5;

fn timed<T>(make: impl FnOnce() -> Result<T>) -> Result<Sample> {
    let begin = Instant::now();
    let made = make()?;
    let us = begin.elapsed().as_secs_f64() * 1e6;
    drop(made);
    Ok(Sample {
        us,
        ..Sample::default()
    })
}

/// The engine's own: its records, leases and rules are in it.
struct Ours {
    networks: Networks,
    request: AttachRequest,
}

impl Ours {
    fn new(place: &Place) -> Self {
        let data = place.store.join("wires");
        Self {
            networks: Networks::open(&data, Path::new("/run/bench-wires")),
            request: AttachRequest {
                container: ContainerId::from_random([1; 32]),
                networks: vec![NetworkAttachment::to("bridge")],
                hostname: None,
                ports: Vec::new(),
            },
        }
    }

    fn run(&self) -> Result<Sample> {
        let sample = timed(|| Ok(self.networks.attach(&self.request)?));
        self.networks.release(&self.request.container)?;
        sample
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _gone_with_the_namespace = self.networks.teardown_all();
    }
}

/// Row 12.
pub(super) fn row(args: &Args, place: &Place) -> Row {
    let mut field = Field::new(args).longer(EACH);
    field.add_any("amphora", || {
        let ours = Ours::new(place);
        Ok(Box::new(move || ours.run()))
    });
    field.add_any("floor", || {
        let mut wires = Wires::new()?;
        Ok(Box::new(move || timed(|| wires.add())))
    });
    field.race(Budget {
        number: 12,
        title: "network set-up: namespace, links, addresses, routes of both families".to_owned(),
        unit: "us",
        yardsticks: &["floor"],
        first: 2.0,
        goal: 1.3,
    })
}
