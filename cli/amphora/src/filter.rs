//! `--filter name=value`, as Docker's commands take it.

use amphora_engine::EngineError;

use crate::errors::{Failure, Outcome};

/// The filters of one command line.
#[derive(Debug, Default, Clone)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Parses `--filter` values and refuses names that the command does not know. `flag` is how
    /// the flag is named in the error text.
    pub(crate) fn parse(values: &[String], flag: &str, known: &[&str]) -> Outcome<Self> {
        let mut out = Vec::new();
        for value in values.iter().filter(|v| !v.is_empty()) {
            let (name, text) = value.split_once('=').ok_or_else(|| {
                Failure::Usage(format!(
                    "invalid argument \"{value}\" for \"{flag}\" flag: bad format of filter (expected name=value)"
                ))
            })?;
            let name = name.trim().to_lowercase();
            if !known.contains(&name.as_str()) {
                return Err(invalid(&name));
            }
            out.push((name, text.trim().to_owned()));
        }
        Ok(Self(out))
    }

    /// Whether there is none at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a filter of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// The values of one filter.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// True without such a filter, or when one of its values satisfies `f`.
    pub(crate) fn any(&self, name: &str, f: impl FnMut(&str) -> bool) -> bool {
        !self.has(name) || self.values(name).any(f)
    }

    /// True without such a filter, or when all of its values satisfy `f`.
    pub(crate) fn all(&self, name: &str, f: impl FnMut(&str) -> bool) -> bool {
        self.values(name).all(f)
    }

    /// The one truth value of a filter.
    pub(crate) fn flag(&self, name: &str) -> Outcome<Option<bool>> {
        let mut found = None;
        for value in self.values(name) {
            found = Some(match value.to_lowercase().as_str() {
                "1" | "t" | "true" => true,
                "0" | "f" | "false" => false,
                _ => return Err(invalid(&format!("{name}=[{value}]"))),
            });
        }
        Ok(found)
    }
}

/// Docker's words for a filter that it does not know, or a value that makes no sense.
pub(crate) fn invalid(what: &str) -> Failure {
    Failure::Engine(EngineError::Invalid(format!("invalid filter '{what}'")))
}

/// Whether labels have `key` or `key=value`.
pub(crate) fn has_label(labels: &std::collections::BTreeMap<String, String>, wanted: &str) -> bool {
    label_holds(wanted, |key| labels.get(key).map(String::as_str))
}

/// The same for labels that are looked up some other way.
pub(crate) fn label_holds<'a>(wanted: &str, get: impl FnOnce(&str) -> Option<&'a str>) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => get(key) == Some(value),
        None => get(wanted).is_some(),
    }
}

/// Whether a pattern is found in a text: Go's regular expressions as far as names need them
/// (`^ $ . * + ? [] | ()`). A pattern that does not parse is compared as it is.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    pattern == text || crate::pattern::find(pattern, text).unwrap_or(false)
}
