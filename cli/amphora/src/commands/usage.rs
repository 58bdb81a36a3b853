//! How each command is called, in Docker's words, and what is said of a call that is not so.

use std::ffi::OsString;

use crate::ui;

/// Groups of commands.
const GROUPS: [&str; 4] = ["container", "image", "system", "volume"];

/// What follows a command's name. Without a group: in any of them, or in none.
const CALLS: &[(&str, &str)] = &[
    ("attach", "[OPTIONS] CONTAINER"),
    ("commit", "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]"),
    ("container inspect", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("cp", "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-"),
    ("create", "[OPTIONS] IMAGE [COMMAND] [ARG...]"),
    ("df", "[OPTIONS]"),
    ("diff", "CONTAINER"),
    ("events", "[OPTIONS]"),
    ("exec", "[OPTIONS] CONTAINER COMMAND [ARG...]"),
    ("export", "[OPTIONS] CONTAINER"),
    ("history", "[OPTIONS] IMAGE"),
    ("image inspect", "[OPTIONS] IMAGE [IMAGE...]"),
    ("image ls", "[OPTIONS] [REPOSITORY[:TAG]]"),
    ("image rm", "[OPTIONS] IMAGE [IMAGE...]"),
    ("images", "[OPTIONS] [REPOSITORY[:TAG]]"),
    ("import", "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]"),
    ("info", "[OPTIONS]"),
    ("inspect", "[OPTIONS] NAME|ID [NAME|ID...]"),
    ("kill", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("load", "[OPTIONS]"),
    ("logs", "[OPTIONS] CONTAINER"),
    ("ls", "[OPTIONS]"),
    ("pause", "CONTAINER [CONTAINER...]"),
    ("port", "CONTAINER [PRIVATE_PORT[/PROTO]]"),
    ("prune", "[OPTIONS]"),
    ("ps", "[OPTIONS]"),
    ("pull", "[OPTIONS] NAME[:TAG|@DIGEST]"),
    ("rename", "CONTAINER NEW_NAME"),
    ("restart", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("rm", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("rmi", "[OPTIONS] IMAGE [IMAGE...]"),
    ("run", "[OPTIONS] IMAGE [COMMAND] [ARG...]"),
    ("save", "[OPTIONS] IMAGE [IMAGE...]"),
    ("start", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("stats", "[OPTIONS] [CONTAINER...]"),
    ("stop", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]"),
    ("top", "CONTAINER [ps OPTIONS]"),
    ("unpause", "CONTAINER [CONTAINER...]"),
    ("update", "[OPTIONS] CONTAINER [CONTAINER...]"),
    ("version", "[OPTIONS]"),
    ("volume create", "[OPTIONS] [VOLUME]"),
    ("volume inspect", "[OPTIONS] VOLUME [VOLUME...]"),
    ("volume rm", "[OPTIONS] VOLUME [VOLUME...]"),
    ("wait", "CONTAINER [CONTAINER...]"),
];

/// The command of a command line: its name with its group.
pub(crate) fn command(args: &[OsString]) -> String {
    let mut words = args
        .iter()
        .skip(1)
        .filter_map(|a| a.to_str())
        .filter(|a| !a.starts_with('-'));
    match words.next() {
        Some(group) if GROUPS.contains(&group) => {
            format!("{group} {}", words.next().unwrap_or_default())
                .trim()
                .to_owned()
        }
        Some(word) => word.to_owned(),
        None => String::new(),
    }
}

/// How a command is called; nothing for one that Docker has not.
fn call(command: &str) -> Option<&'static str> {
    let last = command.rsplit(' ').next().unwrap_or(command);
    let found = |name: &str| CALLS.iter().find(|(known, _)| *known == name);
    found(command)
        .or_else(|| found(last))
        .map(|(_, call)| *call)
}

/// The lines about a command's usage, with an empty one behind.
fn usage(command: &str) -> String {
    if command.is_empty() {
        return "Usage:  amphora [OPTIONS] COMMAND [ARG...]\n\n".to_owned();
    }
    let Some(call) = call(command) else {
        return String::new();
    };
    let more = if command.ends_with("cp") {
        "\n\tamphora cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
    } else {
        ""
    };
    format!("Usage:  amphora {command} {call}{more}\n\n")
}

/// Says what is wrong with a flag, how the command is called and where to read more.
pub(crate) fn flag_error(text: &str, args: &[OsString]) {
    let command = command(args);
    ui::error(&format!("{text}\n\n{}{}", usage(&command), hint(&command)));
}

/// Whether a text is about the value of a flag, in Docker's words.
pub(crate) fn is_about_a_flag(text: &str) -> bool {
    text.starts_with("invalid argument \"") && text.contains("\" flag: ")
}

/// Says that a command was given too few arguments, or too many.
pub(crate) fn count_error(args: &[OsString]) {
    let command = command(args);
    let number = call(&command).map_or_else(|| "other arguments".to_owned(), number);
    // Docker says so in two ways.
    let verb = if number.starts_with("at least") && !number.contains("at most") {
        "See"
    } else {
        "Run"
    };
    let text = if number == "no arguments" {
        "accepts no arguments".to_owned()
    } else {
        format!("requires {number}")
    };
    let hint = hint(&command).replacen("Run", verb, 1);
    ui::error(&format!(
        "amphora: 'amphora {command}' {text}\n\n{}{hint}",
        usage(&command)
    ));
}

/// Says that there is no such command, in its group.
pub(crate) fn unknown_command(name: &str, args: &[OsString]) {
    let group = command(args);
    let group = group.split(' ').next().unwrap_or_default();
    if !GROUPS.contains(&group) {
        ui::error(&format!(
            "amphora: unknown command: amphora {name}\n\n{}",
            hint("")
        ));
        return;
    }
    let tail = if group == "volume" { " COMMAND" } else { "" };
    ui::error(&format!(
        "amphora: unknown command: amphora {group} {name}\n\nUsage:  amphora {group}{tail}\n\n{}",
        hint(group)
    ));
}

/// Docker's words for how many arguments a command takes.
fn number(call: &str) -> String {
    let words: Vec<&str> = call.split(' ').filter(|w| *w != "[OPTIONS]").collect();
    let least = words.iter().filter(|w| !w.starts_with('[')).count();
    let most = words.len();
    let s = |n: usize| if n == 1 { "" } else { "s" };
    // Words that belong together, or go on.
    if call.contains("...") || call.contains("[ps") || call.starts_with("[OPTIONS] file") {
        let least = if call.contains("[ps") { 1 } else { least };
        format!("at least {least} argument{}", s(least))
    } else if least == most {
        match least {
            0 => "no arguments".to_owned(),
            n => format!("{n} argument{}", s(n)),
        }
    } else if least == 0 {
        format!("at most {most} argument{}", s(most))
    } else {
        format!("at least {least} and at most {most} arguments")
    }
}

fn hint(command: &str) -> String {
    format!("Run 'amphora {command} --help' for more information").replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_arguments_are_docker_s() {
        for (command, said) in [
            ("run", "at least 1 argument"),
            ("exec", "at least 2 arguments"),
            ("ps", "no arguments"),
            ("logs", "1 argument"),
            ("cp", "2 arguments"),
            ("commit", "at least 1 and at most 2 arguments"),
            ("top", "at least 1 argument"),
            ("import", "at least 1 argument"),
            ("images", "at most 1 argument"),
            ("container stop", "at least 1 argument"),
        ] {
            assert_eq!(number(call(command).unwrap()), said, "{command}");
        }
    }
}
