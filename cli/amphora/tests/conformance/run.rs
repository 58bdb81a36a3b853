//! Carries a case out, step by step.

use std::fmt::{Display, Formatter};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{Case, text};
use crate::world::{Runtime, World};

/// What a step may say.
pub(crate) const FIELDS: &[&str] = &[
    "do", "host", "said", "state", "is", "code", "fails", "out", "has", "hasnt", "ours",
];

/// The containers that cases have.
const IDS: [&str; 2] = ["one", "two"];

/// How `reach` ends a script.
const LATE: i32 = 9;

/// What every script of the host's side may use.
const PRELUDE: &str = r#"
cd $D
pid() { $RT state $1 | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*$'; }
status() { $RT state $1 2>/dev/null | grep -o '"status": *"[a-z]*"' | cut -d'"' -f4; }
reach() {
    n=0
    until eval "$1"; do
        n=$((n+1))
        test $n -lt $PATIENCE || { echo "waited too long for: $1" >&2; exit 9; }
        usleep 10000
    done
}
usleep() { busybox usleep $1; }
"#;

type Outcome<T = ()> = Result<T, Failure>;

/// Why a case does not pass.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is not as it should be, and waiting does not change it.
    Wrong(String),
    /// Something was waited for, which may still come.
    Late(String),
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (Self::Wrong(what) | Self::Late(what)) = self;
        f.write_str(what)
    }
}

impl Failure {
    fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Wrong(what) => Self::Wrong(change(what)),
            Self::Late(what) => Self::Late(change(what)),
        }
    }
}

/// Runs a case with a configuration of it.
pub(crate) fn case(world: &World, case: &Case, config: &Value) -> Outcome {
    let here = Here {
        world,
        dir: world.dir.join("case"),
    };
    let outcome = here.prepare(case, config).and_then(|()| {
        let each = |(n, step)| {
            here.step(n, step)
                .map_err(|e| e.map(|e| format!("step {}: {e}", n + 1)))
        };
        case.steps.iter().enumerate().try_for_each(each)
    });
    let cleaned = here.clean(outcome.is_ok());
    outcome.and(cleaned)
}

