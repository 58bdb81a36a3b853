//! `history`: how an image came about.

use amphora_engine::Engine;
use clap::Args;

use super::ps::ellipsis;
use crate::errors::Outcome;
use crate::format::{Format, Row, format_or_quiet};
use crate::ui;

const TYPE: &str = "*image.historyContext";
const HEADERS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

// Flags of `history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Name or id
    image: String,
}

/// Carries out `history`.
pub(crate) fn history(engine: &Engine, args: &HistoryArgs) -> Outcome {
    let table = if args.human {
        "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
    } else {
        "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
    };
    let asked = format_or_quiet(args.format.as_deref(), args.quiet, "{{.ID}}");
    let format = Format::parse(asked, table)?;
    let (record, _) = engine.image(&args.image)?;
    let mut sizes = engine.image_layers(&record).into_iter().map(|(_, s)| s);
    let id = if args.no_trunc {
        record.image_id.to_string()
    } else {
        record.image_id.short()
    };
    let mut rows = Vec::new();
    let last = record.config.history.len().saturating_sub(1);
    for (i, entry) in record.config.history.iter().enumerate() {
        let size = if entry.empty_layer {
            0
        } else {
            sizes.next().unwrap_or(0)
        };
        let created = entry.created.as_deref();
        let by = entry
            .created_by
            .as_deref()
            .unwrap_or_default()
            .replace('\t', " ");
        let none = || "<missing>".to_owned();
        rows.push(Row::new([
            ("ID", if i == last { id.clone() } else { none() }),
            (
                "CreatedSince",
                created.map_or_else(|| "N/A".to_owned(), ui::ago),
            ),
            ("CreatedAt", created.unwrap_or_default().to_owned()),
            (
                "CreatedBy",
                if args.no_trunc { by } else { ellipsis(&by, 45) },
            ),
            (
                "Size",
                if args.human {
                    ui::human_size(size)
                } else {
                    size.to_string()
                },
            ),
            ("Comment", entry.comment.clone().unwrap_or_default()),
        ]));
    }
    rows.reverse();
    format.print(TYPE, &HEADERS, rows)
}
