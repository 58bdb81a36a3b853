//! What a template is carried out over.

use std::collections::BTreeMap;

/// A value as Go's templates see it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, of some kind.
    Nil(Nil),
    /// `bool`.
    Bool(bool),
    /// Any integer.
    Int(i64),
    /// `float64`.
    Float(f64),
    /// `string`.
    Str(String),
    /// A slice.
    List(Vec<Value>),
    /// A map with keys of text.
    Map(Map),
    /// A struct.
    Object(Object),
}

/// What kind of nothing: they print differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nil {
    /// `<no value>`.
    Interface,
    /// `<nil>`.
    Pointer,
    /// `[]`.
    Slice,
    /// `map[]`.
    Map,
}

/// A Go map: a key that is not there is no error.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Map {
    /// Its entries.
    pub entries: BTreeMap<String, Value>,
    /// Whether all values are text: `index` of a missing key is then the empty text.
    pub of_text: bool,
}

/// What is said of a field that an object has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// `map has no entry for key "X"`: the object was read from JSON.
    Key,
    /// `can't evaluate field X in type T`.
    Type(&'static str),
    /// `<no value>`, no error.
    NoValue,
}

/// A Go struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Fields in their order.
    pub fields: Vec<(String, Value)>,
    /// What a field that is not there leads to.
    pub missing: Missing,
    /// What the method `Label` looks up; `None`: there is no such method.
    pub labels: Option<BTreeMap<String, String>>,
}

impl Object {
    /// Makes an object without methods.
    #[must_use]
    pub fn new(fields: Vec<(String, Value)>, missing: Missing) -> Self {
        Self {
            fields,
            missing,
            labels: None,
        }
    }

    /// Returns a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(k, _)| k == name).map(|(_, v)| v)
    }
}

impl Value {
    /// Makes a value of JSON. Objects under the keys in `maps` are Go maps, `null` under the keys
    /// in `slices` is an empty slice, everything else is a struct or a pointer.
    #[must_use]
    pub fn from_json(json: &serde_json::Value, maps: &[&str], slices: &[&str]) -> Self {
        from_json(json, "", maps, slices)
    }

    /// Makes a list of texts.
    #[must_use]
    pub fn texts<S: Into<String>>(list: impl IntoIterator<Item = S>) -> Self {
        Self::List(list.into_iter().map(|s| Self::Str(s.into())).collect())
    }

    /// Go's truth: not empty, not zero, not nil.
    #[must_use]
    pub fn truth(&self) -> bool {
        match self {
            Self::Nil(_) => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(n) => *n != 0.0,
            Self::Str(s) => !s.is_empty(),
            Self::List(l) => !l.is_empty(),
            Self::Map(m) => !m.entries.is_empty(),
            Self::Object(_) => true,
        }
    }

    /// The name of the type in error texts.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Nil(_) => "interface {}",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Str(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Map(m) if m.of_text => "map[string]string",
            Self::Map(_) => "map[string]interface {}",
            Self::Object(o) => match o.missing {
                Missing::Type(name) => name,
                _ => "map[string]interface {}",
            },
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

fn from_json(json: &serde_json::Value, key: &str, maps: &[&str], slices: &[&str]) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null if maps.contains(&key) => Value::Nil(Nil::Map),
        Json::Null if slices.contains(&key) => Value::Nil(Nil::Slice),
        Json::Null => Value::Nil(Nil::Pointer),
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::Int(n),
            // Above what Go's int holds there is only "no limit".
            (None, Some(f)) if n.is_f64() => Value::Float(f),
            _ => Value::Str(n.to_string()),
        },
        Json::String(s) => Value::Str(s.clone()),
        Json::Array(list) => Value::List(
            list.iter()
                .map(|v| from_json(v, "", maps, slices))
                .collect(),
        ),
        Json::Object(object) if maps.contains(&key) => Value::Map(Map {
            of_text: object.values().all(Json::is_string),
            entries: object
                .iter()
                .map(|(k, v)| (k.clone(), from_json(v, "", maps, slices)))
                .collect(),
        }),
        Json::Object(object) => Value::Object(Object::new(
            object
                .iter()
                .map(|(k, v)| (k.clone(), from_json(v, k, maps, slices)))
                .collect(),
            Missing::Key,
        )),
    }
}
