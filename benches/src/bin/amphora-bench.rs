//! `amphora-bench`: amphora and its peers, interleaved. `--help` lists the options;
//! docs/benchmarks.md explains the rows.

fn main() -> anyhow::Result<()> {
    amphora_benches::harness::main()
}
