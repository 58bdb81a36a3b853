//! The repository's files, and a reading of Rust that is just deep enough to tell code from
//! comments and strings and to find where functions begin and end.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file of the repository.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every tracked or new file that is text and not ignored.
pub(crate) fn files(root: &Path) -> Result<Vec<Source>> {
    let args = [
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ];
    let output = Command::new("git").args(args).current_dir(root).output();
    let output = output.context("failed to run git")?;
    ensure!(output.status.success(), "git ls-files failed");
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = list.split('\0').filter(|path| !path.is_empty());
    Ok(paths
        .filter_map(|path| {
            let text = std::fs::read_to_string(root.join(path)).ok()?;
            Some(Source {
                path: path.to_owned(),
                text,
            })
        })
        .collect())
}

/// A function: its name, first line (from 1) and number of lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// The text with comments, strings and character literals blanked out, line by line as before.
pub(crate) fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skip = literal_or_comment(rest);
        if skip == 0 {
            out.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
        } else {
            let (gone, left) = rest.split_at_checked(skip).unwrap_or((rest, ""));
            out.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = left;
        }
        // `r#name` and suffixes of identifiers must not start a raw string.
        if next.is_alphanumeric() || next == '_' {
            let word = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            if skip == 0 {
                let (word, left) = rest.split_at(word);
                out.push_str(word);
                rest = left;
            }
        }
    }
    out
}

/// Length of the literal or comment at the beginning of `text`, or 0.
fn literal_or_comment(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |end| end + 2);
    }
    for prefix in ["\"", "b\"", "c\""] {
        if text.starts_with(prefix) {
            return prefix.len() + quoted(text.get(prefix.len()..).unwrap_or_default(), '"');
        }
    }
    let raw = text.trim_start_matches(['b', 'c']);
    if text.len() - raw.len() <= 1 && raw.starts_with('r') {
        return raw_string(raw).map_or(0, |length| length + text.len() - raw.len());
    }
    if let Some(after) = text.strip_prefix('\'') {
        return character(after).map_or(0, |length| length + 1);
    }
    0
}

fn quoted(text: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == end => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)? + end.len();
    Some(1 + hashes + 1 + length)
}

/// A character literal after its opening quote; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    if text.starts_with('\\') {
        return Some(quoted(text, '\''));
    }
    let first = text.chars().next()?;
    let after = text.get(first.len_utf8()..)?;
    after.starts_with('\'').then(|| first.len_utf8() + 1)
}

/// The functions with a body in a text of [`code`].
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let lines: Vec<&str> = code.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        if let Some(length) = body_lines(lines.get(index..).unwrap_or_default()) {
            found.push(Function {
                name,
                line: index + 1,
                lines: length,
            });
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    const QUALIFIERS: [&str; 7] = [
        "pub",
        "const",
        "async",
        "unsafe",
        "extern",
        "pub(crate)",
        "pub(super)",
    ];
    let mut words = line.split_whitespace();
    loop {
        match words.next()? {
            "fn" => break,
            word if QUALIFIERS.contains(&word) => {}
            _ => return None,
        }
    }
    let name = words.next()?;
    let end = name
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(name.len());
    name.get(..end).map(str::to_owned)
}

/// Lines from a signature to the brace that closes its body; `None` for a declaration.
fn body_lines(lines: &[&str]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (index, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '(' | '[' if depth == 0 => brackets += 1,
                ')' | ']' if depth == 0 => brackets = brackets.saturating_sub(1),
                ';' if depth == 0 && brackets == 0 => return None,
                '{' => depth += 1,
                '}' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return Some(index + 1);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked_and_lines_kept() {
        let text = "let a = \"x { \\\" y\"; // {\nlet b = 'c'; let d = r#\"}\"#;\nfn f<'a>() {}\n";
        let code = code(text);
        assert_eq!(code.lines().count(), 3);
        assert!(!code.contains('x') && !code.contains("// {"));
        assert_eq!(code.matches('{').count(), 1);
        assert!(code.contains("<'a>"));
    }

    #[test]
    fn a_function_is_as_long_as_its_body() {
        let text = "pub(crate) fn first(a: [u8; 3])\n    -> u8 {\n    if a { }\n}\ntrait T { fn no(); }\nfn two() {}\n";
        let found = functions(&code(text));
        let short: Vec<(&str, usize)> = found
            .iter()
            .map(|function| (function.name.as_str(), function.lines))
            .collect();
        assert_eq!(short, [("first", 4), ("two", 1)]);
    }

    #[test]
    fn a_declaration_has_no_body() {
        assert!(functions("    fn declared(&self) -> u8;\n").is_empty());
    }
}
