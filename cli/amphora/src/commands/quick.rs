//! The command line as far as one command goes: building the whole tree of commands takes longer
//! than most of them do.

use std::ffi::OsString;

use clap::{Args, FromArgMatches};

use super::change::Change;
use super::container::Short;
use super::{Cli, Command, Global, usage};

/// Commands that are often called.
const VERBS: [&str; 19] = [
    "run", "create", "ps", "start", "exec", "attach", "stop", "restart", "kill", "rm", "logs",
    "wait", "stats", "top", "port", "inspect", "pause", "unpause", "cp",
];

/// Parses a command that is often called. `None` when it is another one, or when anything at all
/// is wrong: then the whole tree is to have its say.
pub(super) fn parse(args: &[OsString]) -> Option<Cli> {
    let short = Command::ContainerShort;
    let change = Command::Change;
    let called = args.get(usage::place(args)?)?;
    let verb = VERBS.into_iter().find(|verb| called == verb)?;
    match verb {
        "run" => one(args, verb, Command::Run),
        "create" => one(args, verb, Command::Create),
        "ps" => one(args, verb, |a| short(Short::Ps(a))),
        "start" => one(args, verb, |a| short(Short::Start(a))),
        "exec" => one(args, verb, |a| short(Short::Exec(a))),
        "attach" => one(args, verb, |a| short(Short::Attach(a))),
        "stop" => one(args, verb, |a| short(Short::Stop(a))),
        "restart" => one(args, verb, |a| short(Short::Restart(a))),
        "kill" => one(args, verb, |a| short(Short::Kill(a))),
        "rm" => one(args, verb, |a| short(Short::Rm(a))),
        "logs" => one(args, verb, |a| short(Short::Logs(a))),
        "wait" => one(args, verb, |a| short(Short::Wait(a))),
        "stats" => one(args, verb, |a| short(Short::Stats(a))),
        "top" => one(args, verb, |a| short(Short::Top(a))),
        "port" => one(args, verb, |a| short(Short::Port(a))),
        "inspect" => one(args, verb, Command::Inspect),
        "pause" => one(args, verb, |a| change(Change::Pause(a))),
        "unpause" => one(args, verb, |a| change(Change::Unpause(a))),
        "cp" => one(args, verb, |a| change(Change::Cp(a))),
        _ => None,
    }
}

/// Parses with a tree of one command.
fn one<T: Args>(
    args: &[OsString],
    verb: &'static str,
    wrap: impl FnOnce(T) -> Command,
) -> Option<Cli> {
    let new = |name| clap::Command::new(name).disable_help_flag(true);
    let command = new(verb).defer(T::augment_args);
    let tree = Global::augment_args(
        new("amphora")
            .disable_help_subcommand(true)
            .args_override_self(true),
    );
    let tree = tree.subcommand(command);
    let matches = tree.try_get_matches_from(args).ok()?;
    let (_, own) = matches.subcommand()?;
    Some(Cli {
        global: Global::from_arg_matches(&matches).ok()?,
        command: wrap(T::from_arg_matches(own).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn one_command_is_parsed_as_the_whole_tree_does() {
        let lines = [
            "amphora run -d --name a -p 80:80 image cmd -x --rm",
            "amphora run --name a --name b --rm --rm image -d -- --name",
            "amphora exec x -it -y",
            "amphora cp - a:/b",
            "amphora --root /a --run-root=/b run image run",
            "amphora create --restart always image",
            "amphora ps -aq --filter name=a",
            "amphora start -a x",
            "amphora exec -it -e A=b x sh -c exit",
            "amphora attach --no-stdin x",
            "amphora stop -t 3 x y",
            "amphora restart x",
            "amphora kill -s TERM x",
            "amphora rm -fv x",
            "amphora logs -f --tail 5 x",
            "amphora wait x",
            "amphora stats --no-stream",
            "amphora top x",
            "amphora port x 80",
            "amphora inspect -f {{.Id}} x",
            "amphora pause x",
            "amphora --config-file c unpause x",
            "amphora cp a:/b c",
        ];
        for line in lines {
            let quick = parse(&words(line)).unwrap_or_else(|| panic!("{line}: not parsed"));
            let whole = Cli::try_parse_from(words(line)).unwrap();
            assert_eq!(format!("{quick:?}"), format!("{whole:?}"), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_or_rare_is_left_to_the_whole_tree() {
        let lines = [
            "amphora",
            "amphora --version",
            "amphora -v",
            "amphora --root",
            "amphora --root run",
            "amphora image ls",
            "amphora ps --help",
            "amphora ps --no-such-flag",
            "amphora exec x",
            "amphora --unknown ps",
            "amphora system df",
        ];
        for line in lines {
            assert!(parse(&words(line)).is_none(), "{line}");
        }
    }
}
