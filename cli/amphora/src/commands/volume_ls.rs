//! `volume ls`: the list of volumes.

use std::collections::BTreeSet;

use amphora_engine::Engine;
use clap::Args;

use crate::errors::Outcome;
use crate::filter::{Filters, has_label, matches};
use crate::format::{Format, Row, format_or_quiet, label_list};
use crate::ui;

const TYPE: &str = "*formatter.volumeContext";
const HEADERS: [(&str, &str); 10] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Availability", "AVAILABILITY"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];
const FILTERS: [&str; 4] = ["dangling", "driver", "label", "name"];

// Flags of `volume ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

/// Carries out `volume ls`.
pub(crate) fn ls(engine: &Engine, args: &LsArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, "-f, --filter", &FILTERS)?;
    let table = "{{.Driver}}\t{{.Name}}";
    let asked = format_or_quiet(args.format.as_deref(), args.quiet, "{{.Name}}");
    let format = Format::parse(asked, table)?;
    let mut volumes = engine.volumes()?;
    volumes.retain(|v| {
        filters.any("name", |want| matches(want, &v.name))
            && filters.any("driver", |want| want == "local")
            && filters.all("label", |want| has_label(&v.labels, want))
    });
    if let Some(dangling) = filters.flag("dangling")? {
        let containers = engine.ps(true)?;
        let used: BTreeSet<&str> = containers
            .iter()
            .flat_map(|c| c.summary.mounts())
            .filter(|m| m.kind == "volume")
            .map(|m| m.source)
            .collect();
        volumes.retain(|v| used.contains(v.name.as_str()) != dangling);
    }
    let na = || "N/A".to_owned();
    let sized = format.uses("Size");
    let rows = volumes
        .iter()
        .map(|v| {
            let size = if sized {
                ui::human_size(engine.volume_size(&v.name))
            } else {
                na()
            };
            Row::new([
                ("Driver", "local".to_owned()),
                ("Name", v.name.clone()),
                ("Scope", "local".to_owned()),
                (
                    "Mountpoint",
                    engine.volume_path(&v.name).display().to_string(),
                ),
                ("Labels", label_list(&v.labels)),
                ("Links", na()),
                ("Size", size),
                ("Availability", na()),
                ("Group", na()),
                ("Status", na()),
            ])
            .with_labels(&v.labels)
        })
        .collect();
    format.print(TYPE, &HEADERS, rows)
}
