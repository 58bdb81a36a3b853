//! `container prune`, `image prune`, `network prune`, `volume prune`, `system prune`.

use std::collections::BTreeMap;

use amphora_engine::{Engine, ImageSummary, Listed, NetworkConfig, Pruned};
use clap::Args;
use jiff::Timestamp;

use crate::errors::{Failure, Outcome};
use crate::filter::{Filters, has_label, invalid};
use crate::{time, ui};

const FILTERS: [&str; 3] = ["label", "label!", "until"];

// Flags of `container prune`.
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

// Flags of `image prune` and `volume prune`.
#[derive(Debug, Args)]
pub(crate) struct AllArgs {
    /// Remove all unused ones: not just dangling images, anonymous volumes
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

// Flags of `network prune`.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

// Flags of `system prune`.
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

/// What filters say: removed is what they all hold for.
struct Rule {
    filters: Filters,
    until: Option<Timestamp>,
}

impl Rule {
    fn new(values: &[String], known: &[&str]) -> Outcome<Self> {
        let filters = Filters::parse(values, "--filter", known)?;
        let mut until = None;
        for value in filters.values("until") {
            let parsed = time::parse(value).ok_or_else(|| invalid(&format!("until={value}")))?;
            if until.replace(parsed).is_some() {
                return Err(Failure::Local(
                    "more than one until filter specified".into(),
                ));
            }
        }
        Ok(Self { filters, until })
    }

    fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.filters.all("label", |v| has_label(labels, v))
            && self.filters.all("label!", |v| !has_label(labels, v))
    }

    fn time(&self, created: Option<&str>) -> bool {
        let Some(until) = self.until else {
            return true;
        };
        created.and_then(time::parse).is_some_and(|t| t < until)
    }

    fn containers(&self, engine: &Engine) -> Outcome<Pruned> {
        let keep = |c: &Listed| {
            !(self.labels(&c.summary.label_map()) && self.time(Some(&c.summary.created_text())))
        };
        Ok(engine.prune_containers(&keep)?)
    }

    fn images(&self, engine: &Engine, all: bool) -> Outcome<Pruned> {
        let keep = |image: &ImageSummary| {
            let config = &image.record.config;
            !(self.labels(&config.config.labels) && self.time(config.created.as_deref()))
        };
        Ok(engine.prune_images(all, &keep)?)
    }

    fn networks(&self, engine: &Engine) -> Outcome<Pruned> {
        let keep =
            |n: &NetworkConfig| !(self.labels(&n.labels) && self.time(Some(n.created.as_str())));
        let gone = engine.prune_networks(&keep)?;
        engine.note("network", "prune", "", &[("reclaimed", "0")]);
        Ok(Pruned {
            removed: gone.into_iter().map(|network| network.name).collect(),
            bytes: 0,
        })
    }

    fn volumes(&self, engine: &Engine, all: bool) -> Outcome<Pruned> {
        Ok(engine.prune_volumes(all, &|labels| !self.labels(labels))?)
    }
}

fn agreed(force: bool, warning: &str) -> bool {
    force
        || ui::confirm(&format!(
            "{warning}\nAre you sure you want to continue? [y/N] "
        ))
}

/// Prunes one kind of object after `warning` was answered, and tells what went.
fn one_kind(
    force: bool,
    warning: &str,
    title: &str,
    prune: impl FnOnce() -> Outcome<Pruned>,
) -> Outcome {
    if !agreed(force, warning) {
        return Ok(());
    }
    let pruned = prune()?;
    list(title, &pruned);
    total(pruned.bytes);
    Ok(())
}

fn list(title: &str, pruned: &Pruned) {
    if pruned.removed.is_empty() {
        return;
    }
    ui::line(title);
    pruned.removed.iter().for_each(|l| ui::line(l));
    ui::line("");
}

fn total(bytes: u64) {
    ui::line(&format!(
        "Total reclaimed space: {}",
        ui::size_of_four(bytes, false)
    ));
}

/// Carries out `container prune`.
pub(crate) fn containers(engine: &Engine, args: &ContainerArgs) -> Outcome {
    let rule = Rule::new(&args.filter, &FILTERS)?;
    let warning = "WARNING! This will remove all stopped containers.";
    one_kind(args.force, warning, "Deleted Containers:", || {
        rule.containers(engine)
    })
}

/// Carries out `image prune`.
pub(crate) fn images(engine: &Engine, args: &AllArgs) -> Outcome {
    let known = ["dangling", "label", "label!", "until"];
    let rule = Rule::new(&args.filter, &known)?;
    let all = args.all || rule.filters.flag("dangling")? == Some(false);
    let warning = if all {
        "WARNING! This will remove all images without at least one container associated to them."
    } else {
        "WARNING! This will remove all dangling images."
    };
    one_kind(args.force, warning, "Deleted Images:", || {
        rule.images(engine, all)
    })
}

/// Carries out `network prune`.
pub(crate) fn networks(engine: &Engine, args: &NetworkArgs) -> Outcome {
    let rule = Rule::new(&args.filter, &FILTERS)?;
    let warning =
        "WARNING! This will remove all custom networks not used by at least one container.";
    if agreed(args.force, warning) {
        list("Deleted Networks:", &rule.networks(engine)?);
    }
    Ok(())
}

/// Carries out `volume prune`.
pub(crate) fn volumes(engine: &Engine, args: &AllArgs) -> Outcome {
    let rule = Rule::new(&args.filter, &["all", "label", "label!"])?;
    let all = args.all || rule.filters.flag("all")? == Some(true);
    let warning = if all {
        "WARNING! This will remove all local volumes not used by at least one container."
    } else {
        "WARNING! This will remove anonymous local volumes not used by at least one container."
    };
    one_kind(args.force, warning, "Deleted Volumes:", || {
        rule.volumes(engine, all)
    })
}

/// Carries out `system prune`.
pub(crate) fn system(engine: &Engine, args: &SystemArgs) -> Outcome {
    let rule = Rule::new(&args.filter, &FILTERS)?;
    if args.volumes && rule.until.is_some() {
        return Err(Failure::Local(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"".into(),
        ));
    }
    if !args.force && !ui::confirm(&question(args)) {
        return Ok(());
    }
    let mut bytes = 0;
    let pruned = rule.containers(engine)?;
    list("Deleted Containers:", &pruned);
    bytes += pruned.bytes;
    list("Deleted Networks:", &rule.networks(engine)?);
    if args.volumes {
        let pruned = rule.volumes(engine, false)?;
        list("Deleted Volumes:", &pruned);
        bytes += pruned.bytes;
    }
    let pruned = rule.images(engine, args.all)?;
    list("Deleted Images:", &pruned);
    total(bytes + pruned.bytes);
    Ok(())
}

fn question(args: &SystemArgs) -> String {
    let mut lines = vec![
        "all stopped containers",
        "all networks not used by at least one container",
    ];
    if args.volumes {
        lines.push("all anonymous volumes not used by at least one container");
    }
    lines.push(if args.all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    });
    let mut text = "WARNING! This will remove:".to_owned();
    for line in lines {
        text.push_str(&format!("\n  - {line}"));
    }
    text.push('\n');
    if !args.filter.is_empty() {
        text.push_str("\n  Items to be pruned will be filtered with:");
        for filter in &args.filter {
            text.push_str(&format!("\n  - {filter}"));
        }
        text.push('\n');
    }
    text.push_str("\nAre you sure you want to continue? [y/N] ");
    text
}
