//! The state machine of a container against a model of Docker's: the same steps in both, the same
//! answers, the same states after each step.

use std::collections::BTreeMap;

use crate::numbers::Numbers;
use crate::sandbox::{Sandbox, has_controller};

both!(random_steps_end_as_the_model_says);

/// Sequences, and steps in each.
const SEEDS: u64 = 4;
const STEPS: usize = 45;
const NAMES: [&str; 3] = ["ca", "cb", "cc"];

/// What a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Paused,
    /// With this code.
    Exited(i32),
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited(_) => "exited",
        }
    }
}

/// A container of the model.
#[derive(Debug, Clone, Copy)]
struct Container {
    state: State,
    /// It ends by itself at once.
    short: bool,
}

/// A step.
#[derive(Debug, Clone, Copy)]
enum Step {
    Create { short: bool },
    Start,
    Stop,
    Kill,
    Pause,
    Unpause,
    Rename(&'static str),
    Restart,
    Remove,
    RemoveForced,
    Wait,
    Signal,
}

/// What Docker answers: exit code, a part of what it says on stderr, what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: i32,
    error: &'static str,
    printed: String,
}

fn fails(error: &'static str) -> Answer {
    Answer {
        code: 1,
        error,
        printed: String::new(),
    }
}

fn prints(text: &str) -> Answer {
    Answer {
        code: 0,
        error: "",
        printed: format!("{text}\n"),
    }
}

const MISSING: &str = "No such container: ";
const STOPPED: &str = "is not running";
const KILLED: State = State::Exited(137);

type Model = BTreeMap<&'static str, Container>;

/// One step in the model.
fn answer(model: &mut Model, name: &'static str, step: Step) -> Answer {
    use State::{Created, Exited, Paused, Running};
    let Some(mut here) = model.get(name).copied() else {
        return match step {
            Step::Create { short } => {
                let state = Created;
                model.insert(name, Container { state, short });
                prints("<id>")
            }
            Step::RemoveForced => Answer {
                code: 0,
                ..fails(MISSING)
            },
            _ => fails(MISSING),
        };
    };
    let started = if here.short { Exited(0) } else { Running };
    let said = match (step, here.state) {
        (Step::Create { .. }, _) => return fails("Conflict. The container name \"/"),
        (Step::Start, Paused) => {
            return fails("cannot start a paused container, try unpause instead");
        }
        (Step::Start, Created | Exited(_)) | (Step::Restart, _) => {
            here.state = started;
            prints(name)
        }
        (Step::Start, Running) => prints(name),
        (Step::Stop, Running | Paused) | (Step::Kill, Running | Paused) => {
            here.state = KILLED;
            prints(name)
        }
        (Step::Stop, Created | Exited(_)) => prints(name),
        (Step::Kill | Step::Signal | Step::Pause, Created | Exited(_)) => return fails(STOPPED),
        // It takes no notice of this one, also when it sees it.
        (Step::Signal, Running | Paused) => prints(name),
        (Step::Pause, Paused) => return fails("is already paused"),
        (Step::Pause, Running) => {
            here.state = Paused;
            prints(name)
        }
        (Step::Unpause, Paused) => {
            here.state = Running;
            prints(name)
        }
        (Step::Unpause, _) => return fails("is not paused"),
        (Step::Rename(to), _) => return renamed(model, name, to),
        (Step::Remove, Running) => {
            return fails("container is running: stop the container before removing");
        }
        (Step::Remove, Paused) => return fails("container is paused and must be unpaused first"),
        (Step::Remove | Step::RemoveForced, _) => {
            model.remove(name);
            return prints(name);
        }
        (Step::Wait, Exited(code)) => prints(&code.to_string()),
        (Step::Wait, _) => prints("0"),
    };
    model.insert(name, here);
    said
}

fn renamed(model: &mut Model, name: &'static str, to: &'static str) -> Answer {
    if to == name {
        return fails("Renaming a container with the same name as its current name");
    }
    if model.contains_key(to) {
        return fails("is already in use by container");
    }
    if let Some(here) = model.remove(name) {
        model.insert(to, here);
    }
    Answer {
        code: 0,
        ..fails("")
    }
}

