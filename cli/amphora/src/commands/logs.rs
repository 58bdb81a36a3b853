//! `logs`.

use std::io;

use amphora_engine::{Engine, LogOptions};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::parse;

// Flags of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long)]
    since: Option<String>,
    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long)]
    until: Option<String>,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

/// Carries out `logs`.
pub(crate) fn logs(engine: &Engine, args: &LogsArgs) -> Outcome {
    let time = |flag: &str, text: &Option<String>| -> Outcome<Option<i128>> {
        let Some(text) = text else { return Ok(None) };
        let parsed = parse::moment(text);
        parsed.map(Some).ok_or_else(|| {
            Failure::Daemon(format!(
                "invalid value for \"{flag}\": failed to parse value as time or duration: \"{text}\""
            ))
        })
    };
    let id = engine.find(&args.container)?;
    let options = LogOptions {
        follow: args.follow,
        // As under Docker, what is no number shows everything.
        tail: args.tail.parse().ok(),
        timestamps: args.timestamps,
        since: time("since", &args.since)?,
        until: time("until", &args.until)?,
        details: args.details,
    };
    Ok(engine.logs(
        &id,
        options,
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    )?)
}
