//! Cases as they stand in their files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::plain_spec::plain_spec;
use crate::world::World;

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    /// The file's name without its end.
    pub(crate) name: String,
    /// The whole `config.json`, with `@D@` where the case's directory stands.
    pub(crate) config: Value,
    /// The same for a second container.
    pub(crate) two: Option<Value>,
    /// A console socket is there, whose terminal's output is what the container says.
    pub(crate) console: bool,
    /// Without its fields it ends only by waiting in vain.
    pub(crate) waits: bool,
    /// A shell script that prepares the host's side.
    pub(crate) before: String,
    /// What is done, and what must come of it.
    pub(crate) steps: Vec<Value>,
    /// Cgroup controllers and kernel files without which it cannot run.
    pub(crate) needs: Vec<String>,
    sets: Option<Vec<String>>,
    patch: Value,
    known: Vec<Value>,
}

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// Returns the folders that have cases, sorted.
pub(crate) fn folders() -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![home()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "json") {
                let clause = dir.strip_prefix(home()).expect("below").to_owned();
                found.push(clause.into_os_string().into_string().expect("UTF-8"));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Reads a folder's cases, sorted by name.
pub(crate) fn read(folder: &str) -> Vec<Case> {
    let dir = home().join(folder);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "json"));
    files.sort_unstable();
    files.iter().map(|path| Case::parse(path)).collect()
}

/// What a case, a step and a known difference may say; anything else is a mistake in the file.
const CASE: &[&str] = &[
    "says", "needs", "sets", "before", "config", "two", "sh", "steps", "known", "out", "code",
    "refused", "console", "waits",
];
const KNOWN: &[&str] = &["runtime", "below", "from", "why"];

/// Checks that an object has no other fields.
pub(crate) fn only(object: &Value, fields: &[&str], place: &str) {
    let object = object
        .as_object()
        .unwrap_or_else(|| panic!("{place}: not an object"));
    for name in object.keys() {
        assert!(
            fields.contains(&name.as_str()),
            "{place}: unknown field {name}"
        );
    }
}

/// A text, or lines.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().map(|line| text(line) + "\n").collect(),
        Value::Null => String::new(),
        other => panic!("not a text: {other}"),
    }
}

fn list(value: &Value) -> Vec<String> {
    match value.as_array() {
        Some(items) => items.iter().map(text).collect(),
        None => Vec::new(),
    }
}

impl Case {
    fn parse(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("case");
        let place = path.display().to_string();
        let file: Value = serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{place}: {e}"));
        only(&file, CASE, &place);
        assert!(file["says"].is_string(), "{place}: says nothing");
        let known = file["known"].as_array().cloned().unwrap_or_default();
        for difference in &known {
            only(difference, KNOWN, &place);
            assert!(
                difference["why"].is_string(),
                "{place}: a difference has no reason"
            );
        }
        let mut config = base();
        if !file["sh"].is_null() {
            config["process"]["args"] = json!(["sh", "-c", text(&file["sh"])]);
        }
        let without = config.clone();
        merge(&mut config, &file["config"]);
        let two = file.get("two").map(|patch| {
            let mut two = config.clone();
            two["linux"]["cgroupsPath"] = "/amphora-conformance/two".into();
            merge(&mut two, patch);
            two
        });
        let stem = path.file_stem().and_then(|name| name.to_str());
        Self {
            name: stem.expect("name").to_owned(),
            two,
            console: file["console"] == true,
            waits: file["waits"] == true,
            before: text(&file["before"]),
            steps: steps(&file, &place),
            needs: list(&file["needs"]),
            sets: file.get("sets").map(list),
            patch: if file["config"].is_object() {
                without
            } else {
                Value::Null
            },
            known,
            config,
        }
    }

    /// The reason why this runtime is known to differ.
    pub(crate) fn known(&self, world: &World) -> Option<String> {
        let (name, version) = world.version();
        let of = |value: &Value| value.as_str().map(numbers);
        let applies = |known: &&Value| {
            known["runtime"] == name
                && of(&known["below"]).is_none_or(|limit| version < limit)
                && of(&known["from"]).is_none_or(|first| version >= first)
        };
        self.known
            .iter()
            .find(applies)
            .map(|known| text(&known["why"]))
    }

    /// The configuration without each of the fields that the case is about: as the base has it.
    pub(crate) fn without(&self) -> Vec<(String, Value)> {
        let base = &self.patch;
        if base.is_null() {
            return Vec::new();
        }
        let Some(sets) = &self.sets else {
            return vec![("its patch".to_owned(), base.clone())];
        };
        let one = |pointer: &String| {
            let mut config = self.config.clone();
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            let parent = config.pointer_mut(parent).expect("the field's place");
            match (parent, base.pointer(pointer)) {
                (Value::Object(object), None) => _ = object.remove(name),
                (parent, usual) => parent[name] = usual.cloned().expect("a list's usual item"),
            }
            (pointer.clone(), config)
        };
        sets.iter().map(one).collect()
    }
}

/// The numbers of a version.
pub(crate) fn numbers(version: &str) -> Vec<u32> {
    let plain = version
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next();
    let parts = plain.unwrap_or_default().split('.');
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// The steps of a case, or those that its short form stands for.
fn steps(file: &Value, place: &str) -> Vec<Value> {
    if let Some(steps) = file["steps"].as_array() {
        for step in steps {
            only(step, crate::run::FIELDS, place);
        }
        return steps.clone();
    }
    if let Some(field) = file["refused"].as_str() {
        return vec![json!({"do": "create one", "fails": true, "ours": field})];
    }
    assert!(
        !file["out"].is_null() || !file["code"].is_null(),
        "{place}: expects nothing"
    );
    let code = file["code"].as_i64().unwrap_or(0);
    vec![json!({"do": "run one", "code": code, "out": file["out"]})]
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        if !patch.is_null() {
            *target = patch.clone();
        }
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(name);
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

/// What a case's patch is applied to.
fn base() -> Value {
    let caps = [
        "CAP_KILL",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD",
        "CAP_SYS_ADMIN",
    ];
    let args = ["sh", "-c", "sleep 600"];
    let mut spec = plain_spec(&args, &caps, "/amphora-conformance/one");
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts.extend([
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ]);
    spec
}
