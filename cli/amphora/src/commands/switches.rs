//! Switches with a value, as in `--rm=true` and `-it=false`, which the parser does not know.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use super::usage;

/// The switches of a command line, out of the way: each one that was given stands with its long
/// name and its last value behind the command, all other words follow as they are. What is wrong
/// is left where it stands, without the letters before it.
///
/// Nothing when there is no such command.
pub(super) fn settle(args: &[OsString]) -> Option<Vec<OsString>> {
    let (leaf, at) = leaf(args)?;
    let (head, tail) = args.split_at_checked(at)?;
    let mut walk = Walk {
        leaf: &leaf,
        given: Vec::new(),
        rest: Vec::new(),
    };
    let mut words = tail.iter();
    while let Some(word) = words.next() {
        match walk.word(word) {
            Next::Word => {}
            Next::Value => walk.rest.extend(words.next().cloned()),
            Next::End => break,
        }
    }
    let mut settled = head.to_vec();
    settled.extend(walk.given.iter().filter_map(|(arg, on)| plain(arg, *on)));
    settled.append(&mut walk.rest);
    settled.extend(words.cloned());
    Some(settled)
}

/// The command that is called, built, and where the words behind its name begin.
pub(super) fn leaf(args: &[OsString]) -> Option<(Command, usize)> {
    let first = usage::place(args)?;
    let command = usage::command(args);
    let mut at = <super::Cli as clap::CommandFactory>::command();
    let mut count = 0;
    for name in command.split(' ') {
        at = below(&at, name)?;
        count += 1;
    }
    Some((at, first + count))
}

/// A command of a group, built: what is deferred is not there before.
pub(super) fn below(group: &Command, name: &str) -> Option<Command> {
    let mut found = group.find_subcommand(name)?.clone();
    found.build();
    Some(found)
}

/// A truth value as Go reads it.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a flag needs no value. One that takes one needs it behind `=`.
fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue) || arg.is_require_equals_set()
}

/// A switch as the parser wants it; nothing for one that is off.
fn plain(arg: &Arg, on: bool) -> Option<OsString> {
    let name = arg.get_long()?;
    match arg.get_action() {
        ArgAction::SetTrue => on.then(|| format!("--{name}").into()),
        _ => Some(format!("--{name}={on}").into()),
    }
}

/// What comes after a word.
enum Next {
    /// Another word.
    Word,
    /// The value of the word's flag.
    Value,
    /// Nothing that is a flag, or that matters.
    End,
}

struct Walk<'a> {
    leaf: &'a Command,
    given: Vec<(&'a Arg, bool)>,
    rest: Vec<OsString>,
}

impl<'a> Walk<'a> {
    fn word(&mut self, word: &OsString) -> Next {
        let text = word.to_str().unwrap_or_default();
        if let Some(long) = text.strip_prefix("--").filter(|long| !long.is_empty()) {
            self.long(word, long)
        } else if let Some(letters) = text.strip_prefix('-').filter(|l| !l.is_empty()) {
            self.letters(letters)
        } else {
            self.rest.push(word.clone());
            let mut arguments = self.leaf.get_positionals();
            if text == "--" || arguments.any(Arg::is_trailing_var_arg_set) {
                Next::End
            } else {
                Next::Word
            }
        }
    }

