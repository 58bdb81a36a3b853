//! Options as runc's command line takes them: `--name value`, `--name=value`, with one dash or two.

use crate::error::{Result, RuncError};

/// One option.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    name: &'static str,
    short: Option<char>,
    takes: bool,
}

impl Flag {
    /// One that takes a value.
    pub(crate) const fn value(name: &'static str, short: Option<char>) -> Self {
        Self {
            name,
            short,
            takes: true,
        }
    }

    /// One that is on or off.
    pub(crate) const fn switch(name: &'static str, short: Option<char>) -> Self {
        Self {
            name,
            short,
            takes: false,
        }
    }
}

/// Where options may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before and after other words.
    Any,
    /// Before the first other word.
    Stop,
    /// Before the second other word: what follows a container's name is its command.
    StopAfterOne,
}

/// A command line taken apart.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    values: Vec<(&'static str, String)>,
    rest: Vec<String>,
}

impl Parsed {
    /// The last value of an option.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.values.iter().rev().find(|(have, _)| *have == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Every value of an option.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.values.iter().filter(move |(have, _)| *have == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value == "true")
    }

    /// The value of an option as a number or whatever else can be read from text.
    pub(crate) fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    RuncError::usage(format!("invalid value \"{text}\" for flag --{name}"))
                })
            })
            .transpose()
    }

    /// The words that are no options.
    pub(crate) fn rest(&self) -> &[String] {
        &self.rest
    }

    /// The only word: a container's name.
    pub(crate) fn container(&self) -> Result<&str> {
        match self.rest() {
            [one] if !one.is_empty() => Ok(one),
            [] => Err(RuncError::usage("a container id is needed")),
            _ => Err(RuncError::usage("exactly one container id is needed")),
        }
    }
}

/// Takes a command line apart.
pub(crate) fn parse(flags: &[Flag], words: &[String], order: Order) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let stop = match order {
            Order::Any => false,
            Order::Stop => !parsed.rest.is_empty(),
            Order::StopAfterOne => parsed.rest.len() > 1,
        };
        let name = match name {
            Some("") if word == "--" => {
                parsed.rest.extend(words.by_ref().cloned());
                break;
            }
            Some(name) if !name.is_empty() && !stop => name,
            _ => {
                parsed.rest.push(word.clone());
                if order == Order::Stop || (order == Order::StopAfterOne && parsed.rest.len() > 1) {
                    parsed.rest.extend(words.by_ref().cloned());
                }
                continue;
            }
        };
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let is = |flag: &&Flag| {
            let mut letters = name.chars();
            flag.name == name
                || (flag.short.is_some()
                    && letters.next() == flag.short
                    && letters.next().is_none())
        };
        let Some(flag) = flags.iter().find(is) else {
            return Err(RuncError::usage(format!(
                "flag provided but not defined: -{name}"
            )));
        };
        let value = match (given, flag.takes) {
            (Some(value), false) if !matches!(value.as_str(), "true" | "false") => {
                return Err(RuncError::usage(format!(
                    "invalid boolean value \"{value}\" for -{name}"
                )));
            }
            (Some(value), _) => value,
            (None, false) => "true".to_owned(),
            (None, true) => words
                .next()
                .cloned()
                .ok_or_else(|| RuncError::usage(format!("flag needs an argument: -{name}")))?,
        };
        parsed.values.push((flag.name, value));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::value("bundle", Some('b')),
        Flag::switch("detach", Some('d')),
    ];

    fn taken(line: &str, order: Order) -> Result<Parsed> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(FLAGS, &words, order)
    }

    #[test]
    fn options_stand_before_and_after_the_id() {
        for line in [
            "--bundle /b -d id",
            "id -bundle=/b --detach",
            "-b /b id --detach=true",
            "-d -b=/b -- id",
        ] {
            let parsed = taken(line, Order::Any).unwrap();
            assert_eq!(parsed.get("bundle"), Some("/b"), "{line}");
            assert!(parsed.on("detach"), "{line}");
            assert_eq!(parsed.container().unwrap(), "id", "{line}");
        }
        assert!(!taken("-d=false id", Order::Any).unwrap().on("detach"));
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let parsed = taken("-d id sh -d -c x", Order::StopAfterOne).unwrap();
        assert_eq!(parsed.rest(), ["id", "sh", "-d", "-c", "x"]);
        let parsed = taken("id -d sh --unknown", Order::StopAfterOne).unwrap();
        assert!(parsed.on("detach"));
        assert_eq!(parsed.rest(), ["id", "sh", "--unknown"]);
        let parsed = taken("-d run --detach", Order::Stop).unwrap();
        assert_eq!(parsed.rest(), ["run", "--detach"]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in ["--detatch id", "-x id", "--bundle", "-d=perhaps id"] {
            assert!(taken(line, Order::Any).is_err(), "{line}");
        }
        assert!(taken("a b", Order::Any).unwrap().container().is_err());
    }
}
