//! The scenario files: steps, and below each what docker said.

use std::fmt::Write as _;

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Runs the program to its end.
    Run {
        modes: Vec<Mode>,
        words: Vec<String>,
    },
    /// The same with this text as standard input.
    Pipe { text: String, words: Vec<String> },
    /// Starts the program and goes on.
    Spawn { name: String, words: Vec<String> },
    /// A line for the standard input of a started program.
    Input { name: String, text: String },
    /// Waits for the end of a started program.
    Join { name: String },
    /// Waits until a container's log contains a text.
    Log { container: String, text: String },
    /// Waits until `inspect --format {{.State.Status}}` says so.
    State { container: String, status: String },
    /// Waits until the clock shows another second: docker looks for events up to a whole one.
    Tick,
    /// Writes a file into the working directory.
    Write { file: String, text: String },
}

/// How a step's output is made comparable, beside what is done to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// JSON: a line for each value, with its path.
    Json,
    /// Every number is one.
    Number,
    /// Every size is one.
    Size,
    /// Lines have no order.
    Sort,
    /// Standard output is no text: its length at most is of interest.
    Bytes,
    /// Words before a colon or an equals sign, and how far they are indented.
    Keys,
}

const MODES: [(&str, Mode); 6] = [
    ("json", Mode::Json),
    ("number", Mode::Number),
    ("size", Mode::Size),
    ("sort", Mode::Sort),
    ("bytes", Mode::Bytes),
    ("keys", Mode::Keys),
];

/// A step, with its line and what is recorded below it.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) line: String,
    pub(crate) action: Action,
    pub(crate) recorded: Vec<String>,
}

/// A line that is not a step stands for itself.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Text(String),
    Step(Step),
}

impl Action {
    /// Whether it has a result to record.
    pub(crate) fn says(&self) -> bool {
        matches!(
            self,
            Self::Run { .. } | Self::Pipe { .. } | Self::Join { .. }
        )
    }
}

/// Reads a file.
pub(crate) fn parse(text: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in text.lines() {
        if line.starts_with(['|', '!', '?']) {
            match parts.last_mut() {
                Some(Part::Step(step)) if step.action.says() => step.recorded.push(line.to_owned()),
                _ => panic!("a result without a step: {line}"),
            }
        } else if line.starts_with(['$', '@']) {
            parts.push(Part::Step(Step {
                line: line.to_owned(),
                action: action(line),
                recorded: Vec::new(),
            }));
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "no step: {line}");
            parts.push(Part::Text(line.to_owned()));
        }
    }
    parts
}

/// Writes a file.
pub(crate) fn render(parts: &[Part]) -> String {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(line) => writeln!(out, "{line}").unwrap(),
            Part::Step(step) => {
                writeln!(out, "{}", step.line).unwrap();
                for line in &step.recorded {
                    writeln!(out, "{line}").unwrap();
                }
            }
        }
    }
    out
}

fn action(line: &str) -> Action {
    let mut words = split(line).into_iter();
    let verb = words.next().expect("a verb");
    let mut next = || words.next().unwrap_or_else(|| panic!("too short: {line}"));
    match verb.as_str() {
        "@spawn" => Action::Spawn {
            name: next(),
            words: words.collect(),
        },
        "@pipe" => Action::Pipe {
            text: next(),
            words: words.collect(),
        },
        "@input" => Action::Input {
            name: next(),
            text: next(),
        },
        "@join" => Action::Join { name: next() },
        "@log" => Action::Log {
            container: next(),
            text: next(),
        },
        "@state" => Action::State {
            container: next(),
            status: next(),
        },
        "@tick" => Action::Tick,
        "@write" => Action::Write {
            file: next(),
            text: next(),
        },
        run => {
            let names = run
                .strip_prefix('$')
                .unwrap_or_else(|| panic!("no verb: {line}"));
            let mode = |name: &str| {
                let found = MODES.iter().find(|(known, _)| *known == name);
                found.unwrap_or_else(|| panic!("no mode: {name}")).1
            };
            let modes = names
                .split(',')
                .filter(|n| !n.is_empty())
                .map(mode)
                .collect();
            Action::Run {
                modes,
                words: words.collect(),
            }
        }
    }
}

/// Words of a line, with single quotes around what contains spaces.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "a quote is open: {line}");
    words.extend(word);
    words
}
