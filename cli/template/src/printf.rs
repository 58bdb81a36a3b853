//! Go's `fmt.Sprintf` for the verbs that templates use.

use crate::print;
use crate::value::Value;

/// Widest field, in characters.
const MAX_WIDTH: usize = 1 << 16;

#[derive(Default)]
struct Flags {
    left: bool,
    zero: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    width: usize,
    precision: Option<usize>,
}

pub(crate) fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let flags = flags(&mut chars, args, &mut next);
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.get(next) else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        next += 1;
        out.push_str(&one(verb, arg, &flags));
    }
    if next < args.len() {
        let extra: Vec<String> = args
            .get(next..)
            .unwrap_or_default()
            .iter()
            .map(|a| format!("{}={}", a.type_name(), print::plain(a)))
            .collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

fn flags(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    args: &[Value],
    next: &mut usize,
) -> Flags {
    let mut flags = Flags::default();
    while let Some(c) = chars.peek() {
        match c {
            '-' => flags.left = true,
            '0' => flags.zero = true,
            '+' => flags.plus = true,
            '#' => flags.sharp = true,
            ' ' => flags.space = true,
            _ => break,
        }
        chars.next();
    }
    let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        if chars.next_if_eq(&'*').is_some() {
            let value = args.get(*next);
            *next += 1;
            return match value {
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(0).min(MAX_WIDTH),
                _ => 0,
            };
        }
        let mut number = 0;
        while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
            number = (number * 10 + digit as usize).min(MAX_WIDTH);
            chars.next();
        }
        number
    };
    flags.width = number(chars);
    if chars.next_if_eq(&'.').is_some() {
        flags.precision = Some(number(chars));
    }
    flags
}

fn one(verb: char, arg: &Value, flags: &Flags) -> String {
    let bad = || format!("%!{verb}({}={})", arg.type_name(), print::plain(arg));
    let cut = |text: String| match flags.precision {
        Some(n) => text.chars().take(n).collect(),
        None => text,
    };
    let text = match (verb, arg) {
        ('v', Value::Str(s)) if flags.sharp => print::quote(s),
        ('v' | 's', Value::Str(s)) => cut(s.clone()),
        ('v' | 'd', Value::Int(n)) => sign(*n, flags),
        ('v', Value::Float(_) | Value::Bool(_) | Value::Nil(_)) => print::plain(arg),
        ('v' | 's' | 'd', Value::List(list)) => {
            let parts: Vec<String> = list.iter().map(|v| one(verb, v, &bare(flags))).collect();
            format!("[{}]", parts.join(" "))
        }
        ('v' | 's', Value::Map(_) | Value::Object(_)) => print::plain(arg),
        ('q', Value::Str(s)) => print::quote(&cut(s.clone())),
        ('q', Value::List(list)) => {
            let parts: Vec<String> = list.iter().map(|v| one(verb, v, &bare(flags))).collect();
            format!("[{}]", parts.join(" "))
        }
        ('t', Value::Bool(b)) => b.to_string(),
        ('x', Value::Int(n)) => format!("{}{n:x}", if flags.sharp { "0x" } else { "" }),
        ('X', Value::Int(n)) => format!("{}{n:X}", if flags.sharp { "0X" } else { "" }),
        ('o', Value::Int(n)) => format!("{n:o}"),
        ('b', Value::Int(n)) => format!("{n:b}"),
        ('c', Value::Int(n)) => u32::try_from(*n)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or('\u{fffd}')
            .to_string(),
        ('x', Value::Str(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::Str(s)) => s.bytes().map(|b| format!("{b:02X}")).collect(),
        ('f' | 'F', Value::Float(f)) => {
            let precision = flags.precision.unwrap_or(6);
            let plus = if flags.plus && *f >= 0.0 { "+" } else { "" };
            format!("{plus}{f:.precision$}")
        }
        ('e', Value::Float(f)) => {
            let precision = flags.precision.unwrap_or(6);
            print::exponent(&format!("{f:.precision$e}"))
        }
        ('g', Value::Float(f)) => print::float(*f),
        ('T', _) => arg.type_name().to_owned(),
        _ => bad(),
    };
    pad(text, flags, matches!(arg, Value::Int(_) | Value::Float(_)))
}

fn bare(flags: &Flags) -> Flags {
    Flags {
        precision: flags.precision,
        ..Flags::default()
    }
}

fn sign(n: i64, flags: &Flags) -> String {
    match (flags.plus, flags.space) {
        (true, _) if n >= 0 => format!("+{n}"),
        (_, true) if n >= 0 => format!(" {n}"),
        _ => n.to_string(),
    }
}

fn pad(text: String, flags: &Flags, number: bool) -> String {
    let missing = flags.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
    if flags.left {
        return format!("{text}{}", " ".repeat(missing));
    }
    if flags.zero {
        let signed = number && text.starts_with(['-', '+']);
        let (sign, digits) = text.split_at(usize::from(signed));
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    format!("{}{text}", " ".repeat(missing))
}
