//! `system df`: what is where on disk.

use std::collections::{BTreeMap, BTreeSet};

use amphora_engine::{Engine, ImageSummary, Listed, Status};
use amphora_spec::Digest;
use clap::Args;

use super::images::names;
use super::ps;
use crate::errors::{Failure, Outcome};
use crate::format::{Format, Row};
use crate::ui;

const TYPE: &str = "*formatter.diskUsageContext";
const HEADERS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

// Flags of `system df`.
#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

struct Facts {
    containers: Vec<(Listed, u64)>,
    images: Vec<ImageSummary>,
    /// Size of each unpacked layer.
    layers: BTreeMap<Digest, u64>,
    volumes: Vec<(String, usize, u64)>,
}

impl Facts {
    fn gather(engine: &Engine) -> Outcome<Self> {
        let containers: Vec<(Listed, u64)> = engine
            .ps(true)?
            .into_iter()
            .map(|c| {
                let size = engine.container_size(&c.summary.id);
                let size = size.map_or(0, |s| s.writable);
                (c, size)
            })
            .collect();
        let images = engine.images()?;
        let mut layers = BTreeMap::new();
        for image in &images {
            layers.extend(engine.image_layers(&image.record));
        }
        let volumes = engine
            .volumes()?
            .into_iter()
            .map(|v| {
                let uses = |c: &Listed| {
                    c.summary
                        .mounts()
                        .any(|m| m.kind == "volume" && m.source == v.name)
                };
                let links = containers.iter().filter(|(c, _)| uses(c)).count();
                let size = engine.volume_size(&v.name);
                (v.name, links, size)
            })
            .collect();
        Ok(Self {
            containers,
            images,
            layers,
            volumes,
        })
    }

    fn users(&self, image: &ImageSummary) -> usize {
        let id = image.record.image_id.to_string();
        self.containers
            .iter()
            .filter(|(c, _)| c.summary.image_id() == id)
            .count()
    }

    fn layers_of<'a>(&self, images: impl Iterator<Item = &'a ImageSummary>) -> BTreeSet<Digest> {
        images
            .flat_map(|i| &i.record.layers)
            .map(|l| l.diff_id.unwrap_or(l.digest))
            .collect()
    }

    fn size(&self, layers: &BTreeSet<Digest>) -> u64 {
        layers.iter().filter_map(|l| self.layers.get(l)).sum()
    }
}

/// Carries out `system df`.
pub(crate) fn df(engine: &Engine, args: &DfArgs) -> Outcome {
    if args.verbose {
        if args.format.is_some() {
            return Err(Failure::Usage(
                "flag --format is not supported together with --verbose".into(),
            ));
        }
        return verbose(engine, &Facts::gather(engine)?);
    }
    let table = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
    let format = Format::parse(args.format.as_deref(), table)?;
    let facts = Facts::gather(engine)?;
    let all = facts.layers_of(facts.images.iter());
    let used = facts.layers_of(facts.images.iter().filter(|i| facts.users(i) > 0));
    let ids = |used_only: bool| {
        facts
            .images
            .iter()
            .filter(|i| !used_only || facts.users(i) > 0)
            .map(|i| i.record.image_id)
            .collect::<BTreeSet<_>>()
            .len()
    };
    let running = |c: &Listed| c.status == Status::Running;
    let writable: u64 = facts.containers.iter().map(|(_, s)| s).sum();
    let stopped = facts.containers.iter().filter(|(c, _)| !running(c));
    let volumes: u64 = facts.volumes.iter().map(|(_, _, s)| s).sum();
    let unlinked = facts.volumes.iter().filter(|(_, links, _)| *links == 0);
    let total = facts.size(&all);
    let rows = vec![
        row(
            "Images",
            ids(false),
            ids(true),
            total,
            total - facts.size(&used),
        ),
        row(
            "Containers",
            facts.containers.len(),
            facts.containers.iter().filter(|(c, _)| running(c)).count(),
            writable,
            stopped.map(|(_, s)| s).sum(),
        ),
        row(
            "Local Volumes",
            facts.volumes.len(),
            facts.volumes.iter().filter(|(_, l, _)| *l > 0).count(),
            volumes,
            unlinked.map(|(_, _, s)| s).sum(),
        ),
        row("Build Cache", 0, 0, 0, 0),
    ];
    format.print(TYPE, &HEADERS, rows)
}

fn row(kind: &str, total: usize, active: usize, size: u64, reclaimable: u64) -> Row {
    let mut text = ui::size_of_four(reclaimable, false);
    if let Some(share) = (reclaimable * 100).checked_div(size) {
        text.push_str(&format!(" ({share}%)"));
    }
    Row::new([
        ("Type", kind.to_owned()),
        ("TotalCount", total.to_string()),
        ("Active", active.to_string()),
        ("Size", ui::size_of_four(size, false)),
        ("Reclaimable", text),
    ])
}

fn verbose(engine: &Engine, facts: &Facts) -> Outcome {
    let mut out = String::from("Images space usage:\n\n");
    let mut lines = vec![
        "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS".to_owned(),
    ];
    for image in &facts.images {
        let own = facts.layers_of(std::iter::once(image));
        let id = image.record.image_id;
        let others = facts.images.iter().filter(|i| i.record.image_id != id);
        let others = facts.layers_of(others);
        let shared: BTreeSet<Digest> = own.intersection(&others).copied().collect();
        let (size, shared) = (facts.size(&own), facts.size(&shared));
        let (repository, tag) = names(image);
        let created = image.record.config.created.as_deref();
        lines.push(format!(
            "{repository}\t{tag}\t{}\t{}\t{}\t{}\t{}\t{}",
            id.short(),
            created.map_or_else(|| "N/A".to_owned(), ui::ago),
            ui::human_size(size),
            ui::human_size(shared),
            ui::human_size(size - shared),
            facts.users(image),
        ));
    }
    out.push_str(&crate::format::align(&(lines.join("\n") + "\n")));
    out.push_str("\nContainers space usage:\n\n");
    let mut lines = vec![
        "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES".to_owned(),
    ];
    for (container, size) in &facts.containers {
        lines.push(ps::df_line(engine, container, &ui::human_size(*size)));
    }
    out.push_str(&crate::format::align(&(lines.join("\n") + "\n")));
    out.push_str("\nLocal Volumes space usage:\n\n");
    let mut lines = vec!["VOLUME NAME\tLINKS\tSIZE".to_owned()];
    for (name, links, size) in &facts.volumes {
        lines.push(format!("{name}\t{links}\t{}", ui::human_size(*size)));
    }
    out.push_str(&crate::format::align(&(lines.join("\n") + "\n")));
    out.push_str("\nBuild cache usage: 0B\n\n");
    out.push_str(&crate::format::align(
        "CACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED\n",
    ));
    ui::raw(&out);
    Ok(())
}
