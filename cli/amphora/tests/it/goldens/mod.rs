//! What the real docker says, step by step, beside what we say. `tests/goldens/*.txt` hold steps
//! and docker's answers, written by `cargo xtask goldens`; `tests/goldens/differences.md` holds
//! what differs on purpose.

mod differences;
mod normal;
mod player;
mod scenario;

use std::fs;
use std::path::{Path, PathBuf};

use crate::dockerd::Dockerd;
use crate::fixtures::{Image, Wrap, dir, file, probe};
use crate::sandbox::{SETTLE, Sandbox, path, wait_until};
use differences::Differences;
use player::Player;
use scenario::{Part, parse, render};

/// A tree with another dockerd, by which the answers are recorded anew.
const RECORD: &str = "AMPHORA_GOLDENS_PEERS";
/// Only the scenario of this name.
const ONLY: &str = "AMPHORA_GOLDENS_ONLY";

/// The probe as an image that docker and amphora read, of one layer; the same for both executors.
fn image(wasm: bool) -> Image {
    let target = if wasm {
        "wasm32-wasip1"
    } else {
        "x86_64-unknown-linux-musl"
    };
    let program = fs::read(probe(target)).expect("probe");
    let config = serde_json::json!({
        "Entrypoint": ["/probe"], "Env": ["PATH=/", "FROM_IMAGE=yes"], "Labels": { "of": "image" },
        "WorkingDir": "/", "ExposedPorts": { "80/tcp": {} },
    });
    let entries = [
        dir("tmp", 0o1777),
        dir("data", 0o755),
        file("data/seed", 0o644, "from image\n"),
        file("probe", 0o755, program),
    ];
    let image = Image::new("probe:latest", config).layer(&entries, Wrap::Plain);
    if wasm {
        image.platform("wasi", "wasm")
    } else {
        image
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The scenario files, by name.
fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder())
        .expect("goldens")
        .map(|entry| entry.expect("goldens").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .filter(|p| std::env::var(ONLY).map_or(true, |only| path(p).contains(&only)))
        .collect();
    files.sort();
    files
}

fn name(file: &Path) -> String {
    file.file_stem()
        .expect("name")
        .to_string_lossy()
        .into_owned()
}

/// Waits until nobody removes a container any more: Docker's client waits for that, ours only for the
/// container's name.
fn removed(s: &Sandbox) {
    wait_until("removals to end", SETTLE, || {
        let running = s.run(&["ps", "-q"]).ok().lines().count();
        crate::leak::keepers() <= running
    });
}

/// Plays every scenario with amphora and compares.
fn compare(kind: &str) {
    let mut s = Sandbox::new();
    let archive = s.dir.join("probe.tar");
    image(kind == "wasm").write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    s.run(&["run", "--rm", "probe"]).ok();
    s.run(&["network", "ls", "-q"]).ok();
    s.settle();
    s.mark();
    let mut differences = Differences::read(&folder().join("differences.md"), kind);
    let mut wrong = Vec::new();
    for file in files() {
        let player = Player::amphora(&s);
        for part in parse(&fs::read_to_string(&file).expect("scenario")) {
            let Part::Step(step) = part else { continue };
            let Some(said) = player.play(&step.action) else {
                continue;
            };
            if step.line.contains(" --rm") {
                removed(&s);
            }
            let left = differences.explain(&name(&file), &step.recorded, said);
            if !left.is_empty() {
                wrong.push(format!(
                    "{}: {}\n{}",
                    name(&file),
                    step.line,
                    left.join("\n")
                ));
            }
        }
        player.clear();
    }
    if std::env::var(ONLY).is_err() {
        wrong.extend(differences.unused());
    }
    assert!(
        wrong.is_empty(),
        "\n{}\n\n{} differences\n",
        wrong.join("\n"),
        wrong.len()
    );
}

#[test]
fn a_linux_container_answers_as_docker_s() {
    compare("linux");
}

#[test]
fn a_wasm_container_answers_as_docker_s() {
    compare("wasm");
}

/// The files are as the recorder writes them; with a tree of peers it writes them.
#[test]
fn answers_are_recorded() {
    if let Ok(tree) = std::env::var(RECORD) {
        record(Path::new(&tree));
    }
    let mut steps = 0;
    for file in files() {
        let text = fs::read_to_string(&file).expect("scenario");
        let parts = parse(&text);
        assert_eq!(render(&parts), text, "{}", file.display());
        steps += parts
            .iter()
            .filter(|p| matches!(p, Part::Step(s) if s.action.says()))
            .count();
    }
    assert!(
        std::env::var(ONLY).is_ok() || steps >= 150,
        "{steps} steps are too few"
    );
}

fn record(tree: &Path) {
    let s = Sandbox::new();
    let docker = Dockerd::start_in(&s, tree);
    let archive = s.dir.join("probe.tar");
    image(false).write_docker(&archive);
    docker.docker(&["load", "-q", "-i", path(&archive)]).ok();
    for file in files() {
        let player = Player::docker(&s, &docker);
        let text = fs::read_to_string(&file).expect("scenario");
        let steps: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with(['|', '!', '?']))
            .collect();
        let mut parts = parse(&steps.join("\n"));
        for part in &mut parts {
            let Part::Step(step) = part else { continue };
            step.recorded = player.play(&step.action).unwrap_or_default();
            let came = step.action.says() || step.recorded.is_empty();
            assert!(
                came,
                "{}: it never came:\n{}",
                step.line,
                step.recorded.join("\n")
            );
        }
        player.clear();
        fs::write(&file, render(&parts)).expect("scenario");
    }
    let both = "client {{.Client.Version}}, daemon {{.Server.Version}}";
    let versions = docker.docker(&["version", "--format", both]).ok();
    fs::write(folder().join("versions"), versions).expect("versions");
    docker.stop();
}
