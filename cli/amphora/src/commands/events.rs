//! `events`: what happens, as it happens.

use std::time::Duration;

use amphora_engine::Engine;
use amphora_template::{Missing, Mode, Object, Template, Value};
use clap::Args;
use jiff::Timestamp;
use serde_json::Value as Json;

use crate::errors::{Failure, Outcome};
use crate::filter::Filters;
use crate::{format, time, ui};

const FILTERS: [&str; 11] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "plugin",
    "scope",
    "type",
    "volume",
];

// Flags of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a Go template or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Show all events created since timestamp
    #[arg(long, value_name = "STRING")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "STRING")]
    until: Option<String>,
}

/// Carries out `events`.
pub(crate) fn events(engine: &Engine, args: &EventsArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, "-f, --filter", &FILTERS)?;
    let template = match args.format.as_deref() {
        None | Some("") => None,
        Some("json") => Some(None),
        Some(text) => {
            Some(Some(Template::parse(text).map_err(|e| {
                Failure::Status(64, format!("Error parsing format: {e}"))
            })?))
        }
    };
    let moment = |text: &Option<String>| {
        text.as_deref()
            .map(|t| {
                time::parse(t).ok_or_else(|| {
                    Failure::Local(format!(
                        "failed to parse value as time or duration: \"{t}\""
                    ))
                })
            })
            .transpose()
    };
    let (since, until) = (moment(&args.since)?, moment(&args.until)?);
    let mut reader = engine.events(since.is_some() || until.is_some())?;
    let since = since.or(until.map(|_| Timestamp::now()));
    loop {
        let over = until.is_some_and(|u| Timestamp::now() >= u);
        for line in reader.read()? {
            let Ok(event) = serde_json::from_str::<Json>(&line) else {
                continue;
            };
            let at = event.get("timeNano").and_then(Json::as_i64).unwrap_or(0);
            let at = Timestamp::from_nanosecond(i128::from(at)).unwrap_or_default();
            let early = since.is_some_and(|s| at < s);
            let late = until.is_some_and(|u| at > u);
            if !early && !late && holds(&filters, &event) {
                ui::raw(&render(event, at, template.as_ref())?);
            }
        }
        if over {
            return Ok(());
        }
        let left = until
            .map(|u| Duration::try_from(u.duration_since(Timestamp::now())).unwrap_or_default());
        reader.wait(left)?;
    }
}

fn text<'a>(event: &'a Json, pointer: &str) -> &'a str {
    event.pointer(pointer).and_then(Json::as_str).unwrap_or("")
}

fn holds(filters: &Filters, event: &Json) -> bool {
    let (kind, action) = (text(event, "/Type"), text(event, "/Action"));
    let (id, name) = (
        text(event, "/Actor/ID"),
        text(event, "/Actor/Attributes/name"),
    );
    let of = |wanted: &str, f: &dyn Fn(&str) -> bool| filters.any(wanted, |v| f(v));
    let object = |wanted: &'static str| {
        of(wanted, &|v| {
            kind == wanted && (id == v || name == v || (!v.is_empty() && id.starts_with(v)))
        })
    };
    let image = |v: &str| {
        let used = text(event, "/Actor/Attributes/image");
        let base = |t: &str| t.split(':').next().unwrap_or(t).to_owned();
        match kind {
            "image" => id == v || name == v || base(id) == base(v) || base(name) == base(v),
            _ => !used.is_empty() && (used == v || base(used) == v),
        }
    };
    let label = |v: &str| {
        let (key, value) = v.split_once('=').map_or((v, None), |(k, v)| (k, Some(v)));
        let have = event
            .pointer("/Actor/Attributes")
            .and_then(|a| a.get(key))
            .and_then(Json::as_str);
        have.is_some_and(|have| value.is_none_or(|v| v == have))
    };
    of("type", &|v| kind == v)
        && of("scope", &|v| v == "local")
        && of("event", &|v| {
            // `exec_create` stands for `exec_create: ls`.
            action == v || action.split(':').next() == Some(v)
        })
        && object("container")
        && object("volume")
        && object("network")
        && object("daemon")
        && object("plugin")
        && object("config")
        && of("image", &image)
        && filters.all("label", label)
}

fn render(mut event: Json, at: Timestamp, template: Option<&Option<Template>>) -> Outcome<String> {
    let Some(template) = template else {
        return Ok(line(&event, at));
    };
    let (kind, action) = (
        text(&event, "/Type").to_owned(),
        text(&event, "/Action").to_owned(),
    );
    let id = text(&event, "/Actor/ID").to_owned();
    let from = text(&event, "/Actor/Attributes/image").to_owned();
    let Some(template) = template else {
        // The three that older clients read.
        if let Some(map) = event.as_object_mut()
            && matches!(kind.as_str(), "container" | "image")
        {
            map.insert("status".to_owned(), action.into());
            map.insert("id".to_owned(), id.into());
            if kind == "container" {
                map.insert("from".to_owned(), from.into());
            }
        }
        return Ok(format!("{event}\n"));
    };
    let field = |name: &str| {
        let json = event.get(name).cloned().unwrap_or_default();
        (
            match name {
                "time" => "Time".to_owned(),
                "timeNano" => "TimeNano".to_owned(),
                "scope" => "Scope".to_owned(),
                other => other.to_owned(),
            },
            Value::from_json(&json, &["Attributes"], &[]),
        )
    };
    let mut fields: Vec<(String, Value)> = ["Type", "Action", "Actor", "scope", "time", "timeNano"]
        .into_iter()
        .map(field)
        .collect();
    fields.push(("Status".to_owned(), action.into()));
    fields.push(("ID".to_owned(), id.into()));
    fields.push(("From".to_owned(), from.into()));
    let value = Value::Object(Object::new(fields, Missing::Type("*events.Message")));
    template
        .execute(&value, Mode::Rows)
        .map(|text| format!("{text}\n"))
        .map_err(|e| Failure::Local(format::parsing_error(&e)))
}

/// Docker's line: time, type, action, id, attributes by name.
fn line(event: &Json, at: Timestamp) -> String {
    let mut pairs: Vec<String> = event
        .pointer("/Actor/Attributes")
        .and_then(Json::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
        .collect();
    pairs.sort();
    let shown = if pairs.is_empty() {
        String::new()
    } else {
        format!(" ({})", pairs.join(", "))
    };
    format!(
        "{} {} {} {}{shown}\n",
        time::nano_text(at),
        text(event, "/Type"),
        text(event, "/Action"),
        text(event, "/Actor/ID"),
    )
}
