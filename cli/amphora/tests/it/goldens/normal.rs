//! What differs between two runs of the same program is replaced by a placeholder. Docker's output
//! and ours go through the same code.

use serde_json::Value;

use super::scenario::Mode;
use crate::sandbox::Output;

/// Values of these keys differ from run to run, or tell of the machine.
const VOLATILE: [&str; 18] = [
    "Pid",
    "SizeRw",
    "SizeRootFs",
    "MemTotal",
    "NCPU",
    "KernelVersion",
    "OperatingSystem",
    "OSVersion",
    "ID",
    "EndpointID",
    "SandboxID",
    "SandboxKey",
    "NetworkID",
    "Size",
    "Wasm",
    "execDuration",
    "time",
    "timeNano",
];

/// What a run of the program names that another run names otherwise.
#[derive(Debug)]
pub(crate) struct Names {
    /// Text and placeholder, in the order in which they are replaced.
    pub(crate) replaced: Vec<(String, String)>,
}

impl Names {
    /// The lines that a file records of a result.
    pub(crate) fn lines(&self, output: &Output, modes: &[Mode]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |mark: char, text: &str, modes: &[Mode]| {
            for line in self.text(text, modes).lines() {
                let line = format!("{mark} {line}");
                lines.push(line.trim_end().to_owned());
            }
        };
        add('|', &output.stdout, modes);
        let not_json: Vec<Mode> = modes
            .iter()
            .copied()
            .filter(|m| *m != Mode::Json && *m != Mode::Bytes)
            .collect();
        add('!', &output.stderr, &not_json);
        if output.code != 0 {
            lines.push(format!("? {}", output.code));
        }
        lines
    }

    fn text(&self, text: &str, modes: &[Mode]) -> String {
        let has = |mode| modes.contains(&mode);
        if has(Mode::Bytes) {
            return if text.is_empty() {
                String::new()
            } else {
                "<bytes>".into()
            };
        }
        let mut text = text.replace('\r', "");
        if has(Mode::Json) {
            text = flat(&text, modes);
        }
        for (from, to) in &self.replaced {
            text = text.replace(from, to);
        }
        let mut lines: Vec<String> = text.lines().map(|l| line(l, modes)).collect();
        if has(Mode::Keys) {
            lines.iter_mut().for_each(|l| *l = key(l));
        }
        if has(Mode::Sort) {
            lines.sort();
        }
        lines.join("\n")
    }
}

/// One line for each value of one or more documents.
fn flat(text: &str, modes: &[Mode]) -> String {
    let mut lines = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match document {
            Ok(mut value) => {
                sort_mounts(&mut value);
                flatten("", &value, modes, &mut lines);
            }
            Err(_) => return text.to_owned(),
        }
    }
    lines.join("\n")
}

/// Docker lists mounts in the order of a hash table.
fn sort_mounts(value: &mut Value) {
    if let Some(mounts) = value.pointer_mut("/0/Mounts").and_then(Value::as_array_mut) {
        mounts.sort_by_key(|mount| mount["Destination"].to_string());
    }
}

