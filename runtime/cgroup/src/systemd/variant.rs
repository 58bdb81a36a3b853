//! Values of annotations, as GVariant writes them: `true`, `'text'`, `uint64 5`, `['a', 'b']`.

use super::wire::Value;

/// Longest list.
const ELEMENTS_MAX: usize = 1000;

/// Reads a text; `None` when it is none.
pub(crate) fn parse(text: &str) -> Option<Value> {
    let mut rest = text.trim();
    let value = value(&mut rest)?;
    rest.trim().is_empty().then_some(value)
}

fn value(rest: &mut &str) -> Option<Value> {
    *rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('[') {
        *rest = inner;
        return list(rest);
    }
    if rest.starts_with(['\'', '"']) {
        return quoted(rest).map(Value::Text);
    }
    let first = word(rest)?;
    match first {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if first.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        // Without a type a whole number is an int32.
        return match first.contains(['.', 'e', 'E']) && !first.starts_with("0x") {
            true => first.parse().ok().map(Value::Double),
            false => number("int32", first),
        };
    }
    *rest = rest.trim_start();
    match first {
        "string" => quoted(rest).map(Value::Text),
        "objectpath" => quoted(rest).map(Value::Path),
        "signature" => quoted(rest).map(Value::Signature),
        "boolean" => match word(rest)? {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        },
        kind => number(kind, word(rest)?),
    }
}

fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let end = rest.find(|c: char| c.is_whitespace() || ",]".contains(c));
    let (word, left) = rest.split_at(end.unwrap_or(rest.len()));
    *rest = left;
    (!word.is_empty()).then_some(word)
}

fn number(kind: &str, text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if kind == "double" {
        return text.parse().ok().map(Value::Double);
    }
    let size = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    let size = size.ok().filter(|size| *size >= 0)?;
    let size = if negative { -size } else { size };
    Some(match kind {
        "byte" => Value::Byte(size.try_into().ok()?),
        "int16" => Value::I16(size.try_into().ok()?),
        "uint16" => Value::U16(size.try_into().ok()?),
        "int32" => Value::I32(size.try_into().ok()?),
        "uint32" => Value::U32(size.try_into().ok()?),
        "int64" => Value::I64(size.try_into().ok()?),
        "uint64" => Value::U64(size.try_into().ok()?),
        _ => return None,
    })
}

fn quoted(rest: &mut &str) -> Option<String> {
    let mut letters = rest.char_indices();
    let (_, quote) = letters.next().filter(|(_, c)| "'\"".contains(*c))?;
    let mut text = String::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            _ if letter == quote => {
                *rest = rest.get(at + quote.len_utf8()..)?;
                return Some(text);
            }
            '\\' => match letters.next()?.1 {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                plain @ ('\\' | '\'' | '"') => text.push(plain),
                _ => return None,
            },
            _ => text.push(letter),
        }
    }
    None
}

fn list(rest: &mut &str) -> Option<Value> {
    let mut found = Vec::new();
    loop {
        if rest.trim_start().starts_with('[') {
            return None;
        }
        found.push(value(rest)?);
        *rest = rest.trim_start();
        if let Some(left) = rest.strip_prefix(']') {
            *rest = left;
            return Value::array(found);
        }
        *rest = rest.strip_prefix(',')?;
        if found.len() >= ELEMENTS_MAX {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_annotations_hold_is_understood() {
        let texts = |list: &[&str]| {
            Value::array(list.iter().map(|t| Value::text(*t)).collect()).expect("alike")
        };
        let cases = [
            ("true", Value::Bool(true)),
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            ("\"a'b\"", Value::text("a'b")),
            (r"'a\'\\b'", Value::text(r"a'\b")),
            ("-5", Value::I32(-5)),
            ("1.5", Value::Double(1.5)),
            ("uint64 120000000", Value::U64(120_000_000)),
            ("uint32 0x1f", Value::U32(31)),
            ("byte 255", Value::Byte(255)),
            (
                "['a.service','b.service']",
                texts(&["a.service", "b.service"]),
            ),
            ("[ 'a' , 'b' ]", texts(&["a", "b"])),
            ("boolean false", Value::Bool(false)),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        let bad = [
            "",
            "yes",
            "'a",
            "5 6",
            "byte 256",
            "uint32 -1",
            "[1,'a']",
            "[]",
            "[1",
            "int32",
            "[[[[",
            "99999999999",
            "nosuch 5",
            "'a' 'b'",
        ];
        for text in bad {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
