//! `help COMMAND`, which says what `COMMAND --help` says.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, switches, unsupported, usage};
use crate::ui;

/// Answers a command line that asks for help so; nothing for all others.
pub(super) fn asked(args: &[OsString]) -> Option<ExitCode> {
    let at = usage::place(args)?;
    let (verb, topic) = args.get(at..)?.split_first()?;
    if verb != "help" {
        return None;
    }
    let is_help = |word: &OsString| word == "--help" || word == "-h";
    let is_flag = |word: &&OsString| word.as_encoded_bytes().starts_with(b"-");
    let topic: Vec<OsString> = topic.iter().filter(|w| !is_help(w)).cloned().collect();
    if let Some(flag) = topic.iter().find(is_flag) {
        let text = unsupported::unknown(&flag.to_string_lossy(), args);
        usage::flag_error(&text, args);
        return Some(ExitCode::from(125));
    }
    if let Some(unknown) = unknown(&topic) {
        ui::error(&format!("unknown help topic: {unknown}"));
        return Some(ExitCode::from(1));
    }
    let mut words = args.get(..at)?.to_vec();
    words.extend(topic);
    words.push("--help".into());
    super::parse(&words)
        .err()
        .map(|(error, words)| unsupported::explain(&error, &words))
}

/// The words of a topic that name no command.
fn unknown(topic: &[OsString]) -> Option<String> {
    let mut at = Cli::command();
    for (i, word) in topic.iter().enumerate() {
        let Some(found) = word.to_str().and_then(|name| switches::below(&at, name)) else {
            let left: Vec<_> = topic.iter().skip(i).map(|w| w.to_string_lossy()).collect();
            return Some(left.join(" "));
        };
        at = found;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_a_command() {
        let said = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            unknown(&words)
        };
        for line in ["", "run", "container", "container ls", "system df"] {
            assert_eq!(said(line), None, "{line}");
        }
        assert_eq!(said("odd").as_deref(), Some("odd"));
        assert_eq!(said("odd run").as_deref(), Some("odd run"));
        assert_eq!(said("run extra").as_deref(), Some("extra"));
        assert_eq!(said("container odd").as_deref(), Some("odd"));
    }
}