fn flatten(path: &str, value: &Value, modes: &[Mode], lines: &mut Vec<String>) {
    let last = path.rsplit('.').next().unwrap_or_default();
    if VOLATILE.contains(&last) {
        lines.push(format!("{path} = <{}>", kind(value)));
        return;
    }
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                flatten(&format!("{path}.{key}"), value, modes, lines);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (n, value) in list.iter().enumerate() {
                flatten(&format!("{path}[{n}]"), value, modes, lines);
            }
        }
        _ if modes.contains(&Mode::Keys) => {
            lines.push(format!("{path} = <{}>", kind(value)));
        }
        other => lines.push(format!("{path} = {other}")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// The part of a line before its value.
fn key(line: &str) -> String {
    let end = line.find([':', '=']).map_or(line.len(), |at| at + 1);
    line.get(..end).unwrap_or(line).trim_end().to_owned()
}

/// One line: placeholders, and columns three spaces apart.
fn line(line: &str, modes: &[Mode]) -> String {
    let mut out = String::new();
    let mut rest = line;
    let mut boundary = true;
    while let Some(c) = rest.chars().next() {
        if boundary && let Some((length, name)) = placeholder(rest, modes) {
            out.push_str(name);
            rest = rest.get(length..).unwrap_or_default();
            boundary = false;
            continue;
        }
        boundary = !c.is_ascii_alphanumeric();
        out.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    columns(&out)
}

/// Runs of spaces inside a line are as wide as the widest value of a column: not of interest.
fn columns(line: &str) -> String {
    let inner = line.trim_start();
    let mut out = line
        .get(..line.len() - inner.len())
        .unwrap_or_default()
        .to_owned();
    let mut spaces = 0;
    for c in inner.chars() {
        if c == ' ' {
            spaces += 1;
            continue;
        }
        out.push_str(["", " ", "   "].get(spaces.min(2)).unwrap_or(&""));
        spaces = 0;
        out.push(c);
    }
    out
}

/// The length of what stands at the beginning of a text and is replaced.
fn placeholder(text: &str, modes: &[Mode]) -> Option<(usize, &'static str)> {
    let hex = run(text, |c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    let word = run(text, |c| c.is_ascii_alphanumeric());
    if hex == word && hex == 64 {
        return Some((64, "<id>"));
    }
    if hex == word && hex == 12 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some((12, "<short-id>"));
    }
    // How long a container ran, in its event.
    if text.starts_with("execDuration=") {
        return Some((13 + digits(text.get(13..)?), "execDuration=<n>"));
    }
    time(text)
        .map(|n| (n, "<time>"))
        .or_else(|| address(text).map(|n| (n, "<ip>")))
        .or_else(|| local_address(text).map(|n| (n, "<ip6>")))
        .or_else(|| hardware(text).map(|n| (n, "<mac>")))
        .or_else(|| duration(text).map(|n| (n, "<duration>")))
        .or_else(|| ephemeral(text).map(|n| (n, "<port>")))
        .or_else(|| {
            size(text)
                .filter(|_| modes.contains(&Mode::Size))
                .map(|n| (n, "<size>"))
        })
        .or_else(|| {
            number(text)
                .filter(|_| modes.contains(&Mode::Number))
                .map(|n| (n, "<n>"))
        })
}

fn run(text: &str, f: impl Fn(char) -> bool) -> usize {
    text.find(|c| !f(c)).unwrap_or(text.len())
}

fn digits(text: &str) -> usize {
    run(text, |c| c.is_ascii_digit())
}

/// `0` stands for a digit, the rest for itself.
fn shape(text: &str, shape: &str) -> bool {
    let mut chars = text.chars();
    shape.chars().all(|want| {
        chars.next().is_some_and(|c| {
            if want == '0' {
                c.is_ascii_digit()
            } else {
                c == want
            }
        })
    })
}

/// RFC 3339, and as Go prints a time; not the time that means none, which is no run's.
fn time(text: &str) -> Option<usize> {
    if text.starts_with("0001-01-01") {
        return None;
    }
    let go = shape(text, "0000-00-00 00:00:00");
    if !go && !shape(text, "0000-00-00T00:00:00") {
        return None;
    }
    let mut end = 19;
    let rest = |end: usize| text.get(end..).unwrap_or_default();
    if rest(end).starts_with('.') {
        end += 1 + digits(rest(end + 1));
    }
    if go {
        for part in [" +0000", " UTC"] {
            end += if rest(end).starts_with(part) {
                part.len()
            } else {
                0
            };
        }
    } else if rest(end).starts_with('Z') {
        end += 1;
    } else if shape(rest(end), "+00:00") || shape(rest(end), "-00:00") {
        end += 6;
    }
    Some(end)
}

/// An address of the default network, of either engine.
fn address(text: &str) -> Option<usize> {
    let end = run(text, |c| c.is_ascii_digit() || c == '.');
    let parts: Vec<&str> = text.get(..end)?.split('.').collect();
    let private = matches!(parts.as_slice(), ["172", b, _, _] if *b != "0" && !b.is_empty());
    (private || matches!(parts.as_slice(), ["10", _, _, _])).then_some(end)
}

/// A unique local address of version 6.
fn local_address(text: &str) -> Option<usize> {
    let end = run(text, |c| c.is_ascii_hexdigit() || c == ':');
    let address: std::net::Ipv6Addr = text.get(..end)?.parse().ok()?;
    address.is_unique_local().then_some(end)
}

fn hardware(text: &str) -> Option<usize> {
    let pair = |p: &str| p.len() == 2 && p.chars().all(|c| c.is_ascii_hexdigit());
    let word = text.get(..17)?;
    (word.split(':').count() == 6 && word.split(':').all(pair)).then_some(17)
}

/// `5 seconds`, `Less than a second`, `About a minute`, as Docker says how long ago.
fn duration(text: &str) -> Option<usize> {
    let amount = ["Less than a ", "About a ", "About an "]
        .iter()
        .find(|p| text.starts_with(**p));
    let at = match amount {
        Some(amount) => amount.len(),
        None => match digits(text) {
            0 => return None,
            n => n + 1,
        },
    };
    let unit = text.get(at..)?;
    let known = ["seconds", "second", "minutes", "minute", "hours", "hour"];
    let unit = known.iter().find(|u| unit.starts_with(**u))?;
    text.get(..at)?.ends_with(' ').then_some(at + unit.len())
}

/// A port that the kernel or the engine chose.
fn ephemeral(text: &str) -> Option<usize> {
    let end = digits(text);
    let port: u32 = text.get(..end).filter(|_| end == 5)?.parse().ok()?;
    (32768..=60999).contains(&port).then_some(5)
}

fn size(text: &str) -> Option<usize> {
    let end = run(text, |c| c.is_ascii_digit() || c == '.');
    let unit = run(text.get(end..)?, |c| c.is_ascii_alphabetic());
    let known = ["B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB"];
    (end > 0 && known.contains(&text.get(end..end + unit)?)).then_some(end + unit)
}

fn number(text: &str) -> Option<usize> {
    let end = run(text, |c| c.is_ascii_digit() || c == '.');
    (end > 0 && text.starts_with(|c: char| c.is_ascii_digit())).then_some(end)
}
