//! How values are written: Go's `%v`, and JSON as Go's encoder writes it.

use std::fmt::Write;

use crate::value::{Nil, Value};

/// Writes a value as the result of an action.
pub(crate) fn action(value: &Value) -> String {
    match value {
        Value::Nil(Nil::Interface) => "<no value>".to_owned(),
        other => plain(other),
    }
}

/// Writes a value as `%v` does.
pub(crate) fn plain(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Nil(Nil::Slice) => out.push_str("[]"),
        Value::Nil(Nil::Map) => out.push_str("map[]"),
        Value::Nil(_) => out.push_str("<nil>"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(f) => out.push_str(&float(*f)),
        Value::Str(s) => out.push_str(s),
        Value::List(list) => {
            out.push('[');
            separated(list.iter(), out, write);
            out.push(']');
        }
        Value::Map(map) => {
            out.push_str("map[");
            separated(map.entries.iter(), out, |(k, v), out| {
                out.push_str(k);
                out.push(':');
                write(v, out);
            });
            out.push(']');
        }
        Value::Object(object) => {
            out.push('{');
            separated(object.fields.iter(), out, |(_, v), out| write(v, out));
            out.push('}');
        }
    }
}

fn separated<T>(
    items: impl Iterator<Item = T>,
    out: &mut String,
    mut f: impl FnMut(T, &mut String),
) {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(' ');
        }
        f(item, out);
    }
}

/// Go's shortest form: an exponent below 1e-4 and from 1e21 on.
pub(crate) fn float(f: f64) -> String {
    if f.is_nan() {
        return "NaN".to_owned();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if f != 0.0 && (f.abs() < 1e-4 || f.abs() >= 1e21) {
        return exponent(&format!("{f:e}"));
    }
    format!("{f}")
}

/// Gives an exponent a sign and two digits.
pub(crate) fn exponent(text: &str) -> String {
    let (mantissa, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, digits) = match power.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', power),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Writes a value as JSON. Objects with a type of their own are sorted and have `<`, `>` and `&`
/// escaped, as Docker's rows are.
pub(crate) fn json(value: &Value) -> String {
    let mut out = String::new();
    write_json(value, &mut out);
    out
}

fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Nil(_) => out.push_str("null"),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => write(value, out),
        Value::Str(s) => out.push_str(&text(s)),
        Value::List(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                comma(i, out);
                write_json(item, out);
            }
            out.push(']');
        }
        Value::Map(map) => members(map.entries.iter(), out),
        Value::Object(object) if matches!(object.missing, crate::Missing::Type(_)) => {
            let mut fields: Vec<(&String, &Value)> =
                object.fields.iter().map(|(k, v)| (k, v)).collect();
            fields.sort_by_key(|(k, _)| *k);
            let mut row = String::new();
            members(fields.into_iter(), &mut row);
            for c in row.chars() {
                match c {
                    '<' | '>' | '&' => {
                        let _ = write!(out, "\\u{:04x}", c as u32);
                    }
                    c => out.push(c),
                }
            }
        }
        Value::Object(object) => members(object.fields.iter().map(|(k, v)| (k, v)), out),
    }
}

fn members<'a>(entries: impl Iterator<Item = (&'a String, &'a Value)>, out: &mut String) {
    out.push('{');
    for (i, (key, value)) in entries.enumerate() {
        comma(i, out);
        out.push_str(&text(key));
        out.push(':');
        write_json(value, out);
    }
    out.push('}');
}

fn comma(i: usize, out: &mut String) {
    if i > 0 {
        out.push(',');
    }
}

fn text(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

/// Go's `strconv.Quote`.
pub(crate) fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
