//! Supervisors of real processes. This program is also the one they are started from: it has the
//! hidden entries `supervise` and `finish`, and a runner of its own beside them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(clippy::print_stdout, reason = "the runner reports here")]

mod clients;
mod cost;
mod execs;
mod kills;
mod logs;
mod runs;
mod splices;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Case = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("supervise") => return amphora_supervisor::supervise_main(),
        Some("finish") => return support::finish_main(&args),
        Some("cli") => return clients::cli_main(&args),
        _ => {}
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: these tests need root");
        return ExitCode::SUCCESS;
    }
    // Orphans come to us: nobody else on a test machine may care to reap them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let filters: Vec<&String> = args
        .iter()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let all: Vec<Case> = [
        runs::ALL,
        logs::ALL,
        clients::ALL,
        kills::ALL,
        splices::ALL,
        cost::ALL,
        execs::ALL,
    ]
    .concat()
    .into_iter()
    .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)))
    .collect();
    if args.iter().any(|a| a == "--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, case) in &all {
        let begin = std::time::Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!(
            "test {name} ... {} ({:?})",
            if ok { "ok" } else { "FAILED" },
            begin.elapsed()
        );
        if !ok {
            failed.push(*name);
        }
    }
    println!(
        "\n{} passed, {} failed {failed:?}",
        all.len() - failed.len(),
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
