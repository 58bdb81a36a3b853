//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// What the engines see at `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupView {
    /// As the machine has it mounted.
    V1,
    /// Only cgroup v2.
    V2,
}

/// Compare amphora with every installed engine
#[derive(Debug, Parser)]
#[command(name = "amphora-bench")]
pub struct Args {
    /// Rows of the budget table, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,3,4,5,8,9,10,11,12,13,15,18"
    )]
    pub rows: Vec<u32>,
    /// Rounds of the interleaved rows
    #[arg(long, default_value_t = 100)]
    pub rounds: usize,
    /// Runs in the sequence of row 4
    #[arg(long, default_value_t = 200)]
    pub sequence: usize,
    /// Containers of row 8
    #[arg(long, default_value_t = 20)]
    pub idle: usize,
    /// Pulls per engine and compression in row 13
    #[arg(long, default_value_t = 3)]
    pub pulls: usize,
    /// Megabytes of the image of row 13
    #[arg(long, default_value_t = 500)]
    pub pull_mb: usize,
    /// Megabytes that a container writes in row 15
    #[arg(long, default_value_t = 100)]
    pub log_mb: u32,
    /// Megabytes that a container sends in row 18
    #[arg(long, default_value_t = 500)]
    pub stream_mb: u32,
    /// What the engines see as cgroups
    #[arg(long, value_enum, default_value = "v2")]
    pub cgroup: CgroupView,
    /// A tree made by benches/peers.sh; without it peers are looked for in PATH
    #[arg(long)]
    pub peers: Option<PathBuf>,
    /// Leave these contestants out
    #[arg(long, value_delimiter = ',')]
    pub without: Vec<String>,
    /// The amphora program [default: beside this one]
    #[arg(long)]
    pub amphora: Option<PathBuf>,
    /// Working directory: fixtures and the file that holds all stores
    #[arg(long, default_value = "/var/tmp/amphora-bench")]
    pub work: PathBuf,
    /// Gigabytes of that file (sparse)
    #[arg(long, default_value_t = 20)]
    pub store_gb: u64,
    /// Where the numbers go
    #[arg(long, default_value = "amphora-bench.json")]
    pub json: PathBuf,
    /// Count instructions too, where the machine can
    #[arg(long)]
    pub instructions: bool,
    /// Set by the program itself once it is in its namespaces
    #[arg(long, hide = true)]
    pub inner: bool,
}