struct Here<'a> {
    world: &'a World,
    dir: PathBuf,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Here<'_> {
    fn prepare(&self, case: &Case, config: &Value) -> Outcome {
        let io = |e: std::io::Error| format!("prepare: {e}");
        std::fs::create_dir_all(&self.dir).map_err(io)?;
        for (id, config) in IDS.iter().zip([Some(config), case.two.as_ref()]) {
            let Some(config) = config else { continue };
            let bundle = self.dir.join(id);
            std::fs::create_dir(&bundle).map_err(io)?;
            // Links to one copy of the programs.
            let copied = Command::new("cp")
                .args(["-al", "../../rootfs", "rootfs"])
                .current_dir(&bundle)
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "copy the root");
            let mut config = config.clone();
            if !self.world.has_device_rules() {
                // Cases that are about them are not run.
                config["linux"]["resources"]
                    .as_object_mut()
                    .map(|o| o.remove("devices"));
            }
            let text = config.to_string().replace("@D@", path(&self.dir));
            std::fs::write(bundle.join("config.json"), text).map_err(io)?;
        }
        if case.console {
            crate::console::listen(&self.dir);
        }
        if case.before.is_empty() {
            return Ok(());
        }
        let said = self.script("before", &case.before)?;
        let Said { code, err, .. } = &said;
        assert_eq!(*code, 0, "{}: what comes before failed: {err}", case.name);
        Ok(())
    }

    /// Runs a script of the host's side. Files take its output: a container may keep them open.
    fn script(&self, name: &str, script: &str) -> Outcome<Said> {
        let [out, err] = ["out", "err"].map(|end| self.dir.join(format!("{name}.{end}")));
        let world = self.world;
        let runtime = match world.runtime {
            Runtime::Idle => "true".to_owned(),
            _ => format!(
                "{} --root {}",
                path(&world.program),
                path(&world.dir.join("state"))
            ),
        };
        let stdin = self.dir.join("stdin");
        File::create(&stdin).expect("stdin");
        let tries = world.patience.as_millis() / 10;
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{PRELUDE}{script}")])
            .env("D", &self.dir)
            .env("RT", runtime)
            .env("PATIENCE", tries.to_string())
            .env_remove("XDG_RUNTIME_DIR")
            // A file of the case: runtimes give their standard streams to the container's user, and
            // /dev/null is everybody's.
            .stdin(File::open(stdin).expect("stdin"))
            .stdout(File::create(&out).expect("output"))
            .stderr(File::create(&err).expect("output"));
        let mut child = command.spawn().expect("sh");
        let deadline = Instant::now() + world.deadline;
        let code = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status.code().unwrap_or(-1);
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                let what = format!("took longer than {:?}", world.deadline);
                return Err(Failure::Late(what));
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        Ok(Said {
            code,
            out: read(&out),
            err: read(&err),
        })
    }

    fn step(&self, n: usize, step: &Value) -> Outcome {
        if step.get("said").is_some() {
            let want = text(&step["said"]);
            return self.wait(|| {
                let said = self.said();
                same(&said, &want).map_err(|what| match want.starts_with(plain(&said).trim_end()) {
                    true => Failure::Late(what),
                    // It only grows.
                    false => Failure::Wrong(what),
                })
            });
        }
        if let Some(id) = step["state"].as_str() {
            return self.wait(|| {
                let said = self.script("state", &format!("exec $RT state {id}"))?;
                let state: Value = serde_json::from_str(&said.out)
                    .map_err(|_| format!("no state: {}{}", said.out, said.err))?;
                let want = step["is"].to_string().replace("@D@", path(&self.dir));
                let want: Value = serde_json::from_str(&want).expect("JSON");
                within(&want, &state).map_err(|what| {
                    match want["status"].is_null() || state["status"] == want["status"] {
                        true => Failure::Wrong(what),
                        false => Failure::Late(what),
                    }
                })
            });
        }
        let (name, script) = match (step["do"].as_str(), &step["host"]) {
            (Some(words), _) => command(words),
            (None, host) => (format!("step{n}"), text(host)),
        };
        let said = self.script(&name, &script)?;
        self.expect(step, &said).map_err(|what| {
            let late = said.code == LATE && said.err.contains("waited too long for: ");
            let what = format!(
                "{what}\n  code {}\n  stdout: {}\n  stderr: {}",
                said.code, said.out, said.err
            );
            match late {
                true => Failure::Late(what),
                false => Failure::Wrong(what),
            }
        })
    }

    fn expect(&self, step: &Value, said: &Said) -> Result<(), String> {
        if step["fails"] == true {
            if said.code == 0 {
                return Err("succeeded".to_owned());
            }
        } else if i64::from(said.code) != step["code"].as_i64().unwrap_or(0) {
            return Err(format!("wrong exit code, want {}", step["code"]));
        }
        if !step["out"].is_null() {
            same(&said.out, &text(&step["out"]))?;
        }
        let both = format!("{}{}", said.out, said.err);
        for part in step["has"].as_array().into_iter().flatten().map(text) {
            if !both.contains(&part) {
                return Err(format!("does not say \"{part}\""));
            }
        }
        for part in step["hasnt"].as_array().into_iter().flatten().map(text) {
            if both.contains(&part) {
                return Err(format!("says \"{part}\""));
            }
        }
        match step["ours"].as_str() {
            Some(part) if self.world.runtime == Runtime::Ours && !both.contains(part) => {
                Err(format!("does not name \"{part}\""))
            }
            _ => Ok(()),
        }
    }

    /// What the container has written so far.
    fn said(&self) -> String {
        read(&self.dir.join("said.out"))
    }

    fn wait(&self, mut look: impl FnMut() -> Outcome) -> Outcome {
        let deadline = Instant::now() + self.world.patience;
        loop {
            match look() {
                Ok(()) => return Ok(()),
                Err(Failure::Late(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Removes the containers; whatever is left of them is the case's failure.
    fn clean(&self, whole: bool) -> Outcome {
        let state = self.world.dir.join("state");
        let there: Vec<&str> = IDS
            .into_iter()
            .filter(|id| state.join(id).exists())
            .collect();
        let each = format!(
            "for id in {}; do $RT delete --force $id; done; exit 0",
            there.join(" ")
        );
        let outcome = match there.is_empty() {
            true => Ok(()),
            false => self.script("clean", &each).map(|_| ()),
        };
        let mut left: Vec<String> = std::fs::read_dir(&state)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        // Not a container's: it has a directory for itself there.
        left.retain(|name| IDS.contains(&name.as_str()));
        let _ = std::fs::remove_dir_all(&state);
        let mut leaks = cgroups();
        let mounts = unmount(&self.dir);
        // What a case mounts itself it unmounts in its last step.
        leaks.extend(mounts.into_iter().filter(|_| whole));
        // Not an outcome: what a case leaves must not pass for the failure that somebody wants to see.
        let clean = leaks.is_empty() || self.world.runtime != Runtime::Ours;
        assert!(clean, "a case leaves {leaks:?}");
        std::fs::remove_dir_all(&self.dir).expect("remove the case's directory");
        outcome?;
        if left.is_empty() {
            return Ok(());
        }
        let what = format!("the state of {left:?} is left after delete --force");
        Err(Failure::Wrong(what))
    }
}

/// A runtime's command: bundles are named like their containers, and what a container writes goes
/// to a file of its own.
fn command(words: &str) -> (String, String) {
    let verb = words.split_whitespace().next().expect("a verb");
    let id = words.split_whitespace().next_back().expect("an id");
    let detached = verb == "create" || (verb == "run" && words.contains(" -d "));
    let name = if detached { "said" } else { "command" };
    let rest = words.strip_prefix(verb).expect("its verb");
    let bundle = match verb {
        "create" | "run" if !words.contains("--bundle") => format!("--bundle $D/{id}"),
        _ => String::new(),
    };
    (name.to_owned(), format!("exec $RT {verb} {bundle} {rest}"))
}

/// Removes what a case has left mounted, and tells of it.
fn unmount(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.filter(|point| Path::new(point).starts_with(dir));
    let mut below: Vec<String> = below.map(str::to_owned).collect();
    below.reverse();
    for point in &below {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
    below
}

/// Removes the cgroups that are left, and tells of those of containers: what lies above them is made
/// by runtimes and stays.
fn cgroups() -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut left = Vec::new();
    for hierarchy in below.map(|entry| entry.path()).chain([root.to_owned()]) {
        let above = hierarchy.join("amphora-conformance");
        remove(&above, &mut left);
        left.retain(|removed| Path::new(removed) != above);
    }
    left
}

fn remove(cgroup: &Path, removed: &mut Vec<String>) {
    let below = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    let dirs = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.for_each(|dir| remove(&dir.path(), removed));
    if std::fs::remove_dir(cgroup).is_ok() {
        removed.push(cgroup.display().to_string());
    }
}

/// Without what a terminal adds.
fn plain(text: &str) -> String {
    text.replace('\r', "")
}

fn same(have: &str, want: &str) -> Result<(), String> {
    if plain(have).trim_end() == want.trim_end() {
        return Ok(());
    }
    Err(format!("want: {want:?}\n  have: {have:?}"))
}

/// Checks that everything wanted is there.
fn within(want: &Value, have: &Value) -> Result<(), String> {
    let Value::Object(fields) = want else {
        return if want == have {
            Ok(())
        } else {
            Err(format!("want {want}, have {have}"))
        };
    };
    for (name, value) in fields {
        within(value, &have[name.as_str()]).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}
