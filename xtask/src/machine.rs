//! Boots a machine with systemd and pure cgroup v2 and runs there what only it can show.
//!
//! The machine is emulated (qemu without KVM), so nothing here is about time. Its first disk is made
//! once and kept, its second holds the programs under test, each under the path it has here, since
//! that path is compiled in.

mod boot;
mod payload;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::suite::Counts;

/// Longest the machine may run.
const DEADLINE: Duration = Duration::from_secs(11 * 60);
const SCRIPT: &str = "xtask/machine.sh";
const PACKAGES: [&str; 3] = ["e2fsprogs", "mmdebstrap", "qemu-system-x86"];

/// A test program, and which of its tests are run.
pub(crate) struct Tests {
    package: &'static str,
    target: &'static str,
    filters: &'static [&'static str],
}

/// What is run there when nothing else is asked for.
const STAGE: [Tests; 2] = [
    Tests {
        package: "amphora-cgroup",
        target: "it",
        filters: &["v2::", "limits::"],
    },
    Tests {
        package: "amphora",
        target: "it",
        filters: &[
            "machine::",
            "v2::",
            "runc::ours::",
            "boot::a_service_that_ends",
            "limits::ours::",
            "limits::scopes::",
        ],
    },
];

/// Runs the stage, only some tests of it by name, or with `--` first a command.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the machine's programs are built for x86_64 only"
    );
    crate::setup::packages(&PACKAGES)?;
    let place = crate::demo::target_dir(root).join("machine");
    disk(root, &place)?;
    if let Some(("--", command)) = args
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return one_command(root, &place, command);
    }
    let mut programs = Vec::new();
    for tests in &STAGE {
        let filters = match args {
            [] => tests.filters.iter().map(|f| (*f).to_owned()).collect(),
            given => given.to_vec(),
        };
        programs.push(payload::Program {
            path: built(root, tests)?,
            name: format!("{}/{}", tests.package, tests.target),
            filters,
        });
    }
    let guests = crate::demo::guests(root, &guests_dir(root))?;
    let script = payload::tests(&programs);
    let mut files: Vec<PathBuf> = programs.iter().map(|p| p.path.clone()).collect();
    files.extend(guests);
    files.push(amphora(root));
    files.push(root.join("examples/systemd/amphora.service"));
    let payload = payload::write(&place, &files, &script)?;
    let mut seen = Seen::default();
    boot::run(&place, &payload, DEADLINE, |line| seen.read(line))?;
    seen.conclude(programs.len())?;
    let idle = |line: &&String| line.contains(" ok. 0 passed");
    match seen.closing.iter().find(idle) {
        Some(_) if args.is_empty() => bail!("a program of the stage had no test to run"),
        _ => Ok(()),
    }
}

/// What the console said.
#[derive(Debug, Default)]
struct Seen {
    counts: Counts,
    closing: Vec<String>,
    codes: Vec<String>,
}

impl Seen {
    fn read(&mut self, line: &str) {
        if let Some(code) = line.strip_prefix(payload::CODE) {
            self.codes.push(code.to_owned());
        } else if self.counts.read(line) {
            self.closing.push(line.to_owned());
        }
    }

    fn conclude(&self, programs: usize) -> Result<()> {
        println!("\n{}", self.closing.join("\n"));
        for line in self.missed() {
            println!("{line}");
        }
        let Counts { passed, failed, .. } = &self.counts;
        let missed = self.missed().count();
        println!("machine: {passed} passed, {failed} failed, {missed} skipped");
        self.verdict(programs)
    }

    fn missed(&self) -> impl Iterator<Item = &String> {
        self.counts.skipped.iter().chain(&self.counts.left)
    }

    /// A program that did not end, a test that failed, was left out or never ran: each is a failure.
    fn verdict(&self, programs: usize) -> Result<()> {
        let ended = self.codes.len().min(self.closing.len());
        ensure!(
            ended == programs,
            "{ended} of {programs} test programs ended in the machine"
        );
        let Counts { passed, failed, .. } = &self.counts;
        ensure!(*failed == 0, "{failed} tests failed in the machine");
        ensure!(
            self.codes.iter().all(|code| code == "0"),
            "codes {:?}",
            self.codes
        );
        ensure!(
            self.missed().next().is_none(),
            "the machine is where nothing is skipped"
        );
        ensure!(*passed > 0, "no test has such a name");
        Ok(())
    }
}

