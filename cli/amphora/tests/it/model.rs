//! The state machine of a container against a model of Docker's: the same steps in both, the same
//! answers, the same states after each step.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::numbers::Numbers;
use crate::sandbox::{Sandbox, has_controller, path, wait_until};

both!("linux", "wasm": random_steps_end_as_the_model_says);

/// Sequences, and steps in each.
const SEEDS: u64 = 6;
const STEPS: usize = 40;
/// Runs behind the first that `on-failure` gives.
const AGAIN: u32 = 2;
const SLOW: Duration = Duration::from_secs(20);
/// None of them is hex: a name that is gone would else be looked for among the ids.
const NAMES: [&str; 3] = ["left", "mid", "right"];

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

/// What a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// It runs until it is ended.
    Long,
    /// It ends by itself at once, with this code.
    Short(i32),
}

/// What becomes of a container that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It stays as it is.
    Nothing,
    /// `--rm`.
    Removed,
    /// `--restart on-failure`, so many times.
    OnFailure,
    /// `--restart always`.
    Always,
}

impl After {
    fn words(self) -> &'static str {
        match self {
            Self::Nothing => "--restart no",
            Self::Removed => "--rm",
            Self::OnFailure => "--restart on-failure:2",
            Self::Always => "--restart always",
        }
    }
}

/// A container of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Container {
    state: State,
    program: Program,
    after: After,
    /// Runs by itself, since it was started.
    restarts: u32,
}

impl Container {
    /// After a start; `None`: it is gone.
    fn started(mut self) -> Option<Self> {
        self.restarts = 0;
        let Program::Short(code) = self.program else {
            self.state = State::Running;
            return Some(self);
        };
        if self.after == After::OnFailure && code != 0 {
            self.restarts = AGAIN;
        }
        self.ended(code)
    }

    /// After its end, by hand or when no policy starts it again.
    fn ended(mut self, code: i32) -> Option<Self> {
        self.state = State::Exited(code);
        (self.after != After::Removed).then_some(self)
    }
}

