//! The functions: Go's own and Docker's.

use std::cmp::Ordering;

use crate::value::{Missing, Nil, Value};
use crate::{Mode, print, printf};

/// Why a call did not come about.
pub(crate) enum Call {
    /// It was given the wrong arguments; the text is whole.
    Arguments(String),
    /// It ran and failed.
    Failed(String),
}

type Called = Result<Value, Call>;

/// Name, fewest arguments, most.
const FUNCTIONS: [(&str, usize, usize); 25] = [
    ("and", 1, usize::MAX),
    ("or", 1, usize::MAX),
    ("not", 1, 1),
    ("eq", 1, usize::MAX),
    ("ne", 2, 2),
    ("lt", 2, 2),
    ("le", 2, 2),
    ("gt", 2, 2),
    ("ge", 2, 2),
    ("len", 1, 1),
    ("index", 1, usize::MAX),
    ("slice", 1, usize::MAX),
    ("print", 0, usize::MAX),
    ("println", 0, usize::MAX),
    ("printf", 1, usize::MAX),
    ("html", 0, usize::MAX),
    ("urlquery", 0, usize::MAX),
    ("json", 1, 1),
    ("split", 2, 2),
    ("join", 2, 2),
    ("title", 1, 1),
    ("lower", 1, 1),
    ("upper", 1, 1),
    ("pad", 3, 3),
    ("truncate", 2, 2),
];

/// Whether there is a function of this name.
pub(crate) fn exists(name: &str) -> bool {
    FUNCTIONS.iter().any(|(n, ..)| *n == name)
}

/// Calls a function.
pub(crate) fn call(name: &str, args: Vec<Value>, mode: Mode) -> Called {
    let (least, most) = FUNCTIONS
        .iter()
        .find(|(n, ..)| *n == name)
        .map_or((0, usize::MAX), |(_, least, most)| (*least, *most));
    let got = args.len();
    if got < least && most == usize::MAX {
        return Err(Call::Arguments(format!(
            "wrong number of args for {name}: want at least {least} got {got}"
        )));
    }
    if got < least || got > most {
        return Err(Call::Arguments(format!(
            "wrong number of args for {name}: want {least} got {got}"
        )));
    }
    if mode == Mode::Header
        && matches!(
            name,
            "json" | "title" | "lower" | "upper" | "truncate" | "join" | "split" | "pad"
        )
    {
        return Ok(args
            .into_iter()
            .next()
            .unwrap_or(Value::Nil(Nil::Interface)));
    }
    match name {
        "json" | "split" | "join" | "title" | "lower" | "upper" | "pad" | "truncate" => {
            docker_s(name, &args)
        }
        _ => go_s(name, &args),
    }
}

fn go_s(name: &str, args: &[Value]) -> Called {
    match name {
        "not" => Ok(Value::Bool(!first(args).truth())),
        "eq" => eq(args),
        "ne" => eq(args).map(|v| Value::Bool(!v.truth())),
        "lt" | "le" | "gt" | "ge" => order(name, args),
        "len" => len(first(args)),
        "index" => index(args),
        "slice" => slice(args),
        "print" | "println" => Ok(Value::Str(sprint(args, name == "println"))),
        "printf" => Ok(Value::Str(printf::printf(
            &text(args, 0, "printf")?,
            args.get(1..).unwrap_or_default(),
        ))),
        "html" => Ok(Value::Str(html(&sprint(args, false)))),
        "urlquery" => Ok(Value::Str(urlquery(&sprint(args, false)))),
        other => Err(Call::Failed(format!("{other} is not there"))),
    }
}

fn docker_s(name: &str, args: &[Value]) -> Called {
    match name {
        "json" => Ok(Value::Str(print::json(first(args)))),
        "split" => {
            let (whole, separator) = (text(args, 0, name)?, text(args, 1, name)?);
            if separator.is_empty() {
                return Ok(Value::texts(whole.chars().map(String::from)));
            }
            Ok(Value::texts(whole.split(separator.as_str())))
        }
        "join" => join(args),
        "title" => Ok(Value::Str(title(&text(args, 0, name)?))),
        "lower" => Ok(Value::Str(text(args, 0, name)?.to_lowercase())),
        "upper" => Ok(Value::Str(text(args, 0, name)?.to_uppercase())),
        "pad" => {
            let (whole, before, after) = (
                text(args, 0, name)?,
                number(args, 1, name)?,
                number(args, 2, name)?,
            );
            if whole.is_empty() {
                return Ok(Value::Str(whole));
            }
            Ok(Value::Str(format!(
                "{}{whole}{}",
                " ".repeat(before),
                " ".repeat(after)
            )))
        }
        "truncate" => {
            let (whole, length) = (text(args, 0, name)?, number(args, 1, name)?);
            Ok(Value::Str(whole.chars().take(length).collect()))
        }
        other => Err(Call::Failed(format!("{other} is not there"))),
    }
}

