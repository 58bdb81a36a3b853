//! How each command is called, in Docker's words, and what is said of a call that is not so.

use std::ffi::OsString;

use crate::ui;

/// Groups of commands.
const GROUPS: [&str; 5] = ["container", "image", "network", "system", "volume"];

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
    ("help", "[command]"),
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
    ("network connect", "[OPTIONS] NETWORK CONTAINER"),
    ("network create", "[OPTIONS] NETWORK"),
    ("network disconnect", "[OPTIONS] NETWORK CONTAINER"),
    ("network inspect", "[OPTIONS] NETWORK [NETWORK...]"),
    ("network rm", "NETWORK [NETWORK...]"),
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

/// Global options that take a value.
const VALUED: [&str; 4] = [
    "--root",
    "--run-root",
    "--insecure-registry",
    "--config-file",
];

/// Where the command of a command line stands: behind the global options. Nothing when another
/// option comes before it.
pub(crate) fn place(args: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        let arg = args.get(at)?.to_str()?;
        if VALUED.contains(&arg) {
            at += 2;
        } else if !arg.starts_with('-') {
            return Some(at);
        } else if VALUED.iter().any(|v| arg.split('=').next() == Some(v)) {
            at += 1;
        } else {
            return None;
        }
    }
}

/// The command of a command line: its name with its group.
pub(crate) fn command(args: &[OsString]) -> String {
    let Some(at) = place(args) else {
        return String::new();
    };
    let mut words = args.iter().skip(at).map_while(|a| a.to_str());
    let first = words.next().unwrap_or_default();
    match words.next().filter(|word| !word.starts_with('-')) {
        Some(second) if GROUPS.contains(&first) => format!("{first} {second}"),
        _ => first.to_owned(),
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

/// How a group is called: Docker says so in two ways.
fn group_call(group: &str) -> String {
    let tail = if group == "volume" { " COMMAND" } else { "" };
    format!("{group}{tail}")
}

/// The lines about a command's usage, with an empty one behind.
fn usage(command: &str) -> String {
    if command.is_empty() {
        return "Usage:  amphora [OPTIONS] COMMAND [ARG...]\n\n".to_owned();
    }
    if GROUPS.contains(&command) {
        return format!("Usage:  amphora {}\n\n", group_call(command));
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
    ui::error(&format!(
        "amphora: unknown command: amphora {group} {name}\n\n{}{}",
        usage(group),
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
    fn values_of_global_options_are_no_commands() {
        for (line, wanted) in [
            ("--root /x rm --force y", "rm"),
            ("--root=/x --run-root run container ls -q", "container ls"),
            ("--config-file image container --odd ls", "container"),
            ("rm x", "rm"),
            ("--odd rm", ""),
            ("--root rm", ""),
            ("--root", ""),
        ] {
            let words = format!("amphora {line}");
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            assert_eq!(command(&words), wanted, "{line}");
        }
    }

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
