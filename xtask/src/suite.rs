//! Runs the tests, keeps their closing lines and counts what was skipped.
//!
//! A test that cannot run here prints `SKIPPED: <test>: <reason>` and returns. The count is
//! compared with the committed number, so that a test does not go missing in silence. One that
//! belongs into the machine of `cargo xtask machine` prints `MACHINE: <test>` instead: that stage
//! takes no such line.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

const SKIPPED_FILE: &str = ".ci/skipped";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    ignored: usize,
    pub(crate) skipped: Vec<String>,
    /// Left to the machine.
    pub(crate) left: Vec<String>,
}

impl Counts {
    /// Takes a line of the runner's output in; true when it is one to show again at the end.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        for (mark, list) in [
            ("SKIPPED: ", &mut self.skipped),
            ("MACHINE: ", &mut self.left),
        ] {
            let Some(at) = line.find(mark) else { continue };
            let what = line.get(at..).unwrap_or(line).trim();
            if !list.iter().any(|seen| seen == what) {
                list.push(what.to_owned());
            }
        }
        if !line.starts_with("test result: ") {
            return false;
        }
        let number = |name: &str| -> usize {
            let before = line.split(name).next().unwrap_or_default();
            before
                .split_whitespace()
                .next_back()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        self.passed += number(" passed");
        self.failed += number(" failed");
        self.ignored += number(" ignored");
        true
    }
}

/// Runs `cargo test` over the workspace; `args` go to cargo.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let mut list = vec!["test", "--release", "--no-fail-fast"];
    if !args
        .iter()
        .any(|arg| arg == "-p" || arg.starts_with("--package"))
    {
        list.push("--workspace");
    }
    let split = args
        .iter()
        .position(|arg| arg == "--")
        .unwrap_or(args.len());
    let (to_cargo, to_tests) = args.split_at(split);
    list.extend(to_cargo.iter().map(String::as_str));
    // Skips are printed by tests that pass, which the runner would otherwise swallow.
    list.extend(["--", "--show-output"]);
    list.extend(to_tests.iter().skip(1).map(String::as_str));
    println!("xtask: cargo {}", list.join(" "));
    let mut child = crate::cargo(root, &list)
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to run cargo test")?;
    let output = child.stdout.take().context("piped")?;
    let mut counts = Counts::default();
    let mut closing = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if counts.read(&line) {
            closing.push(line);
        }
    }
    let status = child.wait()?;
    conclude(root, &counts, &closing, to_cargo.is_empty())?;
    ensure!(status.success(), "cargo test ended with {status}");
    Ok(())
}

fn conclude(root: &Path, counts: &Counts, closing: &[String], whole: bool) -> Result<()> {
    println!("\n{}", closing.join("\n"));
    for skipped in &counts.skipped {
        println!("{skipped}");
    }
    let Counts {
        passed,
        failed,
        ignored,
        skipped,
        left,
    } = counts;
    let skipped = skipped.len() + ignored;
    let verdict = if whole {
        compare(root, skipped)
    } else {
        Ok(())
    };
    let left = left.len();
    println!(
        "{passed} passed, {failed} failed, {skipped} skipped, {left} left to cargo xtask machine"
    );
    verdict?;
    if *failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

/// Compares with the committed number, as root: others skip whatever needs root.
fn compare(root: &Path, skipped: usize) -> Result<()> {
    let path = root.join(SKIPPED_FILE);
    let text = std::fs::read_to_string(&path).context(SKIPPED_FILE)?;
    let allowed: usize = text.trim().parse().context(SKIPPED_FILE)?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find(|line| line.starts_with("Uid:"));
    let is_root = uid.and_then(|line| line.split_whitespace().nth(2)) == Some("0");
    if is_root && skipped > allowed {
        bail!("{skipped} tests were skipped; {SKIPPED_FILE} allows {allowed}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut counts = Counts::default();
        let line = "test result: ok. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert!(counts.read(line));
        assert!(counts.read(line));
        assert_eq!((counts.passed, counts.failed, counts.ignored), (6, 2, 4));
    }

    #[test]
    fn a_skip_is_counted_once_wherever_it_stands_in_a_line() {
        let mut counts = Counts::default();
        assert!(!counts.read("test a ... SKIPPED: net::veth: no root"));
        assert!(!counts.read("SKIPPED: net::veth: no root"));
        assert_eq!(counts.skipped, ["SKIPPED: net::veth: no root"]);
        assert!(!counts.read("MACHINE: machine::boot"));
        assert_eq!((counts.skipped.len(), counts.left.len()), (1, 1));
    }
}
