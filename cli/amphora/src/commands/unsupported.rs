//! Command lines that do not parse: Docker's words and exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::ui;

/// Flags of the docker client that are known and refused where a command has them not.
const KNOWN: &[&str] = &[
    "--cgroup-parent",
    "--cpu-count",
    "--cpu-percent",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--disable-content-trust",
    "--dns",
    "--dns-option",
    "--dns-search",
    "--filter",
    "--gpus",
    "--ip",
    "--ip6",
    "--isolation",
    "--kernel-memory",
    "--link",
    "--link-local-ip",
    "--mac-address",
    "--network-alias",
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
    "-o",
];

/// Explains a command line that does not parse.
pub(crate) fn explain(error: &clap::Error, args: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(1)
        }
        ErrorKind::UnknownArgument => {
            let flag = context(error, ContextKind::InvalidArg);
            let flag = flag.split(['=', ' ']).next().unwrap_or(&flag).to_owned();
            let known = KNOWN.contains(&flag.as_str());
            let text = if known {
                format!("flag {flag} is not supported")
            } else if flag.starts_with("--") || !flag.starts_with('-') {
                format!("unknown flag: {flag}")
            } else {
                let letter = flag.chars().nth(1).unwrap_or('-');
                format!("unknown shorthand flag: '{letter}' in {flag}")
            };
            ui::error(&format!("{text}\n\n{}", hint(args)));
            ExitCode::from(125)
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(error, ContextKind::InvalidSubcommand);
            ui::error(&format!(
                "amphora: unknown command: amphora {name}\n\nRun 'amphora --help' for more information"
            ));
            ExitCode::from(1)
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = context(error, ContextKind::InvalidArg);
            let flag = missing
                .split([' ', ',', '='])
                .find_map(|w| w.strip_prefix("--"));
            let command = command(args);
            let number = match command.trim_start_matches("container ") {
                "exec" => "at least 2 arguments",
                "attach" => "1 argument",
                "tag" | "image tag" | "rename" | "cp" => "2 arguments",
                _ => "at least 1 argument",
            };
            let text = match flag {
                Some(flag) => format!("required flag(s) \"{flag}\" not set"),
                None => format!("amphora: 'amphora {command}' requires {number}"),
            };
            ui::error(&format!("{text}\n\n{}", hint(args)));
            ExitCode::from(1)
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            ui::error(&format!(
                "{}\n\n{}",
                first.trim_start_matches("error: "),
                hint(args)
            ));
            ExitCode::from(125)
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    }
}

fn command(args: &[OsString]) -> String {
    const GROUPS: [&str; 4] = ["container", "image", "system", "volume"];
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

fn hint(args: &[OsString]) -> String {
    format!(
        "Run 'amphora {} --help' for more information",
        command(args)
    )
    .replace("  ", " ")
}
