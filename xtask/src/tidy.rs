//! Habits that no lint knows.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::edges;
use crate::source::{Source, code, files, functions};

const FILE_LINES: usize = 1000;
const FUNCTION_LINES: usize = 70;

/// Programs that the engine must not run: it speaks to the kernel itself.
const SHELL_OUTS: [&str; 14] = [
    "ip", "nft", "mount", "umount", "iptables", "sh", "bash", "tar", "gzip", "cp", "rm",
    "modprobe", "sysctl", "nsenter",
];
/// Rooms in which the rule holds (tests excepted).
const ENGINE_ROOMS: [&str; 4] = ["runtime/", "images/", "cli/", "shims/"];

/// Paths of the machine somebody happens to work on.
const MACHINE_PATHS: [&str; 3] = ["/work/", "/Users/", "/root/.cargo"];

/// Exceptions to the length limits: `path` or `path function`, one per line, with a reason behind
/// a `#`.
const EXCEPTIONS: &str = include_str!("../tidy/long.txt");

/// Runs every check and lists what it found.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut problems = edges::check(root).context("edges")?;
    let files = files(root)?;
    for file in &files {
        problems.extend(check_file(file));
    }
    for problem in &problems {
        println!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("tidy found {} problems", problems.len());
    }
    println!("tidy: {} files, nothing found", files.len());
    Ok(())
}

fn is_exception(what: &str) -> bool {
    EXCEPTIONS
        .lines()
        .filter_map(|line| line.split('#').next())
        .any(|line| line.trim() == what)
}

fn check_file(file: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    if file.path.starts_with("xtask/src/") {
        // These files name what they look for.
        problems.extend(check_sizes(file));
        return problems;
    }
    problems.extend(check_text(file));
    if file.path.ends_with(".rs") {
        problems.extend(check_sizes(file));
        problems.extend(check_rust(file));
    }
    problems
}

fn check_sizes(file: &Source) -> Vec<String> {
    let path = &file.path;
    let mut problems = Vec::new();
    if !path.ends_with(".rs") {
        return problems;
    }
    let lines = file.text.lines().count();
    if lines > FILE_LINES && !is_exception(path) {
        problems.push(format!("{path}: {lines} lines, the limit is {FILE_LINES}"));
    }
    for function in functions(&code(&file.text)) {
        let (name, length) = (&function.name, function.lines);
        if length > FUNCTION_LINES && !is_exception(&format!("{path} {name}")) {
            let line = function.line;
            problems.push(format!(
                "{path}:{line}: fn {name} has {length} lines, the limit is {FUNCTION_LINES}"
            ));
        }
    }
    problems
}

/// What holds in every text of the repository.
fn check_text(file: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let mut problem = |what: String| {
            problems.push(format!("{}:{}: {what}", file.path, index + 1));
        };
        for word in ["TODO", "FIXME"] {
            if has_word(line, word) && !names_issue(line) {
                problem(format!("{word} without an issue (write {word}(#12))"));
            }
        }
        for path in MACHINE_PATHS {
            if names_path(line, path) {
                problem(format!("a path of one machine: {path}"));
            }
        }
    }
    problems
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|part| part == word)
}

fn names_issue(line: &str) -> bool {
    line.split('#')
        .skip(1)
        .any(|after| after.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether the line holds the path from its root: `docs/work/a` has none.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '.' | '}' | '_' | '-' | '*')))
    })
}

fn check_rust(file: &Source) -> Vec<String> {
    let code = code(&file.text);
    let mut problems = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut problem = |what: &str| {
            problems.push(format!("{}:{}: {what}", file.path, index + 1));
        };
        let line: String = line.split_whitespace().collect();
        if line.contains("#[allow(") || line.contains("#![allow(") {
            problem("a bare allow: use #[expect(lint, reason = \"…\")]");
        }
        if line.contains("#[ignore") {
            problem("an ignored test: skip loudly at run time instead");
        }
    }
    problems.extend(check_shell_outs(file));
    problems
}

fn check_shell_outs(file: &Source) -> Vec<String> {
    let in_engine = ENGINE_ROOMS.iter().any(|room| file.path.starts_with(room));
    if !in_engine || file.path.contains("/tests/") {
        return Vec::new();
    }
    let tests = file.text.find("#[cfg(test)]").unwrap_or(file.text.len());
    let shipped = file.text.get(..tests).unwrap_or_default();
    let mut problems = Vec::new();
    for (index, line) in shipped.lines().enumerate() {
        for (_, after) in line
            .match_indices("Command::new(\"")
            .map(|(at, found)| (at, line.get(at + found.len()..).unwrap_or_default()))
        {
            let program = after.split('"').next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            if SHELL_OUTS.contains(&program) {
                problems.push(format!("{}:{}: runs {program}", file.path, index + 1));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_note_needs_an_issue() {
        assert_eq!(check_text(&source("a.rs", "// TODO later")).len(), 1);
        assert!(check_text(&source("a.rs", "// TODO(#12) later")).is_empty());
    }

    #[test]
    fn machine_paths_are_found_and_others_are_not() {
        assert_eq!(check_text(&source("a.md", "see /Users/me/x")).len(), 1);
        assert!(check_text(&source("a.md", "upper/work/x and overlay ${d}/work/")).is_empty());
    }

    #[test]
    fn shell_outs_are_for_tests_only() {
        let line = "let c = Command::new(\"/sbin/ip\");\n";
        assert_eq!(
            check_shell_outs(&source("runtime/a/src/lib.rs", line)).len(),
            1
        );
        assert!(check_shell_outs(&source("runtime/a/tests/it/main.rs", line)).is_empty());
        assert!(check_shell_outs(&source("benches/src/lib.rs", line)).is_empty());
        let tested = format!("#[cfg(test)]\nmod tests {{ {line} }}");
        assert!(check_shell_outs(&source("runtime/a/src/lib.rs", &tested)).is_empty());
    }

    #[test]
    fn bare_allows_and_ignored_tests_are_found() {
        let text = "#[allow(dead_code)]\nfn a() {}\n#[ignore]\nfn b() {}\n// #[allow(x)]\n";
        assert_eq!(check_rust(&source("runtime/a/src/lib.rs", text)).len(), 2);
    }

    #[test]
    fn a_long_function_is_named() {
        let text = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(80));
        let found = check_sizes(&source("a.rs", &text));
        assert!(
            found
                .iter()
                .any(|problem| problem.contains("fn long has 82 lines")),
            "{found:?}"
        );
    }
}
