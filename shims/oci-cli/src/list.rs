//! `state`, `list` and `ps`.

use std::io::Write;

use crate::args::{Flag, Order, parse};
use crate::error::RuncError;
use crate::state::Container;
use crate::{Code, Context};

const LIST: &[Flag] = &[
    Flag::value("format", Some('f')),
    Flag::switch("quiet", Some('q')),
];
const PS: &[Flag] = &[Flag::value("format", Some('f'))];

/// Writes to standard output; a reader that went away is not our failure.
pub(crate) fn print(text: &str) -> Code {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(0)
}

/// `state`.
pub(crate) fn state(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(&[], words, Order::Any)?;
    let container = Container::find(&context.root, parsed.container()?)?;
    print(&format!("{:#}\n", entry(&container)?))
}

/// The state with what runc adds to it.
fn entry(container: &Container) -> Result<serde_json::Value, RuncError> {
    let mut state = container.oci_state(container.status()?);
    let record = &container.record;
    if let Some(fields) = state.as_object_mut() {
        fields.insert(
            "rootfs".to_owned(),
            record.rootfs.display().to_string().into(),
        );
        fields.insert("created".to_owned(), record.created.clone().into());
        let owner = if record.owner == "0" {
            "root"
        } else {
            &record.owner
        };
        fields.insert("owner".to_owned(), owner.into());
    }
    Ok(state)
}

/// `list`.
pub(crate) fn list(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(LIST, words, Order::Any)?;
    if !parsed.rest().is_empty() {
        return Err(RuncError::usage("list takes no arguments"));
    }
    let mut entries = Vec::new();
    for name in Container::names(&context.root)? {
        // One that is just being made or removed is not there.
        match Container::find(&context.root, &name) {
            Ok(container) => match entry(&container) {
                Ok(entry) => entries.push(entry),
                Err(error) => context.log.warning(&format!("{name}: {error}")),
            },
            Err(RuncError::NoSuchContainer) => {}
            Err(error) => context.log.warning(&format!("{name}: {error}")),
        }
    }
    let text = |entry: &serde_json::Value, key: &str| match &entry[key] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if parsed.on("quiet") {
        let ids: String = entries.iter().map(|e| text(e, "id") + "\n").collect();
        return print(&ids);
    }
    match parsed.get("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", serde_json::Value::Array(entries))),
        "table" => {
            let keys = ["id", "pid", "status", "bundle", "created", "owner"];
            let mut rows = vec![keys.map(str::to_uppercase)];
            rows.extend(entries.iter().map(|e| keys.map(|key| text(e, key))));
            print(&table(&rows))
        }
        other => Err(RuncError::usage(format!(
            "invalid format option \"{other}\""
        ))),
    }
}

/// Columns as wide as their widest cell (12 at least) and three blanks, as runc prints them.
fn table(rows: &[[String; 6]]) -> String {
    const LEAST: usize = 12;
    const GAP: usize = 3;
    let mut widths = [LEAST; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len() + GAP);
        }
    }
    let mut out = String::new();
    for row in rows {
        let (last, cells) = row.split_last().unwrap_or((&row[0], &[]));
        for (cell, width) in cells.iter().zip(widths) {
            out.push_str(&format!("{cell:<width$}"));
        }
        out.push_str(last);
        out.push('\n');
    }
    out
}

/// `ps`: the processes of the container's cgroup.
pub(crate) fn ps(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(PS, words, Order::Any)?;
    let container = Container::find(&context.root, parsed.container()?)?;
    let pids = container.pids()?;
    match parsed.get("format") {
        Some("json") => print(&format!("{}\n", serde_json::json!(pids))),
        Some("table") | None => {
            let mut out = "PID       CMD\n".to_owned();
            for pid in pids {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                out.push_str(&format!("{pid:<9} {}\n", line.trim_end()));
            }
            print(&out)
        }
        Some(other) => Err(RuncError::usage(format!(
            "invalid format option \"{other}\""
        ))),
    }
}