/// A step.
#[derive(Debug, Clone, Copy)]
enum Step {
    Create(Program, After),
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
    /// A session that ends with code 3.
    Exec,
    Policy(After),
    CopyIn,
    Diff,
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

fn nothing() -> Answer {
    Answer {
        code: 0,
        ..fails("")
    }
}

const MISSING: &str = "No such container: ";
const STOPPED: &str = "is not running";
const KILLED: i32 = 137;

type Model = BTreeMap<&'static str, Container>;

/// One step where there is no such container.
fn answer_missing(model: &mut Model, name: &'static str, step: Step) -> Answer {
    match step {
        Step::Create(program, after) => {
            let made = Container {
                state: State::Created,
                program,
                after,
                restarts: 0,
            };
            model.insert(name, made);
            prints("<id>")
        }
        Step::RemoveForced => Answer {
            code: 0,
            ..fails(MISSING)
        },
        _ => fails(MISSING),
    }
}

/// One step in the model.
fn answer(model: &mut Model, name: &'static str, step: Step) -> Answer {
    use State::{Created, Exited, Paused, Running};
    let Some(mut here) = model.get(name).copied() else {
        return answer_missing(model, name, step);
    };
    let (next, said) = match (step, here.state) {
        (Step::Create(..), _) => return fails("Conflict. The container name \"/"),
        (Step::Start, Paused) => {
            return fails("cannot start a paused container, try unpause instead");
        }
        (Step::Start, Created | Exited(_)) | (Step::Restart, _) => (here.started(), prints(name)),
        (Step::Stop, Running | Paused) | (Step::Kill, Running | Paused) => {
            (here.ended(KILLED), prints(name))
        }
        (Step::Stop, Created | Exited(_)) | (Step::Start, Running) => (Some(here), prints(name)),
        (Step::Kill | Step::Signal | Step::Pause | Step::Exec, Created | Exited(_)) => {
            return fails(STOPPED);
        }
        // It takes no notice of this one, also when it sees it.
        (Step::Signal, Running | Paused) => (Some(here), prints(name)),
        (Step::Pause, Paused) => return fails("is already paused"),
        (Step::Pause, Running) => {
            here.state = Paused;
            (Some(here), prints(name))
        }
        (Step::Unpause, Paused) => {
            here.state = Running;
            (Some(here), prints(name))
        }
        (Step::Unpause, _) => return fails("is not paused"),
        (Step::Rename(to), _) => return renamed(model, name, to),
        (Step::Remove, Running) => {
            return fails("container is running: stop the container before removing");
        }
        (Step::Remove, Paused) => return fails("container is paused and must be unpaused first"),
        (Step::Remove | Step::RemoveForced, _) => (None, prints(name)),
        (Step::Wait, Exited(code)) => (Some(here), prints(&code.to_string())),
        (Step::Wait, _) => (Some(here), prints("0")),
        (Step::Exec, Paused) => return fails("is paused, unpause the container before exec"),
        (Step::Exec, Running) => {
            return Answer {
                code: 3,
                ..fails("")
            };
        }
        (Step::Policy(After::Nothing), _) if here.after == After::Removed => {
            (Some(here), prints(name))
        }
        (Step::Policy(_), _) if here.after == After::Removed => {
            return fails("Restart policy cannot be updated because AutoRemove is enabled");
        }
        (Step::Policy(after), _) => {
            here.after = after;
            (Some(here), prints(name))
        }
        (Step::CopyIn, _) => (Some(here), nothing()),
        (Step::Diff, _) => (Some(here), prints("<changes>")),
    };
    match next {
        Some(next) => model.insert(name, next),
        None => model.remove(name),
    };
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
    nothing()
}

fn words(file: &str, name: &str, step: Step) -> Vec<String> {
    let line = match step {
        Step::Create(program, after) => {
            let program = match program {
                Program::Long => "sleep 600".to_owned(),
                Program::Short(code) => format!("exit {code}"),
            };
            format!("create --name {name} {} checked {program}", after.words())
        }
        Step::Exec => format!("exec {name} /probe exit 3"),
        Step::Policy(after) => format!("update {} {name}", after.words()),
        Step::CopyIn => format!("cp -q {file} {name}:/tmp/in"),
        Step::Diff => format!("diff {name}"),
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

    fn after(&mut self) -> After {
        match self.below(6) {
            0 | 1 => After::Nothing,
            2 => After::Removed,
            3 | 4 => After::OnFailure,
            _ => After::Always,
        }
    }

    /// Any step.
    fn any(&mut self) -> Step {
        match self.below(30) {
            0..=3 => Step::Create(Program::Long, self.after()),
            4 => Step::Create(Program::Short(0), self.after()),
            5 => Step::Create(Program::Short(1), self.after()),
            6..=10 => Step::Start,
            11 | 12 => Step::Stop,
            13 => Step::Kill,
            14 => Step::Signal,
            15 | 16 => Step::Pause,
            17 | 18 => Step::Unpause,
            19 => Step::Rename(self.name()),
            20 => Step::Restart,
            21 => Step::Remove,
            22 => Step::RemoveForced,
            23 | 24 => Step::Exec,
            25 => Step::Policy(self.after()),
            26 => Step::CopyIn,
            27 => Step::Diff,
            _ => Step::Wait,
        }
    }

    /// A step that ends by itself, and leads where nothing goes on by itself: nobody waits for
    /// what runs on.
    fn step(&mut self, here: Option<Container>, freezes: bool) -> Step {
        loop {
            let step = self.any();
            let state = here.map(|c| c.state);
            let short = here.is_some_and(|c| c.program != Program::Long);
            let fits = match step {
                Step::Wait => !matches!(state, Some(State::Running | State::Paused)),
                Step::Pause | Step::Unpause => freezes,
                Step::Create(Program::Short(_), After::Always) => false,
                Step::Policy(After::Always) => !short,
                Step::Policy(After::Removed) => false,
                _ => true,
            };
            if fits {
                return step;
            }
        }
    }
}

/// A start of what is short, and a signal, take a moment; what comes next is seen when they are
/// through.
fn settle(s: &Sandbox, model: &Model, name: &str, before: Option<Container>) {
    match (before, model.get(name)) {
        (Some(_), None) => wait_until("it to be gone", SLOW, || {
            let names = s.run(&["ps", "-a", "--format", "{{.Names}}"]).ok();
            !names.lines().any(|line| line == name)
        }),
        (_, Some(now)) if matches!(now.state, State::Exited(_)) => {
            wait_until("its last end", SLOW, || {
                let shown = s.inspect(name);
                let restarts = shown["RestartCount"].as_u64();
                shown["State"]["Status"] == "exited" && restarts == Some(now.restarts.into())
            });
        }
        _ => {}
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
        let whole = s.inspect(name);
        assert_eq!(whole["RestartCount"], container.restarts, "{steps:#?}");
        let shown = whole["State"].clone();
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

fn random_steps_end_as_the_model_says(kind: &str) {
    let freezes = has_controller("freezer");
    let s = crate::health::world(kind, &serde_json::Value::Null);
    let file = s.dir.join("file");
    std::fs::write(&file, "text").unwrap();
    for seed in 0..SEEDS {
        let mut numbers = Numbers(seed);
        let mut model = Model::new();
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            let name = numbers.name();
            let step = numbers.step(model.get(name).copied(), freezes);
            let before = model.get(name).copied();
            let expected = answer(&mut model, name, step);
            let words = words(path(&file), name, step);
            steps.push(words.join(" "));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let out = s.run(&words);
            assert_eq!(out.code, expected.code, "{out:?} after {steps:#?}");
            assert!(
                out.stderr.contains(expected.error)
                    && expected.error.is_empty() == out.stderr.is_empty(),
                "{expected:?}, {out:?} after {steps:#?}"
            );
            match expected.printed.as_str() {
                "<id>\n" => assert_eq!(out.stdout.len(), 65),
                "<changes>\n" => {}
                printed => assert_eq!(out.stdout, printed, "after {steps:#?}"),
            }
            settle(&s, &model, name, before);
            compare(&s, &model, &steps);
        }
        for name in model.keys() {
            s.run(&["rm", "-f", name]).ok();
        }
    }
}
