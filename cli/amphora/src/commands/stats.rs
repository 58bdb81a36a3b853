//! `stats`: what containers use, once or live.

use std::collections::BTreeMap;
use std::time::Duration;

use amphora_engine::{Engine, EngineError, Usage};
use amphora_spec::ContainerId;
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::format::{Format, Row};
use crate::ui;

const TYPE: &str = "*container.statsContext";
const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
/// Ours: linear memory of a Wasm guest, for templates that name it.
const LINEAR: &str = "LinearMemory";
const HEADERS: [(&str, &str); 10] = [
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    (LINEAR, "LINEAR MEMORY"),
];
/// Time between two looks, as Docker's.
const INTERVAL: Duration = Duration::from_secs(1);

// Flags of `stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER")]
    names: Vec<String>,
}

/// A container with how the caller named it.
struct Watched {
    id: ContainerId,
    shown: String,
    name: String,
}

/// Carries out `stats`.
pub(crate) fn stats(engine: &Engine, args: &StatsArgs) -> Outcome {
    let format = Format::parse(args.format.as_deref(), TABLE)?;
    let mut before: BTreeMap<String, Usage> = looks(engine, &watched(engine, args)?)?;
    let clear = ui::stdout_is_terminal() && !args.no_stream;
    if clear {
        ui::raw("\x1b[2J");
    }
    loop {
        // The next look is a second away; nobody else says when it is due.
        std::thread::sleep(INTERVAL);
        let list = watched(engine, args)?;
        let now = looks(engine, &list)?;
        let rows = list
            .iter()
            .map(|w| {
                let id = w.id.hex();
                let row = row(w, now.get(&id), before.get(&id), args.no_trunc);
                if format.uses(LINEAR) {
                    row.with(LINEAR, linear(engine, w))
                } else {
                    row
                }
            })
            .collect();
        let text = format.render(TYPE, &HEADERS, rows)?;
        if clear {
            // Home; what each line leaves of the last picture is erased with it.
            ui::raw(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")));
        } else {
            ui::raw(&text);
        }
        if args.no_stream {
            return Ok(());
        }
        if !args.names.is_empty() && now.is_empty() && !args.all {
            return Ok(());
        }
        before = now;
    }
}

fn watched(engine: &Engine, args: &StatsArgs) -> Outcome<Vec<Watched>> {
    if args.names.is_empty() {
        return Ok(engine
            .ps(args.all)?
            .into_iter()
            .map(|c| Watched {
                id: c.summary.id,
                shown: c.summary.id.short(),
                name: c.summary.name().to_owned(),
            })
            .collect());
    }
    let mut out = Vec::new();
    for name in &args.names {
        let id = engine.find(name)?;
        let view = engine.view(&id)?;
        out.push(Watched {
            id,
            shown: name.clone(),
            name: view.config.name,
        });
    }
    Ok(out)
}

fn looks(engine: &Engine, list: &[Watched]) -> Outcome<BTreeMap<String, Usage>> {
    let mut out = BTreeMap::new();
    for watched in list {
        match engine.usage(&watched.id) {
            Ok(Some(usage)) => {
                out.insert(watched.id.hex(), usage);
            }
            Ok(None) | Err(EngineError::NoSuchContainer(_)) => {}
            Err(e) => return Err(Failure::Engine(e)),
        }
    }
    Ok(out)
}

/// Docker writes two dashes for what there is not.
fn linear(engine: &Engine, watched: &Watched) -> String {
    match engine.linear_memory(&watched.id) {
        Ok(Some(bytes)) => ui::size_of_four(bytes, true),
        _ => "--".to_owned(),
    }
}

fn row(watched: &Watched, now: Option<&Usage>, before: Option<&Usage>, whole: bool) -> Row {
    let idle = Usage::default();
    let usage = now.unwrap_or(&idle);
    let hex = watched.id.hex();
    let pair = |a: u64, b: u64| format!("{} / {}", ui::human_size(a), ui::human_size(b));
    let memory = |bytes| ui::size_of_four(bytes, true);
    Row::new([
        ("Container", watched.shown.clone()),
        ("ID", if whole { hex } else { watched.id.short() }),
        ("Name", watched.name.clone()),
        ("CPUPerc", format!("{:.2}%", cpu(usage, before))),
        (
            "MemUsage",
            format!("{} / {}", memory(usage.memory), memory(usage.memory_limit)),
        ),
        (
            "MemPerc",
            format!("{:.2}%", percent(usage.memory, usage.memory_limit)),
        ),
        ("NetIO", pair(usage.received, usage.sent)),
        ("BlockIO", pair(usage.read, usage.written)),
        ("PIDs", usage.pids.to_string()),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 / whole as f64 * 100.0
}

/// Docker's formula: the share of the machine's CPU time, times its CPUs.
#[expect(clippy::cast_precision_loss, reason = "a count of CPUs")]
fn cpu(now: &Usage, before: Option<&Usage>) -> f64 {
    let Some(before) = before else { return 0.0 };
    let used = now.cpu_ns.saturating_sub(before.cpu_ns);
    let had = now.system_ns.saturating_sub(before.system_ns);
    percent(used, had) * now.cpus as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_docker_s() {
        let before = Usage {
            cpu_ns: 100,
            system_ns: 1000,
            cpus: 2,
            ..Usage::default()
        };
        let now = Usage {
            cpu_ns: 350,
            system_ns: 1500,
            ..before
        };
        assert!((cpu(&now, Some(&before)) - 100.0).abs() < 1e-9);
        assert!(cpu(&now, None).abs() < 1e-9);
        assert!(percent(1, 0).abs() < 1e-9);
    }
}
