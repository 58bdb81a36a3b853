//! `ps`: the list of containers.

use std::collections::BTreeMap;
use std::fmt::Write;

use amphora_engine::{ContainerView, Engine, Listed, Status};
use amphora_spec::{ContainerId, Reference};
use amphora_template::{Nil, Value};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::filter::{Filters, invalid, label_holds, matches};
use crate::format::{Fields, Format, format_or_quiet};
use crate::ui;

/// Docker's table.
const TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const TYPE: &str = "*formatter.ContainerContext";
const HEADERS: [(&str, &str); 16] = [
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
    ("Executor", "EXECUTOR"),
];
/// Names of filters that Docker knows.
const FILTERS: [&str; 16] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "isolation",
    "executor",
];
const STATES: [&str; 7] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
];

const HEALTH: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];

// Flags of `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table', 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "STRING")]
    format: Option<String>,
    /// Show n last created containers (includes all states)
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "-1",
        allow_hyphen_values = true
    )]
    last: i64,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

/// Carries out `ps`.
pub(crate) fn ps(engine: &Engine, args: &PsArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, "-f, --filter", &FILTERS)?;
    let table = if args.size {
        format!("{TABLE}\t{{{{.Size}}}}")
    } else {
        TABLE.to_owned()
    };
    let asked = format_or_quiet(args.format.as_deref(), args.quiet, "{{.ID}}");
    let format = Format::parse_for_ps(asked, &table, TYPE, &HEADERS)?;
    let count = if args.latest { 1 } else { args.last };
    let count = usize::try_from(count).ok().filter(|n| *n > 0);
    let check = Check::new(engine, &filters)?;
    let all = args.all || count.is_some() || filters.has("status");
    if all {
        amphora_sys::arena::enable_more();
    }
    let mut listed = engine.ps(all)?;
    ui::warnings(listed.iter().filter_map(|c| c.damage.as_deref()));
    super::port::repair(engine);
    check.cut(&mut listed);
    if !filters.is_empty() {
        listed.retain(|c| check.holds(c));
    }
    listed.truncate(count.unwrap_or(usize::MAX));
    let sizes = args.size || format.uses("Size");
    let line = |c| Line {
        engine,
        c,
        whole: args.no_trunc,
        sizes,
    };
    let lines: Vec<Line<'_>> = listed.iter().map(line).collect();
    ui::raw(&format.render_fields(TYPE, &HEADERS, &lines)?);
    Ok(())
}

/// One container as it is printed.
struct Line<'a> {
    engine: &'a Engine,
    c: &'a Listed,
    whole: bool,
    sizes: bool,
}

impl Fields for Line<'_> {
    fn put(&self, field: &str, out: &mut String) {
        let (c, s, whole) = (self.c, &self.c.summary, self.whole);
        match field {
            "ID" => put_id(out, &s.id, whole),
            "Names" => out.push_str(s.name()),
            "Image" => out.push_str(image_text(s.image(), whole)),
            "Command" => put_command(out, s.args(), whole),
            "CreatedAt" => out.push_str(&ui::local_time(&s.created_text())),
            "RunningFor" => put_ago(out, s.created),
            "Ports" => out.push_str(&ports_text(c)),
            "State" => out.push_str(state_word(c)),
            "Status" => put_status(out, c),
            "Size" => out.push_str(&size_text(self.engine, c, self.sizes)),
            "Labels" => put_joined(out, s.labels(), |out, (k, v)| {
                for part in [k, "=", v] {
                    out.push_str(part);
                }
            }),
            "Mounts" => {
                let mounts = s.mounts().filter(|m| m.kind != "tmpfs");
                put_joined(out, mounts, |out, m| {
                    if whole {
                        out.push_str(m.source);
                    } else {
                        out.push_str(&ellipsis(m.source, 15));
                    }
                });
            }
            "LocalVolumes" => {
                let volumes = s.mounts().filter(|m| m.kind == "volume");
                let _ = write!(out, "{}", volumes.count());
            }
            "Networks" => out.push_str(s.network()),
            // Of the image's manifest, where Docker's list has one.
            "Platform" => out.push_str("<nil>"),
            _ => out.push_str(s.executor()),
        }
    }

    fn value(&self, field: &str) -> Value {
        if field == "Platform" {
            return Value::Nil(Nil::Pointer);
        }
        let mut text = String::new();
        self.put(field, &mut text);
        Value::Str(text)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.c.summary.label_map()
    }
}