fn first(args: &[Value]) -> &Value {
    args.first().unwrap_or(&Value::Nil(Nil::Interface))
}

/// Most spaces or characters that `pad` and `truncate` take.
const MAX_WIDTH: usize = 1 << 16;

fn wrong_type(value: &Value, want: &str) -> Call {
    Call::Arguments(match value {
        Value::Nil(_) => format!("invalid value; expected {want}"),
        other => format!(
            "wrong type for value; expected {want}; got {}",
            other.type_name()
        ),
    })
}

fn text(args: &[Value], at: usize, _name: &str) -> Result<String, Call> {
    match args.get(at) {
        Some(Value::Str(s)) => Ok(s.clone()),
        other => Err(wrong_type(
            other.unwrap_or(&Value::Nil(Nil::Interface)),
            "string",
        )),
    }
}

fn number(args: &[Value], at: usize, _name: &str) -> Result<usize, Call> {
    match args.get(at) {
        Some(Value::Int(n)) => Ok(usize::try_from(*n).unwrap_or(0).min(MAX_WIDTH)),
        other => Err(wrong_type(
            other.unwrap_or(&Value::Nil(Nil::Interface)),
            "int",
        )),
    }
}

fn join(args: &[Value]) -> Called {
    let separator = text(args, 1, "join")?;
    match first(args) {
        Value::List(list) => {
            let parts: Vec<String> = list.iter().map(print::plain).collect();
            Ok(Value::Str(parts.join(&separator)))
        }
        Value::Nil(Nil::Slice | Nil::Interface) => Ok(Value::Str(String::new())),
        other => Err(Call::Failed(format!(
            "expected slice, got {}",
            other.type_name()
        ))),
    }
}

/// Go's `strings.Title`: the first letter of each word.
fn title(text: &str) -> String {
    let mut before = ' ';
    text.chars()
        .map(|c| {
            let starts = !(before.is_alphanumeric() || before == '_' || before == '\'');
            before = c;
            if starts {
                c.to_uppercase().next().unwrap_or(c)
            } else {
                c
            }
        })
        .collect()
}