fn words(image: &str, name: &str, step: Step) -> Vec<String> {
    let line = match step {
        Step::Create { short: true } => format!("create --name {name} {image} exit 0"),
        Step::Create { short: false } => format!("create --name {name} {image} sleep 600"),
        Step::Start => format!("start {name}"),
        Step::Stop => format!("stop -s KILL -t 20 {name}"),
        Step::Kill => format!("kill {name}"),
        Step::Signal => format!("kill -s WINCH {name}"),
        Step::Pause => format!("pause {name}"),
        Step::Unpause => format!("unpause {name}"),
        Step::Rename(to) => format!("rename {name} {to}"),
        Step::Restart => format!("restart -s KILL -t 20 {name}"),
        Step::Remove => format!("rm {name}"),
        Step::RemoveForced => format!("rm -f {name}"),
        Step::Wait => format!("wait {name}"),
    };
    line.split(' ').map(str::to_owned).collect()
}

impl Numbers {
    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }

    /// A step that ends by itself: nobody waits for what runs on.
    fn step(&mut self, state: Option<State>, freezes: bool) -> Step {
        loop {
            let step = match self.below(22) {
                0..=2 => Step::Create { short: false },
                3 => Step::Create { short: true },
                4..=7 => Step::Start,
                8 | 9 => Step::Stop,
                10 => Step::Kill,
                11 => Step::Signal,
                12 | 13 => Step::Pause,
                14 | 15 => Step::Unpause,
                16 => Step::Rename(self.name()),
                17 => Step::Restart,
                18 => Step::Remove,
                19 => Step::RemoveForced,
                _ => Step::Wait,
            };
            let ends = !matches!(state, Some(State::Running | State::Paused));
            let fits = match step {
                Step::Wait => ends,
                Step::Pause | Step::Unpause => freezes,
                _ => true,
            };
            if fits {
                return step;
            }
        }
    }
}

/// What is listed, and what `inspect` says of each, is what the model has.
fn compare(s: &Sandbox, model: &Model, steps: &[String]) {
    let format = "{{.Names}} {{.State}}";
    let mut listed: Vec<String> = s
        .run(&["ps", "-a", "--format", format])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    listed.sort();
    let expected: Vec<String> = model
        .iter()
        .map(|(name, c)| format!("{name} {}", c.state.word()))
        .collect();
    assert_eq!(listed, expected, "after {steps:#?}");
    for (name, container) in model {
        let shown = s.inspect(name)["State"].clone();
        let code = match container.state {
            State::Exited(code) => code,
            _ => 0,
        };
        let lives = matches!(container.state, State::Running | State::Paused);
        assert_eq!(
            (
                shown["Status"].as_str(),
                shown["Running"].as_bool(),
                shown["Paused"].as_bool(),
                shown["ExitCode"].as_i64(),
                shown["Pid"].as_i64().map(|pid| pid > 0),
            ),
            (
                Some(container.state.word()),
                Some(lives),
                Some(container.state == State::Paused),
                Some(i64::from(code)),
                Some(lives),
            ),
            "{name} after {steps:#?}"
        );
    }
}

fn random_steps_end_as_the_model_says(image: &str) {
    let freezes = has_controller("freezer");
    let s = Sandbox::ready();
    for seed in 0..SEEDS {
        let mut numbers = Numbers(seed);
        let mut model = Model::new();
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            let name = numbers.name();
            let step = numbers.step(model.get(name).map(|c| c.state), freezes);
            let before = model.get(name).copied();
            let expected = answer(&mut model, name, step);
            let words = words(image, name, step);
            steps.push(words.join(" "));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let out = s.run(&words);
            assert_eq!(out.code, expected.code, "{out:?} after {steps:#?}");
            assert!(
                out.stderr.contains(expected.error)
                    && expected.error.is_empty() == out.stderr.is_empty(),
                "{expected:?}, {out:?} after {steps:#?}"
            );
            if expected.printed == "<id>\n" {
                assert_eq!(out.stdout.len(), 65);
            } else {
                assert_eq!(out.stdout, expected.printed, "after {steps:#?}");
            }
            // A signal, and what is short, take a moment; what comes next is seen when they are
            // through.
            let ended = model.get(name).map(|c| c.state);
            if let Some(State::Exited(code)) = ended
                && before.map(|c| c.state) != ended
            {
                assert_eq!(s.run(&["wait", name]).ok(), format!("{code}\n"));
            }
            compare(&s, &model, &steps);
        }
        for name in model.keys() {
            s.run(&["rm", "-f", name]).ok();
        }
    }
}