fn put_joined<T>(
    out: &mut String,
    items: impl Iterator<Item = T>,
    mut put: impl FnMut(&mut String, T),
) {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        put(out, item);
    }
}

fn put_id(out: &mut String, id: &ContainerId, whole: bool) {
    let digits = id.digits();
    let digits = std::str::from_utf8(&digits).unwrap_or_default();
    out.push_str(if whole { digits } else { short(digits) });
}

/// Docker's length of an id.
fn short(digits: &str) -> &str {
    digits.get(..12).unwrap_or(digits)
}

fn image_text(image: &str, whole: bool) -> &str {
    match image.strip_prefix("sha256:") {
        Some(hex) if !whole => short(hex),
        _ => image,
    }
}

/// How long ago a time was, nanoseconds since 1970.
fn put_ago(out: &mut String, nanos: u64) {
    match ui::since(nanos) {
        Some(seconds) => {
            out.push_str(&ui::human_duration(seconds));
            out.push_str(" ago");
        }
        None => out.push_str("N/A"),
    }
}

/// Docker's cut: the last place is the ellipsis.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

fn put_command<'a>(out: &mut String, args: impl Iterator<Item = &'a str>, whole: bool) {
    let mut text = String::new();
    for (i, arg) in args.enumerate() {
        if i > 0 && arg.contains(' ') {
            for part in [" '", arg, "'"] {
                text.push_str(part);
            }
        } else {
            text.push_str(if i > 0 { " " } else { "" });
            text.push_str(arg);
        }
    }
    if !whole {
        text = ellipsis(&text, 20);
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn size_text(engine: &Engine, c: &Listed, wanted: bool) -> String {
    let size = wanted.then(|| engine.container_size(&c.summary.id).ok());
    match size.flatten() {
        Some(size) if size.root > 0 => format!(
            "{} (virtual {})",
            ui::human_size(size.writable),
            ui::human_size(size.root)
        ),
        other => ui::human_size(other.map_or(0, |s| s.writable)),
    }
}

/// Docker's word for the state.
fn state_word(c: &Listed) -> &'static str {
    c.view.as_deref().map_or(c.status.as_str(), view_word)
}

fn view_word(view: &ContainerView) -> &'static str {
    view.state_word()
}

/// Docker's word for the health of one that runs; `none` without a check.
fn health_word(c: &Listed) -> &'static str {
    let health = c.view.as_ref().and_then(|v| v.health.as_ref());
    health.map_or("none", |h| h.status.name())
}

/// Docker's STATUS column.
fn put_status(out: &mut String, c: &Listed) {
    let ended = |out: &mut String, word: &str| {
        let (code, at) = c.ended.map_or((0, 0), |e| (e.code, e.at));
        let _ = write!(out, "{word} ({code}) ");
        put_ago(out, at);
    };
    match c.status {
        Status::Created => out.push_str("Created"),
        Status::Running => {
            let since = c.view.as_deref().and_then(ContainerView::started_at);
            let up = since.as_deref().and_then(ui::age).unwrap_or(0);
            let note = match (state_word(c), health_word(c)) {
                ("paused", _) => " (Paused)".to_owned(),
                (_, "none") => String::new(),
                (_, "starting") => " (health: starting)".to_owned(),
                (_, health) => format!(" ({health})"),
            };
            let _ = write!(out, "Up {}{note}", ui::human_duration(up));
        }
        Status::Exited => ended(out, "Exited"),
        Status::Restarting => ended(out, "Restarting"),
        Status::Dead => out.push_str("Dead"),
    }
}

/// A container's line in `system df -v`.
pub(crate) fn df_line(engine: &Engine, c: &Listed, size: &str) -> String {
    let line = Line {
        engine,
        c,
        whole: false,
        sizes: false,
    };
    let mut out = String::new();
    for column in ["ID", "Image", "Command", "LocalVolumes"] {
        line.put(column, &mut out);
        out.push('\t');
    }
    out.push_str(size);
    for column in ["RunningFor", "Status", "Names"] {
        out.push('\t');
        line.put(column, &mut out);
    }
    out
}

/// One port as the PORTS column groups it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    private: u16,
    ip: String,
    public: u16,
    kind: String,
}

