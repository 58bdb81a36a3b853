//! D-Bus messages: values, and as much of reading them as a caller of systemd needs.

use std::fmt::Write;

/// A value and its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    Path(String),
    Signature(String),
    /// Signature of its elements, and they.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// An array, typed by its first element.
    pub(crate) fn array(elements: Vec<Self>) -> Option<Self> {
        let signature = elements.first()?.signature();
        let same = elements.iter().all(|value| value.signature() == signature);
        same.then_some(Self::Array(signature, elements))
    }

    pub(crate) fn signature(&self) -> String {
        let letter = match self {
            Self::Byte(_) => "y",
            Self::Bool(_) => "b",
            Self::I16(_) => "n",
            Self::U16(_) => "q",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Double(_) => "d",
            Self::Text(_) => "s",
            Self::Path(_) => "o",
            Self::Signature(_) => "g",
            Self::Variant(_) => "v",
            Self::Array(element, _) => return format!("a{element}"),
            Self::Struct(fields) => {
                let fields: String = fields.iter().map(Self::signature).collect();
                return format!("({fields})");
            }
        };
        letter.to_owned()
    }

    fn put(&self, out: &mut Vec<u8>) {
        pad(out, alignment(&self.signature()));
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => out.extend(u32::from(*value).to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::Double(value) => out.extend(value.to_le_bytes()),
            Self::Text(text) | Self::Path(text) => {
                out.extend(length(text.len()).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => put_signature(out, text),
            Self::Variant(value) => {
                put_signature(out, &value.signature());
                value.put(out);
            }
            Self::Struct(fields) => fields.iter().for_each(|field| field.put(out)),
            Self::Array(element, elements) => {
                let at = out.len();
                out.extend([0; 4]);
                // What leads to the first element does not count.
                pad(out, alignment(element));
                let start = out.len();
                elements.iter().for_each(|value| value.put(out));
                let bytes = length(out.len() - start).to_le_bytes();
                if let Some(slot) = out.get_mut(at..at + 4) {
                    slot.copy_from_slice(&bytes);
                }
            }
        }
    }
}

fn put_signature(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.as_bytes());
    out.push(0);
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

fn alignment(signature: &str) -> usize {
    match signature.bytes().next() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

pub(crate) const CALL: u8 = 1;
pub(crate) const REPLY: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const SIGNAL: u8 = 4;

/// The only signal whose body is read.
pub(crate) const HEARD: &str = "JobRemoved";

/// Length of the fixed part of a head.
pub(crate) const HEAD: usize = 16;
/// Longer messages are not for us.
const MESSAGE_MAX: usize = 4 << 20;
const ARRAY_MAX: usize = 10_000;

/// A message.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) serial: u32,
    pub(crate) path: String,
    pub(crate) interface: String,
    pub(crate) member: String,
    pub(crate) error: String,
    pub(crate) reply_to: u32,
    pub(crate) destination: String,
    pub(crate) body: Vec<Value>,
}

impl Message {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut signature = String::new();
        for value in &self.body {
            let _ = write!(signature, "{}", value.signature());
            value.put(&mut body);
        }
        let mut fields = Vec::new();
        let mut field = |code: u8, value: Value| {
            let variant = Value::Variant(Box::new(value));
            fields.push(Value::Struct(vec![Value::Byte(code), variant]));
        };
        if !self.path.is_empty() {
            field(1, Value::Path(self.path.clone()));
        }
        for (code, text) in [
            (2, &self.interface),
            (3, &self.member),
            (4, &self.error),
            (6, &self.destination),
        ] {
            if !text.is_empty() {
                field(code, Value::text(text));
            }
        }
        if self.reply_to != 0 {
            field(5, Value::U32(self.reply_to));
        }
        if !signature.is_empty() {
            field(8, Value::Signature(signature));
        }
        let mut out = vec![b'l', self.kind, 0, 1];
        out.extend(length(body.len()).to_le_bytes());
        out.extend(self.serial.to_le_bytes());
        Value::Array("(yv)".to_owned(), fields).put(&mut out);
        pad(&mut out, 8);
        out.extend(body);
        out
    }

    /// How long the message is whose head this is; `None` when that makes no sense.
    pub(crate) fn length(head: &[u8]) -> Option<usize> {
        let mut reader = Reader { bytes: head, at: 0 };
        let (order, _) = (reader.byte()?, reader.take(3)?);
        let body = usize::try_from(reader.u32()?).ok()?;
        let _serial = reader.u32()?;
        let fields = usize::try_from(reader.u32()?).ok()?;
        let all = (HEAD.checked_add(fields)?)
            .checked_next_multiple_of(8)?
            .checked_add(body)?;
        (order == b'l' && all <= MESSAGE_MAX).then_some(all)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 1 };
        let mut found = Self {
            kind: reader.byte()?,
            ..Self::default()
        };
        reader.take(2)?;
        let body = reader.u32()?;
        found.serial = reader.u32()?;
        let mut signature = String::new();
        let Value::Array(_, fields) = reader.value("a(yv)")?.0 else {
            return None;
        };
        for field in fields {
            let Value::Struct(pair) = field else {
                return None;
            };
            let [Value::Byte(code), Value::Variant(value)] = &pair[..] else {
                return None;
            };
            match (code, value.as_ref()) {
                (1, Value::Path(text)) => found.path.clone_from(text),
                (2, Value::Text(text)) => found.interface.clone_from(text),
                (3, Value::Text(text)) => found.member.clone_from(text),
                (4, Value::Text(text)) => found.error.clone_from(text),
                (5, Value::U32(serial)) => found.reply_to = *serial,
                (6, Value::Text(text)) => found.destination.clone_from(text),
                (8, Value::Signature(text)) => signature.clone_from(text),
                _ => {}
            }
        }
        reader.align(8)?;
        let end = reader.at.checked_add(usize::try_from(body).ok()?)?;
        if end != bytes.len() {
            return None;
        }
        if found.kind == SIGNAL && found.member != HEARD {
            // Of all that a manager tells, the rest is not for us.
            return Some(found);
        }
        let mut rest = signature.as_str();
        while !rest.is_empty() {
            let (value, left) = reader.value(rest)?;
            found.body.push(value);
            rest = left;
        }
        Some(found)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn align(&mut self, alignment: usize) -> Option<()> {
        let at = self.at.checked_next_multiple_of(alignment)?;
        self.take(at - self.at).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.align(N)?;
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }

    /// Reads one value; returns what is left of the signature.
    fn value<'s>(&mut self, signature: &'s str) -> Option<(Value, &'s str)> {
        let rest = signature.get(1..)?;
        let value = match signature.bytes().next()? {
            b'y' => Value::Byte(self.byte()?),
            b'b' => Value::Bool(self.u32()? != 0),
            b'n' => Value::I16(i16::from_le_bytes(self.array()?)),
            b'q' => Value::U16(u16::from_le_bytes(self.array()?)),
            b'i' => Value::I32(i32::from_le_bytes(self.array()?)),
            b'u' | b'h' => Value::U32(self.u32()?),
            b'x' => Value::I64(i64::from_le_bytes(self.array()?)),
            b't' => Value::U64(u64::from_le_bytes(self.array()?)),
            b'd' => Value::Double(f64::from_le_bytes(self.array()?)),
            kind @ (b's' | b'o') => {
                let length = usize::try_from(self.u32()?).ok()?;
                let text = self.text(length)?;
                match kind {
                    b's' => Value::Text(text),
                    _ => Value::Path(text),
                }
            }
            b'g' => {
                let length = usize::from(self.byte()?);
                Value::Signature(self.text(length)?)
            }
            b'v' => {
                let length = usize::from(self.byte()?);
                let inner = self.text(length)?;
                // One that nests itself would come back here without end.
                let deep = inner.starts_with(['v', 'a', '(', '{']) && inner.contains('v');
                if deep {
                    return None;
                }
                Value::Variant(Box::new(self.value(&inner)?.0))
            }
            b'a' => return self.elements(rest),
            b'(' | b'{' => return self.fields(rest),
            _ => return None,
        };
        Some((value, rest))
    }

    fn elements<'s>(&mut self, element: &'s str) -> Option<(Value, &'s str)> {
        let bytes = usize::try_from(self.u32()?).ok()?;
        let (own, rest) = element.split_at_checked(one(element)?)?;
        self.align(alignment(own))?;
        let end = self.at.checked_add(bytes)?;
        if end > self.bytes.len() {
            return None;
        }
        let mut found = Vec::new();
        while self.at < end && found.len() < ARRAY_MAX {
            found.push(self.value(own)?.0);
        }
        (self.at == end).then(|| (Value::Array(own.to_owned(), found), rest))
    }

    fn fields<'s>(&mut self, mut signature: &'s str) -> Option<(Value, &'s str)> {
        self.align(8)?;
        let mut found = Vec::new();
        loop {
            if let Some(rest) = signature.strip_prefix([')', '}']) {
                return Some((Value::Struct(found), rest));
            }
            let (value, rest) = self.value(signature)?;
            found.push(value);
            signature = rest;
        }
    }
}

