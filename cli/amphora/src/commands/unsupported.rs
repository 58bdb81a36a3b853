//! Command lines that do not parse: Docker's words and exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::ui;

/// Flags of `docker run` and its kin that are known and refused.
const KNOWN: &[&str] = &[
    "--attach",
    "--blkio-weight",
    "--blkio-weight-device",
    "--cgroup-parent",
    "--cgroupns",
    "--cpu-count",
    "--cpu-percent",
    "--cpu-period",
    "--cpu-quota",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--cpuset-mems",
    "--detach-keys",
    "--device",
    "--device-cgroup-rule",
    "--device-read-bps",
    "--device-read-iops",
    "--device-write-bps",
    "--device-write-iops",
    "--disable-content-trust",
    "--dns",
    "--dns-option",
    "--dns-search",
    "--domainname",
    "--expose",
    "--filter",
    "--gpus",
    "--group-add",
    "--health-cmd",
    "--health-interval",
    "--health-retries",
    "--health-start-interval",
    "--health-start-period",
    "--health-timeout",
    "--init",
    "--ip",
    "--ip6",
    "--ipc",
    "--isolation",
    "--kernel-memory",
    "--label-file",
    "--link",
    "--link-local-ip",
    "--log-opt",
    "--mac-address",
    "--memory-reservation",
    "--memory-swappiness",
    "--mount",
    "--network-alias",
    "--no-healthcheck",
    "--no-prune",
    "--oom-kill-disable",
    "--oom-score-adj",
    "--opt",
    "--pid",
    "--privileged",
    "--since",
    "--size",
    "--storage-opt",
    "--sysctl",
    "--tty",
    "--tree",
    "--until",
    "--use-api-socket",
    "--userns",
    "--uts",
    "--volume-driver",
    "--volumes-from",
    "--all-tags",
    "--details",
    "-t",
    "-a",
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
            ui::error(&format!(
                "amphora: 'amphora {}' requires at least 1 argument\n\n{}",
                command(args),
                hint(args)
            ));
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
    const GROUPS: [&str; 3] = ["container", "image", "volume"];
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