fn ports(c: &Listed) -> Vec<Port> {
    let Some(view) = c.view.as_ref().filter(|v| v.status == Status::Running) else {
        return Vec::new();
    };
    let mut ports: Vec<Port> = view
        .ports
        .iter()
        .map(|p| Port {
            private: p.container_port,
            ip: p.host_ip.to_string(),
            public: p.host_port,
            kind: p.protocol.to_string(),
        })
        .collect();
    for exposed in c.summary.exposed() {
        let (port, kind) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
        let Ok(private) = port.parse() else { continue };
        if !ports.iter().any(|p| p.private == private && p.kind == kind) {
            ports.push(Port {
                private,
                ip: String::new(),
                public: 0,
                kind: kind.to_owned(),
            });
        }
    }
    ports.sort();
    ports
}

fn ports_text(c: &Listed) -> String {
    grouped(&ports(c))
}

/// Docker's grouping: runs of ports that are the same on both sides become a range.
fn grouped(ports: &[Port]) -> String {
    let mut groups: Vec<(String, u16, u16)> = Vec::new();
    let (mut out, mut mapped) = (Vec::new(), Vec::new());
    for port in ports {
        if !port.ip.is_empty() && port.public != port.private {
            let host = join_host(&port.ip, &port.public.to_string());
            mapped.push(format!("{host}->{}/{}", port.private, port.kind));
            continue;
        }
        let key = format!("{}/{}", port.ip, port.kind);
        match groups.iter_mut().find(|g| g.0 == key) {
            None => groups.push((key, port.private, port.private)),
            Some(group) if u32::from(group.2) + 1 == u32::from(port.private) => {
                group.2 = port.private;
            }
            Some(group) => {
                out.push(group_text(group));
                *group = (key, port.private, port.private);
            }
        }
    }
    out.extend(groups.iter().map(group_text));
    out.extend(mapped);
    out.join(", ")
}

fn group_text((key, first, last): &(String, u16, u16)) -> String {
    let (ip, kind) = key.rsplit_once('/').unwrap_or(("", key));
    let range = if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    };
    if ip.is_empty() {
        format!("{range}/{kind}")
    } else {
        format!("{}->{range}/{kind}", join_host(ip, &range))
    }
}

fn join_host(ip: &str, port: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// The filters with what they need to be looked up once.
struct Check<'a> {
    engine: &'a Engine,
    filters: &'a Filters,
    /// Image ids of `ancestor`.
    images: Vec<String>,
    exited: Vec<i32>,
    is_task: Option<bool>,
    before: Option<ContainerId>,
    since: Option<ContainerId>,
}

