//! Every flag that the docker client prints for a command that amphora has: it works and a test
//! shows it, or it is refused by its name. There is no third state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::sandbox::Sandbox;

/// Lines `COMMAND --FLAG works MODULE::TEST` and `COMMAND --FLAG refused`.
const TABLE: &str = include_str!("flags.txt");

/// Groups whose commands are looked at, and commands without a group.
const GROUPS: [&str; 5] = ["container", "image", "network", "system", "volume"];
const ALONE: [&str; 2] = ["inspect", "version"];

fn text(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn docker(words: &[&str]) -> Option<String> {
    text(Command::new("docker").args(words).arg("--help"))
}

fn ours(s: &Sandbox, words: &[&str]) -> Option<String> {
    text(s.command(words).arg("--help"))
}

/// The names of a group's commands in the client's help.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    list.lines()
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The long flags of a command's help.
fn flags(help: &str) -> BTreeSet<String> {
    help.lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let line = match line.as_bytes() {
                [b'-', short, b',', b' ', ..] if *short != b'-' => line.get(4..)?,
                _ => line,
            };
            let flag = line.strip_prefix("--")?;
            let end = flag
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                .unwrap_or(flag.len());
            Some(format!("--{}", flag.get(..end)?))
        })
        .collect()
}

/// What the table says: command and flag, and the test that shows it works.
fn table() -> BTreeMap<(String, String), Option<String>> {
    let mut out = BTreeMap::new();
    for line in TABLE
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let (left, right) = line.split_once(" --").expect("a flag");
        let mut words = right.split_whitespace();
        let flag = format!("--{}", words.next().expect("a flag"));
        let test = match (words.next(), words.next()) {
            (Some("works"), Some(test)) => Some(test.to_owned()),
            (Some("refused"), None) => None,
            _ => panic!("no row: {line}"),
        };
        let double = out.insert((left.to_owned(), flag), test);
        assert!(double.is_none(), "two rows: {line}");
    }
    out
}

/// Whether there is a test of this name.
fn exists(test: &str) -> bool {
    let (module, name) = test.rsplit_once("::").expect("module::test");
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it")
        .join(format!("{module}.rs"));
    let source = std::fs::read_to_string(path).unwrap_or_default();
    // Tests of both executors are functions of an image that a macro names twice.
    source.contains(&format!("#[test]\nfn {name}()"))
        || ["image", "kind"]
            .iter()
            .any(|of| source.contains(&format!("\nfn {name}({of}: &str)")))
}

#[test]
fn every_flag_works_or_is_refused() {
    // The client alone: `docker version` would ask for a daemon too.
    if docker(&[]).is_none() {
        println!("SKIPPED: flags::every_flag_works_or_is_refused: no docker client");
        return;
    }
    let s = Sandbox::ready();
    let table = table();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut all: Vec<Vec<String>> = ALONE.iter().map(|c| vec![(*c).to_owned()]).collect();
    for group in GROUPS {
        let help = docker(&[group]).expect("help of a group");
        all.extend(
            commands(&help)
                .into_iter()
                .map(|c| vec![group.to_owned(), c]),
        );
    }
    for command in all {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let (Some(theirs), Some(help)) = (docker(&words), ours(&s, &words)) else {
            continue;
        };
        let have = flags(&help);
        let name = command.join(" ");
        for flag in flags(&theirs) {
            let key = (name.clone(), flag.clone());
            seen.insert(key.clone());
            match table.get(&key) {
                None => wrong.push(format!("{name} {flag}: no row")),
                Some(Some(_)) if !have.contains(&flag) => {
                    wrong.push(format!("{name} {flag}: works by its row, and is not there"));
                }
                Some(Some(test)) if !exists(test) => {
                    wrong.push(format!("{name} {flag}: there is no test {test}"));
                }
                Some(Some(_)) => {}
                Some(None) => {
                    let mut args = words.clone();
                    args.push(&flag);
                    let said = s.run(&args);
                    let want = format!("flag {flag} is not supported");
                    if said.code != 125 || !said.stderr.contains(&want) {
                        wrong.push(format!(
                            "{name} {flag}: is not refused: {}",
                            said.stderr.trim()
                        ));
                    }
                }
            }
        }
    }
    for (name, flag) in table.keys().filter(|k| !seen.contains(*k)) {
        wrong.push(format!("{name} {flag}: a row for what is not there"));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