/// `fmt.Sprint`: a space between two operands when neither is text.
fn sprint(args: &[Value], line: bool) -> String {
    let mut out = String::new();
    for (i, arg) in args.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| args.get(i));
        let texts = matches!(arg, Value::Str(_)) || matches!(before, Some(Value::Str(_)));
        if i > 0 && (line || !texts) {
            out.push(' ');
        }
        out.push_str(&print::plain(arg));
    }
    if line {
        out.push('\n');
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn urlquery(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn eq(args: &[Value]) -> Called {
    let Some((left, rest)) = args.split_first() else {
        return Ok(Value::Bool(false));
    };
    if rest.is_empty() {
        return Err(Call::Failed("missing argument for comparison".to_owned()));
    }
    for right in rest {
        let same = match (left, right) {
            (Value::Nil(_), Value::Nil(_)) => true,
            (Value::Nil(_), _) | (_, Value::Nil(_)) => false,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::List(_) | Value::Map(_), _) | (_, Value::List(_) | Value::Map(_)) => {
                return Err(Call::Failed(
                    "non-comparable type for comparison".to_owned(),
                ));
            }
            (Value::Object(a), Value::Object(b)) => a == b,
            _ => {
                return Err(Call::Failed("incompatible types for comparison".to_owned()));
            }
        };
        if same {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn order(name: &str, args: &[Value]) -> Called {
    let ordering = match args {
        [Value::Int(a), Value::Int(b)] => Some(a.cmp(b)),
        [Value::Float(a), Value::Float(b)] => a.partial_cmp(b),
        [Value::Str(a), Value::Str(b)] => Some(a.cmp(b)),
        [
            Value::Int(_) | Value::Float(_) | Value::Str(_),
            Value::Int(_) | Value::Float(_) | Value::Str(_),
        ] => {
            return Err(Call::Failed("incompatible types for comparison".to_owned()));
        }
        _ => return Err(Call::Failed("invalid type for comparison".to_owned())),
    };
    Ok(Value::Bool(match (name, ordering) {
        (_, None) => false,
        ("lt", Some(o)) => o == Ordering::Less,
        ("le", Some(o)) => o != Ordering::Greater,
        ("gt", Some(o)) => o == Ordering::Greater,
        (_, Some(o)) => o != Ordering::Less,
    }))
}

fn len(value: &Value) -> Called {
    let length = match value {
        Value::Str(s) => s.len(),
        Value::List(l) => l.len(),
        Value::Map(m) => m.entries.len(),
        Value::Object(o) if o.missing == Missing::Key => o.fields.len(),
        Value::Nil(Nil::Slice | Nil::Map) => 0,
        Value::Nil(Nil::Interface) => return Err(Call::Failed("len of untyped nil".to_owned())),
        Value::Nil(Nil::Pointer) => return Err(Call::Failed("len of nil pointer".to_owned())),
        other => {
            return Err(Call::Failed(format!("len of type {}", other.type_name())));
        }
    };
    Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
}

fn index(args: &[Value]) -> Called {
    let (base, keys) = args
        .split_first()
        .unwrap_or((&Value::Nil(Nil::Interface), &[]));
    let mut value = base.clone();
    if matches!(value, Value::Nil(Nil::Interface)) && args.len() <= 1 {
        return Err(Call::Failed("index of untyped nil".to_owned()));
    }
    for key in keys {
        value = one_index(value, key)?;
    }
    Ok(value)
}

fn one_index(value: Value, key: &Value) -> Called {
    let failed = |text: String| Err(Call::Failed(text));
    match (value, key) {
        (Value::Map(mut map), Value::Str(key)) => {
            let nothing = if map.of_text {
                Value::Str(String::new())
            } else {
                Value::Nil(Nil::Interface)
            };
            Ok(map.entries.remove(key).unwrap_or(nothing))
        }
        (Value::Object(mut o), Value::Str(key)) if o.missing == Missing::Key => {
            let at = o.fields.iter().position(|(k, _)| k == key);
            Ok(at.map_or(Value::Nil(Nil::Interface), |at| o.fields.swap_remove(at).1))
        }
        (Value::Nil(Nil::Map), Value::Str(_)) => Ok(Value::Str(String::new())),
        (Value::List(mut list), Value::Int(n)) => match usize::try_from(*n) {
            Ok(at) if at < list.len() => Ok(list.swap_remove(at)),
            _ => failed(format!("index out of range: {n}")),
        },
        (Value::Nil(Nil::Slice), Value::Int(n)) => failed(format!("index out of range: {n}")),
        (Value::Str(s), Value::Int(n)) => {
            let byte = usize::try_from(*n)
                .ok()
                .and_then(|at| s.as_bytes().get(at).copied());
            byte.map_or_else(
                || failed(format!("index out of range: {n}")),
                |b| Ok(Value::Int(i64::from(b))),
            )
        }
        (Value::List(_) | Value::Nil(Nil::Slice) | Value::Str(_), Value::Nil(_)) => {
            failed("cannot index slice/array with nil".to_owned())
        }
        (Value::List(_) | Value::Nil(Nil::Slice) | Value::Str(_), other) => failed(format!(
            "cannot index slice/array with type {}",
            other.type_name()
        )),
        (Value::Map(_) | Value::Nil(Nil::Map), other) => failed(format!(
            "value has type {}; should be string",
            other.type_name()
        )),
        (Value::Nil(Nil::Interface), _) => failed("index of untyped nil".to_owned()),
        (Value::Nil(Nil::Pointer), _) => failed("index of nil pointer".to_owned()),
        (other, _) => failed(format!("can't index item of type {}", other.type_name())),
    }
}

fn slice(args: &[Value]) -> Called {
    let failed = |text: String| Err(Call::Failed(text));
    let (base, bounds) = args
        .split_first()
        .unwrap_or((&Value::Nil(Nil::Interface), &[]));
    if bounds.len() > 3 {
        return failed(format!("too many slice indexes: {}", bounds.len()));
    }
    let length = match base {
        Value::Str(s) => s.len(),
        Value::List(l) => l.len(),
        Value::Nil(Nil::Slice) => 0,
        Value::Nil(_) => return failed("slice of untyped nil".to_owned()),
        other => return failed(format!("can't slice item of type {}", other.type_name())),
    };
    let mut at = [0, length, length];
    for (slot, bound) in at.iter_mut().zip(bounds) {
        *slot = match bound {
            Value::Int(n) => match usize::try_from(*n) {
                Ok(n) if n <= length => n,
                _ => return failed(format!("index out of range: {n}")),
            },
            other => {
                return failed(format!(
                    "cannot index slice/array with type {}",
                    other.type_name()
                ));
            }
        };
    }
    let [from, to, _] = at;
    if from > to {
        return failed(format!("invalid slice index: {from} > {to}"));
    }
    Ok(match base {
        Value::Str(s) => {
            let bytes = s.as_bytes().get(from..to).unwrap_or_default();
            Value::Str(String::from_utf8_lossy(bytes).into_owned())
        }
        Value::List(l) => Value::List(l.get(from..to).unwrap_or_default().to_vec()),
        other => other.clone(),
    })
}
