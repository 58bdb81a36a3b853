//! Flags of `run` and `create` about a container's health.

use amphora_engine::HostConfig;
use amphora_spec::health::Healthcheck;
use amphora_supervisor::HealthAction;
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::parse::{bad_flag, duration};

// How health is checked, and what becomes of an unhealthy container.
#[derive(Debug, Args)]
pub(crate) struct HealthFlags {
    /// Command to run to check health
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h) (default 0s)
    #[arg(long, allow_hyphen_values = true)]
    health_interval: Option<String>,
    /// What becomes of an unhealthy container: none, kill, restart or stop
    #[arg(long, value_name = "ACTION")]
    health_on_failure: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, allow_hyphen_values = true)]
    health_retries: Option<i64>,
    /// Time between running the check during the start period (ms|s|m|h) (default 0s)
    #[arg(long, allow_hyphen_values = true)]
    health_start_interval: Option<String>,
    /// Start period for the container to initialize before starting health-retries countdown
    /// (ms|s|m|h) (default 0s)
    #[arg(long, allow_hyphen_values = true)]
    health_start_period: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h) (default 0s)
    #[arg(long, allow_hyphen_values = true)]
    health_timeout: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
}

/// Reads them: what is checked, when anything was said of that.
pub(crate) fn health(host: &mut HostConfig, flags: &HealthFlags) -> Outcome<Option<Healthcheck>> {
    if let Some(text) = &flags.health_on_failure {
        let found = HealthAction::ALL.iter().find(|(_, name)| name == text);
        let (action, _) = found.ok_or_else(|| {
            bad_flag(
                "--health-on-failure",
                text,
                "must be one of none, kill, restart or stop",
            )
        })?;
        host.health_on_failure = *action;
    }
    let line = flags.health_cmd.as_deref().filter(|line| !line.is_empty());
    let check = Healthcheck {
        test: line.map_or_else(Vec::new, |line| {
            vec!["CMD-SHELL".to_owned(), line.to_owned()]
        }),
        interval: time("--health-interval", flags.health_interval.as_deref())?,
        timeout: time("--health-timeout", flags.health_timeout.as_deref())?,
        start_period: time(
            "--health-start-period",
            flags.health_start_period.as_deref(),
        )?,
        start_interval: time(
            "--health-start-interval",
            flags.health_start_interval.as_deref(),
        )?,
        retries: flags.health_retries.unwrap_or(0),
    };
    if check.retries < 0 {
        return Err(negative("--health-retries"));
    }
    let given = check != Healthcheck::default();
    if !flags.no_healthcheck {
        return Ok(given.then_some(check));
    }
    if given {
        let text = "--no-healthcheck conflicts with --health-* options";
        return Err(Failure::Usage(text.to_owned()));
    }
    Ok(Some(Healthcheck {
        test: vec!["NONE".to_owned()],
        ..Healthcheck::default()
    }))
}

fn negative(flag: &str) -> Failure {
    Failure::Usage(format!("{flag} cannot be negative"))
}

fn time(flag: &str, text: Option<&str>) -> Outcome<i64> {
    let Some(text) = text else { return Ok(0) };
    let invalid = || bad_flag(flag, text, &format!("time: invalid duration \"{text}\""));
    match text.strip_prefix('-') {
        Some(rest) => match duration(rest).ok_or_else(invalid)? {
            0 => Ok(0),
            _ => Err(negative(flag)),
        },
        None => duration(text).ok_or_else(invalid),
    }
}
