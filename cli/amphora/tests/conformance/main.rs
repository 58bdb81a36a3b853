//! Black-box conformance with the OCI runtime specification: one folder a clause, one file a case
//! (`README.md` says how they are written). Every case runs against ours and, so that a wrong case
//! is seen, against the runc and the crun that are installed. Two more runs show that each case can
//! fail: against a runtime that claims success and does nothing, and without the fields that the
//! case is about.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test's way to fail"
)]

mod case;
mod console;
#[path = "../it/plain_spec.rs"]
mod plain_spec;
mod run;
#[path = "../it/turn.rs"]
mod turn;
mod world;

use case::Case;
use run::Failure;
use world::{Runtime, World};

/// Fewest cases there may be: one that gets lost is missed.
const FEWEST: usize = 390;

/// Makes the tests of every folder.
macro_rules! clauses {
    ($($name:ident: $folder:literal,)*) => {
        const CLAUSES: &[&str] = &[$($folder),*];
        mod ours { $( #[test] fn $name() { super::conforms(super::Runtime::Ours, $folder); } )* }
        mod runc { $( #[test] fn $name() { super::conforms(super::Runtime::Runc, $folder); } )* }
        mod crun { $( #[test] fn $name() { super::conforms(super::Runtime::Crun, $folder); } )* }
        mod idle { $( #[test] fn $name() { super::all_fail($folder); } )* }
        mod without_the_field { $( #[test] fn $name() { super::each_field_matters($folder); } )* }
    };
}

include!("clauses.rs");

/// Runs a folder's cases and compares with what is known of this runtime.
fn conforms(runtime: Runtime, folder: &str) {
    let Some(world) = World::new(runtime) else {
        return;
    };
    let mut wrong = Vec::new();
    let cases = case::read(folder);
    let (mut passed, mut known, mut not_here) = (0, 0, 0);
    for case in &cases {
        let name = format!("{folder}/{}", case.name);
        if let Some(missing) = world.lacks(case) {
            world.skip(&name, &missing);
            not_here += 1;
            continue;
        }
        let outcome = run::case(&world, case, &case.config);
        match (outcome, case.known(&world)) {
            (Ok(()), None) => passed += 1,
            (Err(_), Some(_)) => known += 1,
            (Ok(()), Some(why)) => wrong.push(format!("{name}: a known difference is gone: {why}")),
            (Err(what), None) => wrong.push(format!("{name}: {what}")),
        }
    }
    println!(
        "{folder}: {}: {passed} pass, {known} known differences, {not_here} not possible here",
        world.title()
    );
    assert!(wrong.is_empty(), "{}:\n{}", world.title(), wrong.join("\n"));
}

/// A runtime that claims success and does nothing passes no case.
fn all_fail(folder: &str) {
    let world = World::new(Runtime::Idle).expect("always there");
    let passing: Vec<String> = case::read(folder)
        .iter()
        .filter(|case| run::case(&world, case, &case.config).is_ok())
        .map(|case| case.name.clone())
        .collect();
    assert!(
        passing.is_empty(),
        "{folder}: nothing done is enough for {passing:?}"
    );
}

/// Ours fails a case whose fields it does not get to see. That something takes its time shows nothing,
/// unless the case says that it cannot show itself otherwise.
fn each_field_matters(folder: &str) {
    let patient = World::new(Runtime::Ours).expect("always there");
    let world = patient.impatient();
    let mut wrong = Vec::new();
    for case in &case::read(folder) {
        if world.lacks(case).is_some() || case.known(&world).is_some() {
            continue;
        }
        let mut waited = false;
        for (field, config) in case.without() {
            let late = |outcome: &Result<(), Failure>| matches!(outcome, Err(Failure::Late(_)));
            let mut outcome = run::case(&world, case, &config);
            if late(&outcome) && !case.waits {
                // The machine may have been slow.
                outcome = run::case(&patient, case, &config);
            }
            waited |= late(&outcome);
            match outcome {
                Ok(()) => wrong.push(format!("{} without {field} passes", case.name)),
                Err(Failure::Late(what)) if !case.waits => {
                    wrong.push(format!("{} without {field} only waits: {what}", case.name));
                }
                Err(_) => {}
            }
        }
        if case.waits && !waited {
            wrong.push(format!("{} \"waits\", and fails at once", case.name));
        }
    }
    assert!(wrong.is_empty(), "{folder}: {wrong:#?}");
}

#[test]
fn every_folder_is_listed_and_every_case_counted() {
    let mut listed: Vec<&str> = CLAUSES.to_vec();
    listed.sort_unstable();
    assert_eq!(listed, case::folders());
    let cases: Vec<Case> = CLAUSES.iter().flat_map(|f| case::read(f)).collect();
    println!(
        "conformance: {} cases in {} clauses",
        cases.len(),
        CLAUSES.len()
    );
    assert!(cases.len() >= FEWEST, "{} cases", cases.len());
}