fn one_command(root: &Path, place: &Path, command: &[String]) -> Result<()> {
    ensure!(!command.is_empty(), "usage: cargo xtask machine -- COMMAND");
    build(root, &["build", "--release", "--package", "amphora"])?;
    let script = payload::command(&amphora(root), &command.join(" "));
    let payload = payload::write(place, &[amphora(root)], &script)?;
    let mut code = None;
    boot::run(place, &payload, DEADLINE, |line| {
        if let Some(said) = line.strip_prefix(payload::CODE) {
            code = Some(said.to_owned());
        }
    })?;
    match code.as_deref() {
        Some("0") => Ok(()),
        Some(code) => bail!("the command ended with {code}"),
        None => bail!("the command did not end"),
    }
}

/// Makes the first disk unless it was made by the same script.
fn disk(root: &Path, place: &Path) -> Result<()> {
    let script = root.join(SCRIPT);
    let text = std::fs::read(&script).context(SCRIPT)?;
    let sum: String = Sha256::digest(&text)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let stamp = place.join("made-by");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == sum) {
        return Ok(());
    }
    println!("xtask: making the machine's disk");
    std::fs::create_dir_all(place)?;
    let status = crate::setup::as_root(&script).arg(place).status();
    let status = status.with_context(|| format!("failed to run {script:?}"))?;
    ensure!(status.success(), "{SCRIPT} ended with {status}");
    std::fs::write(&stamp, sum)?;
    Ok(())
}

fn build(root: &Path, args: &[&str]) -> Result<()> {
    let status = crate::cargo(root, args).status()?;
    ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}

fn amphora(root: &Path) -> PathBuf {
    crate::demo::target_dir(root)
        .join(crate::demo::LINUX)
        .join("release/amphora")
}

/// Where the end-to-end tests look for the probes.
fn guests_dir(root: &Path) -> PathBuf {
    crate::demo::target_dir(root)
        .join(crate::demo::LINUX)
        .join("tmp/guests")
}

/// Builds a test program and returns its path.
fn built(root: &Path, tests: &Tests) -> Result<PathBuf> {
    let args = [
        "test",
        "--release",
        "--no-run",
        "--package",
        tests.package,
        "--test",
        tests.target,
        "--message-format",
        "json-render-diagnostics",
    ];
    println!("xtask: cargo {}", args.join(" "));
    let output = crate::cargo(root, &args)
        .stderr(Stdio::inherit())
        .output()
        .context("failed to run cargo")?;
    ensure!(output.status.success(), "cargo {} failed", args.join(" "));
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut found = messages.filter_map(|message| {
        let is_it = message.pointer("/target/name")?.as_str()? == tests.target;
        let path = message.get("executable")?.as_str()?;
        is_it.then(|| PathBuf::from(path))
    });
    found.next().context("cargo names no test program")
}

/// A command with its output thrown away.
fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null())
}

#[cfg(test)]
mod tests {
    use super::Seen;

    const RESULT: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured";

    fn conclude(lines: &[&str]) -> Result<(), String> {
        let mut seen = Seen::default();
        lines.iter().for_each(|line| seen.read(line));
        seen.verdict(1).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_whole_run_passes() {
        assert_eq!(conclude(&[RESULT, "machine: code 0"]), Ok(()));
        for (lines, reason) in [
            (&[][..], "0 of 1"),
            (&[RESULT], "0 of 1"),
            (&["machine: code 0"], "0 of 1"),
            (&[RESULT, "machine: code 101"], "codes"),
            (&["SKIPPED: a: why", RESULT, "machine: code 0"], "skipped"),
            (&["MACHINE: a", RESULT, "machine: code 0"], "skipped"),
            (
                &["test result: ok. 0 passed; 0 failed", "machine: code 0"],
                "no test",
            ),
        ] {
            let error = conclude(lines).expect_err("it should fail");
            assert!(error.contains(reason), "{lines:?}: {error}");
        }
    }
}
