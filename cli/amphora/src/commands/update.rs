//! `update`.

use amphora_engine::{Engine, UpdateOptions};
use clap::Args;

use super::each;
use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

// Flags of `update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, allow_hyphen_values = true)]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long)]
    cpu_shares: Option<u64>,
    /// Number of CPUs
    #[arg(long)]
    cpus: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Memory limit
    #[arg(short, long)]
    memory: Option<String>,
    /// Memory soft limit
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(long)]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// `update`.
pub(crate) fn update(engine: &Engine, args: &UpdateArgs) -> Outcome {
    let restart = args.restart.as_deref().map(amphora_engine::restart::parse);
    let restart = restart.transpose()?;
    let options = options(args)?;
    let limits = options != UpdateOptions::default();
    if !limits && restart.is_none() {
        let text = "you must provide one or more flags when using this command";
        return Err(Failure::Local(text.to_owned()));
    }
    each(&args.names, |name| {
        let id = engine.find(name)?;
        if limits {
            engine.update(&id, &options)?;
        }
        if let Some(policy) = restart {
            engine.set_restart(&id, policy)?;
            if !limits {
                engine.note_action(&id, "update", &[])?;
            }
        }
        ui::line(name);
        Ok(())
    })
}

fn options(args: &UpdateArgs) -> Outcome<UpdateOptions> {
    let cpus = |text: &str| {
        let why = format!("failed to parse {text} as a rational number");
        parse::cpus(text).ok_or_else(|| parse::bad_flag("--cpus", text, &why))
    };
    Ok(UpdateOptions {
        blkio_weight: args.blkio_weight,
        cpu_period: args.cpu_period,
        cpu_quota: args.cpu_quota,
        cpu_shares: args.cpu_shares,
        nano_cpus: args.cpus.as_deref().map(cpus).transpose()?,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        memory: parse::size_flag("-m, --memory", args.memory.as_deref())?,
        memory_reservation: parse::size_flag(
            "--memory-reservation",
            args.memory_reservation.as_deref(),
        )?,
        memory_swap: parse::swap_flag("--memory-swap", args.memory_swap.as_deref())?,
        pids_limit: args.pids_limit,
    })
}
