//! One process timed, and several taking turns.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::kernel::{Program, instruction_counter, reap_one, wait4};

/// Longest wait for the traces of a run to go away.
const SETTLE: Duration = Duration::from_secs(2);
/// Long enough for what the first runs leave behind.
const REST: Duration = Duration::from_millis(500);

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// From before the spawn to the return of wait4, in microseconds.
    pub(super) us: f64,
    /// Processor time of the process and what it waited for.
    pub(super) cpu_us: f64,
    /// Instructions, where the machine counts them.
    pub(super) instructions: Option<u64>,
}

/// A process that is started again and again with its output thrown away.
#[derive(Debug)]
pub(super) struct Timed {
    program: Program,
    null: File,
    counter: Option<(OwnedFd, u64)>,
}

impl Timed {
    pub(super) fn new(path: &Path, args: &[String], env: &[(String, String)]) -> Result<Self> {
        let path = path.to_str().context("a program's path is text")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self {
            program: Program::new(path, args, env)?,
            null,
            counter: None,
        })
    }

    /// Counts instructions from now on, if the machine can.
    pub(super) fn count_instructions(&mut self) {
        self.counter = instruction_counter().ok().map(|fd| (fd, 0));
    }

    pub(super) fn run(&mut self) -> Result<Sample> {
        let null = self.null.as_fd();
        let begin = Instant::now();
        let pid = self
            .program
            .spawn(null, null)
            .context("failed to start it")?;
        let ended = wait4(pid)?;
        let us = begin.elapsed().as_secs_f64() * 1e6;
        ensure!(
            ended.success(),
            "it ended with wait status {:#x}",
            ended.status
        );
        let cpu_us = Duration::from_micros(ended.cpu_us).as_secs_f64() * 1e6;
        Ok(Sample {
            us,
            cpu_us,
            instructions: self.read_counter(),
        })
    }

    fn read_counter(&mut self) -> Option<u64> {
        let (fd, last) = self.counter.as_mut()?;
        let mut bytes = [0; 8];
        File::from(fd.try_clone().ok()?)
            .read_exact(&mut bytes)
            .ok()?;
        let now = u64::from_ne_bytes(bytes);
        Some(now - std::mem::replace(last, now))
    }
}

/// Something that takes part in a row.
pub(super) struct Contestant {
    pub(super) name: String,
    pub(super) run: Box<dyn FnMut() -> Result<Sample>>,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) samples: Vec<Sample>,
    pub(super) failure: Option<String>,
}

/// Lets every contestant run once per round, in rotating order, after two rounds that are thrown
/// away. Whoever fails is out, with the reason.
pub(super) fn interleave(contestants: Vec<Contestant>, rounds: usize) -> Vec<Outcome> {
    const WARM_UP: usize = 2;
    let mut running: Vec<(Contestant, Outcome)> = contestants
        .into_iter()
        .map(|contestant| {
            let name = contestant.name.clone();
            (
                contestant,
                Outcome {
                    name,
                    samples: Vec::new(),
                    failure: None,
                },
            )
        })
        .collect();
    // The first runs of an engine make what stays, as its bridge.
    let mut quiet = None;
    for round in 0..rounds + WARM_UP {
        let turn = usize::from(running.len() > 1);
        running.rotate_left(turn);
        for (contestant, outcome) in &mut running {
            if outcome.failure.is_some() {
                continue;
            }
            match (contestant.run)() {
                Ok(sample) if round >= WARM_UP => outcome.samples.push(sample),
                Ok(_) => {}
                Err(error) => outcome.failure = Some(format!("{error:#}")),
            }
            if let Some(quiet) = quiet {
                Quiet::settle(quiet);
            }
        }
        if round + 1 == WARM_UP {
            std::thread::sleep(REST);
            quiet = Some(Quiet::now());
        }
    }
    running.into_iter().map(|(_, outcome)| outcome).collect()
}

/// What is there while nothing runs: processes of the harness's pid namespace, and links of its
/// network namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    processes: usize,
    links: usize,
}

impl Quiet {
    pub(super) fn now() -> Self {
        while reap_one() {}
        let links = std::fs::read_to_string("/proc/net/dev");
        Self {
            processes: pids().len(),
            links: links.map_or(0, |text| text.lines().count()),
        }
    }

    /// Waits until what a run left behind has ended (clean-up processes, and the kernel's own of a
    /// network namespace, whose links go last), so that nobody pays for another's work.
    pub(super) fn settle(self) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Self::now();
            let quiet = now.processes <= self.processes && now.links <= self.links;
            if quiet || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Process ids of the namespace.
pub(super) fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