/// Length of the first whole type of a signature.
fn one(signature: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, letter) in signature.bytes().enumerate() {
        match letter {
            b'a' => continue,
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Message {
        let property = |name: &str, value: Value| {
            Value::Struct(vec![Value::text(name), Value::Variant(Box::new(value))])
        };
        let properties = vec![
            property("Slice", Value::text("a.slice")),
            property("Delegate", Value::Bool(true)),
            property("PIDs", Value::array(vec![Value::U32(7)]).unwrap()),
            property("MemoryMax", Value::U64(u64::MAX)),
            property("Small", Value::I16(-2)),
            property("AllowedCPUs", Value::array(vec![Value::Byte(3)]).unwrap()),
            property("Double", Value::Double(0.5)),
        ];
        Message {
            kind: CALL,
            serial: 9,
            path: "/org/freedesktop/systemd1".to_owned(),
            interface: "org.freedesktop.systemd1.Manager".to_owned(),
            member: "StartTransientUnit".to_owned(),
            destination: "org.freedesktop.systemd1".to_owned(),
            body: vec![
                Value::text("x.scope"),
                Value::text("replace"),
                Value::array(properties).unwrap(),
                Value::Array("(sa(sv))".to_owned(), Vec::new()),
            ],
            ..Message::default()
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let message = all();
        let bytes = message.bytes();
        assert_eq!(Message::length(&bytes[..HEAD]), Some(bytes.len()));
        assert_eq!(Message::parse(&bytes), Some(message));
    }

    #[test]
    fn a_call_is_the_bytes_that_the_protocol_wants() {
        let message = Message {
            kind: CALL,
            serial: 1,
            path: "/o".to_owned(),
            member: "M".to_owned(),
            body: vec![Value::Byte(1), Value::U32(2)],
            ..Message::default()
        };
        let want = [
            b"l\x01\x00\x01\x08\x00\x00\x00\x01\x00\x00\x00\x28\x00\x00\x00".as_slice(),
            b"\x01\x01o\x00\x02\x00\x00\x00/o\x00\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00M\x00\x00\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x02yu\x00",
            b"\x01\x00\x00\x00\x02\x00\x00\x00",
        ]
        .concat();
        assert_eq!(message.bytes(), want);
    }

    #[test]
    fn what_is_cut_or_changed_does_no_harm() {
        let bytes = all().bytes();
        for end in 0..bytes.len() {
            assert_eq!(Message::parse(&bytes[..end]), None);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = Message::parse(&changed);
            }
        }
        let mut long = bytes;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::length(&long[..HEAD]), None);
    }
}
