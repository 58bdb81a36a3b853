//! `network ls`: the list of networks.

use std::collections::BTreeSet;

use amphora_engine::{Engine, NetworkConfig};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::filter::{Filters, has_label, matches};
use crate::format::{Format, Row, format_or_quiet, label_list};

const TYPE: &str = "*network.networkContext";
const HEADERS: [(&str, &str); 9] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];
const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

// Flags of `network ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

/// Carries out `network ls`.
pub(crate) fn ls(engine: &Engine, args: &LsArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, "-f, --filter", &FILTERS)?;
    let table = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
    let asked = format_or_quiet(args.format.as_deref(), args.quiet, "{{.ID}}");
    let format = Format::parse(asked, table)?;
    let networks = chosen(engine, &filters)?;
    let rows = networks.iter().map(|n| row(n, args.no_trunc)).collect();
    format.print(TYPE, &HEADERS, rows)
}

/// The networks that all filters hold for, by name.
fn chosen(engine: &Engine, filters: &Filters) -> Outcome<Vec<NetworkConfig>> {
    let kinds = |wanted: &str| matches!(wanted, "builtin" | "custom");
    if let Some(other) = filters.values("type").find(|v| !kinds(v)) {
        return Err(Failure::Daemon(format!("invalid filter: 'type'='{other}'")));
    }
    let mut networks = engine.list_networks()?;
    networks.retain(|n| {
        let kind = if n.is_predefined() {
            "builtin"
        } else {
            "custom"
        };
        filters.any("name", |want| matches(want, &n.name))
            && filters.any("id", |want| matches(want, &n.id))
            && filters.any("driver", |want| matches(want, n.driver.as_str()))
            && filters.any("scope", |want| want == "local")
            && filters.any("type", |want| want == kind)
            && filters.all("label", |want| has_label(&n.labels, want))
    });
    let dangling = filters.flag("dangling").map_err(|_| {
        let words = "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")";
        Failure::Daemon(words.to_owned())
    })?;
    if let Some(dangling) = dangling {
        let used: BTreeSet<String> = engine.networks_in_use()?;
        networks.retain(|n| (!n.is_predefined() && !used.contains(&n.name)) == dangling);
    }
    Ok(networks)
}

fn row(network: &NetworkConfig, whole: bool) -> Row {
    let id = match network.id.get(..12) {
        Some(short) if !whole => short,
        _ => &network.id,
    };
    Row::new([
        ("CreatedAt", crate::ui::local_time(&network.created)),
        ("Driver", network.driver.as_str().to_owned()),
        ("ID", id.to_owned()),
        ("IPv4", network.subnet.is_some().to_string()),
        ("IPv6", network.subnet6.is_some().to_string()),
        ("Internal", network.internal.to_string()),
        ("Labels", label_list(&network.labels)),
        ("Name", network.name.clone()),
        ("Scope", "local".to_owned()),
    ])
    .with_labels(&network.labels)
}
