//! `images`: the list of images.

use std::collections::BTreeSet;

use amphora_engine::{Engine, ImageSummary};
use amphora_spec::Reference;
use clap::Args;

use crate::errors::Outcome;
use crate::filter::{Filters, has_label, invalid};
use crate::format::{Format, Row, format_or_quiet};
use crate::ui;

const TYPE: &str = "*formatter.imageContext";
const HEADERS: [(&str, &str); 12] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Platform", "PLATFORM"),
];
const FILTERS: [&str; 6] = ["before", "dangling", "label", "reference", "since", "until"];

// Flags of `images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show all images (there are no hidden ones)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only this repository
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

/// Carries out `images`.
pub(crate) fn images(engine: &Engine, args: &ImagesArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, "-f, --filter", &FILTERS)?;
    let table = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    let asked = format_or_quiet(args.format.as_deref(), args.quiet, "{{.ID}}");
    let format = Format::parse(asked, table)?;
    let (mut rows, damaged) = engine.all_images()?;
    ui::warnings(damaged.iter().map(String::as_str));
    sort(&mut rows);
    narrow(engine, &filters, &mut rows)?;
    if let Some(wanted) = &args.repository {
        rows.retain(|row| refers(row, wanted));
    }
    if args.quiet {
        let mut seen = BTreeSet::new();
        rows.retain(|r| seen.insert(r.record.image_id));
    }
    let rows = rows.iter().map(|r| row(r, args.no_trunc)).collect();
    format.print(TYPE, &HEADERS, rows)
}

/// Newest first.
fn sort(rows: &mut [ImageSummary]) {
    rows.sort_by(|a, b| b.record.config.created.cmp(&a.record.config.created));
}

/// Carries out filters.
fn narrow(engine: &Engine, filters: &Filters, rows: &mut Vec<ImageSummary>) -> Outcome {
    if let Some(dangling) = filters.flag("dangling")? {
        rows.retain(|r| r.reference.is_none() == dangling);
    }
    rows.retain(|r| {
        filters.all("label", |v| has_label(&r.record.config.config.labels, v))
            && filters.any("reference", |v| refers(r, v))
    });
    for (name, newer) in [("before", false), ("since", true)] {
        for value in filters.values(name) {
            let mark = engine.image(value)?.0.config.created;
            rows.retain(|r| {
                if newer {
                    r.record.config.created > mark
                } else {
                    r.record.config.created < mark
                }
            });
        }
    }
    for value in filters.values("until") {
        let until = crate::time::parse(value).ok_or_else(|| invalid(&format!("until={value}")))?;
        rows.retain(|r| {
            r.record
                .config
                .created
                .as_deref()
                .and_then(crate::time::parse)
                .is_none_or(|t| t < until)
        });
    }
    Ok(())
}

/// Whether a name or a pattern with `*` and `?` names the image.
pub(crate) fn refers(row: &ImageSummary, wanted: &str) -> bool {
    let Some(name) = &row.reference else {
        return false;
    };
    let repository = name.familiar_repository();
    let whole = name.familiar();
    let exact = wanted
        .parse::<Reference>()
        .is_ok_and(|r| r.familiar() == whole || r.familiar() == repository);
    exact || glob(wanted, &repository) || glob(wanted, &whole)
}

/// Go's `path.Match`, as far as names of images need it: `*` and `?` stop at a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let mut escaped = String::from("^");
    for c in pattern.chars() {
        match c {
            '*' => escaped.push_str("[^/]*"),
            '?' => escaped.push_str("[^/]"),
            '[' | ']' | '-' => escaped.push(c),
            c if c.is_alphanumeric() || c == '_' => escaped.push(c),
            c => {
                escaped.push('\\');
                escaped.push(c);
            }
        }
    }
    escaped.push('$');
    crate::pattern::find(&escaped, text).unwrap_or(false)
}

/// Repository and tag, or Docker's `<none>`.
pub(crate) fn names(row: &ImageSummary) -> (String, String) {
    let none = || "<none>".to_owned();
    match &row.reference {
        Some(r) => (
            r.familiar_repository(),
            r.tag().map_or_else(none, str::to_owned),
        ),
        None => (none(), none()),
    }
}

fn row(row: &ImageSummary, whole: bool) -> Row {
    let (repository, tag) = names(row);
    let record = &row.record;
    let created = record.config.created.as_deref();
    let na = || "N/A".to_owned();
    Row::new([
        (
            "ID",
            if whole {
                record.image_id.to_string()
            } else {
                record.image_id.short()
            },
        ),
        ("Repository", repository),
        ("Tag", tag),
        ("Digest", row.target.digest.to_string()),
        ("CreatedSince", created.map_or_else(na, ui::ago)),
        ("CreatedAt", created.map_or_else(na, ui::local_time)),
        ("Size", ui::human_size(record.size)),
        ("Containers", na()),
        ("VirtualSize", ui::human_size(record.size)),
        ("SharedSize", na()),
        ("UniqueSize", na()),
        ("Platform", record.config.platform().to_string()),
    ])
}