impl<'a> Check<'a> {
    fn new(engine: &'a Engine, filters: &'a Filters) -> Outcome<Self> {
        for value in filters.values("status") {
            if !STATES.contains(&value) {
                return Err(invalid(&format!("status={value}")));
            }
        }
        for value in filters.values("health") {
            if !HEALTH.contains(&value) {
                return Err(Failure::Daemon(format!(
                    "unrecognized filter value for health: {value}"
                )));
            }
        }
        let mut exited = Vec::new();
        for value in filters.values("exited") {
            exited.push(value.parse().map_err(|_| {
                Failure::Daemon(format!(
                    "invalid filter 'exited={value}': strconv.Atoi: parsing \"{value}\": invalid syntax"
                ))
            })?);
        }
        for name in ["publish", "expose"] {
            for value in filters.values(name) {
                port_range(value).ok_or_else(|| invalid(&format!("{name}={value}")))?;
            }
        }
        let mut images = Vec::new();
        for value in filters.values("ancestor") {
            match engine.image(value) {
                Ok((record, _)) => images.push(record.image_id.to_string()),
                Err(amphora_engine::EngineError::NoSuchImage(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let created = |name: &str| -> Outcome<Option<ContainerId>> {
            let mut found = None;
            for value in filters.values(name) {
                let view = engine.view(&engine.find(value)?)?;
                found = Some(view.config.id);
            }
            Ok(found)
        };
        Ok(Self {
            engine,
            filters,
            images,
            exited,
            is_task: filters.flag("is-task")?,
            before: created("before")?,
            since: created("since")?,
        })
    }

    /// Carries out `before` and `since` over the list, newest first.
    fn cut(&self, listed: &mut Vec<Listed>) {
        let place = |id: &Option<ContainerId>, listed: &[Listed]| {
            id.as_ref()
                .and_then(|id| listed.iter().position(|c| c.summary.id == *id))
        };
        if let Some(at) = place(&self.since, listed) {
            listed.truncate(at);
        }
        if let Some(at) = place(&self.before, listed) {
            listed.drain(..=at);
        }
    }

    fn holds(&self, c: &Listed) -> bool {
        let (f, s) = (self.filters, &c.summary);
        f.any("id", |v| {
            let id = s.id.hex();
            matches(v, &id) || id.starts_with(v)
        }) && f.any("name", |v| {
            matches(v, s.name()) || matches(v, &format!("/{}", s.name()))
        }) && f.all("label", |v| label_holds(v, |key| s.label(key)))
            && f.any("status", |v| state_word(c) == v)
            && (!f.has("health") || self.healthy(c))
            && f.any("executor", |v| s.executor() == v)
            && self.is_task != Some(true)
            && (!f.has("exited") || c.ended.is_some_and(|e| self.exited.contains(&e.code)))
            && (!f.has("ancestor") || self.descends(c))
            && f.any("network", |v| {
                s.networks().any(|n| n == v) || has_network(c, v)
            })
            && f.any("volume", |v| {
                s.mounts().any(|m| m.source == v || m.destination == v)
            })
            && self.port("publish", c, |p| p.public != 0)
            && self.port("expose", c, |_| true)
    }

    fn healthy(&self, c: &Listed) -> bool {
        let word = self.engine.health_word(c);
        self.filters.any("health", |v| word == v)
    }

    /// An image by id, or by a name that the container was made with.
    fn descends(&self, c: &Listed) -> bool {
        let name = |text: &str| {
            text.parse::<Reference>()
                .map(|r| r.with_default_tag().to_string())
                .ok()
        };
        let image = c.summary.image();
        self.images.iter().any(|id| id == c.summary.image_id())
            || self
                .filters
                .values("ancestor")
                .any(|v| name(v).is_some() && name(v) == name(image))
    }

    fn port(&self, filter: &str, c: &Listed, f: impl Fn(&Port) -> bool) -> bool {
        if !self.filters.has(filter) {
            return true;
        }
        let ports = ports(c);
        self.filters.any(filter, |value| {
            port_range(value).is_some_and(|(first, last, kind)| {
                ports.iter().filter(|p| f(p) && p.kind == kind).any(|p| {
                    let port = if filter == "publish" {
                        p.public
                    } else {
                        p.private
                    };
                    (first..=last).contains(&port)
                })
            })
        })
    }
}

fn has_network(c: &Listed, id: &str) -> bool {
    let mut endpoints = c.view.iter().flat_map(|view| &view.endpoints);
    endpoints.any(|e| e.network_id == id)
}

fn port_range(text: &str) -> Option<(u16, u16, String)> {
    let (range, kind) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then(|| (first, last, kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_grouped_as_docker_does() {
        let port = |ip: &str, public, private| Port {
            private,
            ip: ip.to_owned(),
            public,
            kind: "tcp".to_owned(),
        };
        let text = |mut list: Vec<Port>| {
            list.sort();
            grouped(&list)
        };
        assert_eq!(text(vec![port("", 0, 80)]), "80/tcp");
        assert_eq!(text(vec![port("0.0.0.0", 80, 80)]), "0.0.0.0:80->80/tcp");
        assert_eq!(
            text(vec![port("0.0.0.0", 8080, 80), port("::", 8080, 80)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(
            text(
                (0..3)
                    .flat_map(|i| [port("0.0.0.0", 80 + i, 80 + i), port("::", 80 + i, 80 + i)])
                    .collect()
            ),
            "0.0.0.0:80-82->80-82/tcp, [::]:80-82->80-82/tcp"
        );
        assert_eq!(
            text(vec![port("", 0, 80), port("", 0, 81), port("", 0, 90)]),
            "80-81/tcp, 90/tcp"
        );
    }

    #[test]
    fn commands_are_quoted_and_cut() {
        let text = |list: &[&str], whole| {
            let mut out = String::new();
            put_command(&mut out, list.iter().copied(), whole);
            out
        };
        assert_eq!(text(&["sh"], false), "\"sh\"");
        assert_eq!(
            text(&["sh", "-c", "echo a; sleep 10"], true),
            "\"sh -c 'echo a; sleep 10'\""
        );
        assert_eq!(
            text(&["sh", "-c", "echo a; sleep 10"], false),
            "\"sh -c 'echo a; slee…\""
        );
        assert_eq!(text(&["a\"b"], false), "\"a\\\"b\"");
    }
}