    fn long(&mut self, word: &OsString, text: &str) -> Next {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let named = |arg: &&Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(name) || aliases.contains(&name)
        };
        let found = self.leaf.get_arguments().find(named);
        let Some(arg) = found else {
            self.rest.push(word.clone());
            return Next::End;
        };
        if is_switch(arg)
            && let Some(on) = truth(value.unwrap_or("true"))
        {
            self.set(arg, on);
            return Next::Word;
        }
        self.rest.push(word.clone());
        match arg.get_action() {
            ArgAction::Set | ArgAction::Append if is_switch(arg) => Next::End,
            ArgAction::Set | ArgAction::Append if value.is_some() => Next::Word,
            ArgAction::Set | ArgAction::Append => Next::Value,
            _ => Next::End,
        }
    }

    fn letters(&mut self, letters: &str) -> Next {
        let mut left = letters.chars();
        let mut whole = letters;
        while let Some(letter) = left.next() {
            let after = left.as_str();
            let mut flags = self.leaf.get_arguments();
            let found = flags.find(|arg| arg.get_short() == Some(letter));
            match found {
                Some(arg) if is_switch(arg) => {
                    // With nothing behind it, Go takes the sign for a letter.
                    let value = after.strip_prefix('=').filter(|value| !value.is_empty());
                    let Some(on) = truth(value.unwrap_or("true")) else {
                        let name = arg.get_long().unwrap_or_default();
                        self.rest.push(format!("--{name}{after}").into());
                        return Next::End;
                    };
                    self.set(arg, on);
                    if value.is_some() {
                        return Next::Word;
                    }
                }
                found => {
                    self.rest.push(format!("-{whole}").into());
                    return match found.map(Arg::get_action) {
                        Some(ArgAction::Set | ArgAction::Append) if after.is_empty() => Next::Value,
                        Some(ArgAction::Set | ArgAction::Append) => Next::Word,
                        _ => Next::End,
                    };
                }
            }
            whole = after;
        }
        Next::Word
    }

    fn set(&mut self, arg: &'a Arg, on: bool) {
        self.given
            .retain(|(known, _)| known.get_id() != arg.get_id());
        self.given.push((arg, on));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn settled(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let words = settle(&words).unwrap_or_else(|| panic!("{line}: no command"));
        let words: Vec<&str> = words.iter().filter_map(|w| w.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn the_last_value_of_a_switch_counts() {
        for (line, wanted) in [
            ("run --rm --rm=false x", "run x"),
            ("run --rm=false --rm x", "run --rm x"),
            ("run --rm=T --rm=0 --rm=1 x", "run --rm x"),
            ("run -d=false x", "run x"),
            ("run -d=true x", "run --detach x"),
            ("run -it=false x", "run --interactive x"),
            ("run -ti=f -t x", "run --tty x"),
            ("exec -it --tty=false x y", "exec --interactive x y"),
            ("exec --tty=false -it x y", "exec --interactive --tty x y"),
            ("run -de A=b -t=0 x", "run --detach -e A=b x"),
            ("run -de=A=b x", "run --detach -e=A=b x"),
            ("run --name --rm --rm=0 x", "run --name --rm x"),
            (
                "run --sig-proxy=0 --init=1 x",
                "run --sig-proxy=false --init=true x",
            ),
            ("run --init --init=false x", "run --init=false x"),
            ("commit -p=f x", "commit --pause=false x"),
            ("ps --all=false -aq --no-trunc=0", "ps --all --quiet"),
            ("rm x -f --force=false", "rm x"),
            ("container rm -f=1 x", "container rm --force x"),
        ] {
            let line = format!("amphora --root /r {line}");
            assert_eq!(
                settled(&line),
                format!("amphora --root /r {wanted}"),
                "{line}"
            );
        }
    }

    #[test]
    fn words_of_a_container_are_no_switches() {
        for line in [
            "amphora run x --rm=false -d=true",
            "amphora run -- x --rm=false",
            "amphora exec x y --tty=false",
            "amphora rm -- --force=false",
        ] {
            assert_eq!(settled(line), line);
        }
    }

    #[test]
    fn what_is_wrong_stays_where_it_stands() {
        for (line, wanted) in [
            ("run -d=maybe x", "run --detach=maybe x"),
            ("run -it=maybe -d x", "run --interactive --tty=maybe -d x"),
            ("run --rm= x", "run --rm= x"),
            ("run -d= x", "run --detach -= x"),
            ("run -dy=false x", "run --detach -y=false x"),
            ("run -dm", "run --detach -m"),
            ("run --odd --rm=0 x", "run --odd --rm=0 x"),
        ] {
            assert_eq!(
                settled(&format!("amphora {line}")),
                format!("amphora {wanted}")
            );
        }
        let unknown = ["amphora", "odd", "--rm=0"].map(OsString::from);
        assert_eq!(settle(&unknown), None);
    }

    /// Settled switches are written with their long names.
    #[test]
    fn each_switch_has_a_long_name() {
        fn check(group: &Command) -> usize {
            let mut checked = 0;
            for command in group.get_subcommands() {
                let mut command = command.clone();
                command.build();
                for arg in command.get_arguments().filter(|arg| is_switch(arg)) {
                    assert!(arg.get_long().is_some(), "{} {arg}", command.get_name());
                    checked += 1;
                }
                checked += check(&command);
            }
            checked
        }
        assert!(check(&Cli::command()) > 50);
    }
}
