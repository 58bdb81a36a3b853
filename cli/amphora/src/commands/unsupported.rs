//! Command lines that do not parse: Docker's words and exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{switches, usage};
use crate::ui;

/// Flags of the docker client that are known and refused where a command has them not.
const KNOWN: &[&str] = &[
    "--cgroup-parent",
    "--cpu-count",
    "--cpu-percent",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--disable-content-trust",
    "--config-from",
    "--config-only",
    "--filter",
    "--gpus",
    "--ingress",
    "--isolation",
    "--kernel-memory",
    "--link",
    "--link-local-ip",
    "--no-prune",
    "--opt",
    "--size",
    "--storage-opt",
    "--tree",
    "--use-api-socket",
    "--volume-driver",
    "--all-tags",
    "--cluster",
    "--availability",
    "--checkpoint",
    "--checkpoint-dir",
    "--group",
    "--io-maxbandwidth",
    "--io-maxiops",
    "--limit-bytes",
    "--no-stdin",
    "--platform",
    "--required-bytes",
    "--restart",
    "--scope",
    "--secret",
    "--sharing",
    "--topology-preferred",
    "--topology-required",
    "--type",
    "-f",
    "-s",
    "-l",
    "-o",
];

/// Explains a command line that does not parse.
pub(crate) fn explain(error: &clap::Error, args: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        // Docker helps, to stderr, and is content.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::MissingSubcommand => {
            let help = <super::Cli as clap::CommandFactory>::command().render_help();
            ui::error(help.to_string().trim_end());
            return ExitCode::SUCCESS;
        }
        ErrorKind::InvalidSubcommand => {
            usage::unknown_command(&context(error, ContextKind::InvalidSubcommand), args);
            return ExitCode::from(1);
        }
        _ => {}
    }
    match flag_text(error, args) {
        Some(text) => {
            usage::flag_error(&text, args);
            ExitCode::from(if text.starts_with("required") { 1 } else { 125 })
        }
        None => {
            usage::count_error(args);
            ExitCode::from(1)
        }
    }
}

/// What is wrong with a flag; nothing when it is the number of arguments that is wrong.
fn flag_text(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let given = context(error, ContextKind::InvalidArg);
    let flag = given
        .split(['=', ' ', '['])
        .next()
        .unwrap_or(&given)
        .to_owned();
    let value = context(error, ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::UnknownArgument if !flag.starts_with('-') => None,
        ErrorKind::TooFewValues => None,
        ErrorKind::UnknownArgument => Some(unknown(&given, args)),
        ErrorKind::MissingRequiredArgument => {
            let name = given
                .split([' ', ',', '='])
                .find_map(|w| w.strip_prefix("--"))?;
            Some(format!("required flag(s) \"{name}\" not set"))
        }
        // One that is given as nothing is given.
        ErrorKind::InvalidValue | ErrorKind::NoEquals
            if value.is_empty() && !args.contains(&format!("{flag}=").into()) =>
        {
            let last = args.last().and_then(|a| a.to_str()).unwrap_or_default();
            let letter = last.chars().last().unwrap_or('-');
            Some(if last.starts_with("--") || !last.starts_with('-') {
                format!("flag needs an argument: {flag}")
            } else {
                format!("flag needs an argument: '{letter}' in {last}")
            })
        }
        ErrorKind::TooManyValues | ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let parser = match error.kind() {
                ErrorKind::ValueValidation => "ParseInt",
                _ => "ParseBool",
            };
            let flag = with_letter(&flag, args);
            Some(format!(
                "invalid argument \"{value}\" for \"{flag}\" flag: strconv.{parser}: parsing \"{value}\": invalid syntax"
            ))
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Some(first.trim_start_matches("error: ").to_owned())
        }
    }
}

/// Says of a flag that it is unknown, or known and not supported.
pub(crate) fn unknown(given: &str, args: &[OsString]) -> String {
    let flag = given.split('=').next().unwrap_or(given);
    if KNOWN.contains(&flag) {
        format!("flag {flag} is not supported")
    } else if flag.starts_with("--") {
        format!("unknown flag: {flag}")
    } else {
        let letter = given.chars().nth(1).unwrap_or('-');
        // With all that was written behind the letter.
        let mut words = args.iter().filter_map(|word| word.to_str());
        let word = words.find(|word| word.starts_with(given));
        format!(
            "unknown shorthand flag: '{letter}' in {}",
            word.unwrap_or(given)
        )
    }
}

/// A flag as Docker names it: with its letter, if it has one.
fn with_letter(flag: &str, args: &[OsString]) -> String {
    let name = flag.trim_start_matches("--");
    let letter = switches::leaf(args).and_then(|(leaf, _)| {
        let mut flags = leaf.get_arguments();
        flags.find(|a| a.get_long() == Some(name))?.get_short()
    });
    letter.map_or_else(|| flag.to_owned(), |letter| format!("-{letter}, {flag}"))
}

fn context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    }
}
