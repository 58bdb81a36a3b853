//! Bad input: Docker's exit code, one clear sentence, nothing left.

use crate::sandbox::{Sandbox, path};

#[test]
fn unknown_image_and_unreachable_registry() {
    let s = Sandbox::ready();
    let text = s.run(&["run", "--rm", "localhost:1/none"]).fails(
        125,
        "Unable to find image 'localhost:1/none:latest' locally",
    );
    assert!(text.contains("localhost:1"), "{text}");
    s.run(&["run", "--rm", "--pull", "never", "nosuch"])
        .fails(125, "No such image: nosuch:latest");
    s.run(&["run", "--rm", "UPPER"])
        .fails(125, "must be lowercase");
    s.run(&["pull", "localhost:1/none"])
        .fails(1, "connection refused");
}

#[test]
fn unknown_flags_and_missing_arguments() {
    let s = Sandbox::ready();
    s.run(&["run", "--bogus", "probe-linux"])
        .fails(125, "unknown flag: --bogus");
    s.run(&["run", "--gpus", "all", "probe-linux"])
        .fails(125, "flag --gpus is not supported");
    s.run(&["run"]).fails(1, "requires at least 1 argument");
    s.run(&["frobnicate"]).fails(1, "unknown command");
    s.run(&["run", "--rm", "-m", "1m", "probe-linux"])
        .fails(125, "Minimum memory limit allowed is 6MB");
    s.run(&["run", "--rm", "-m", "lots", "probe-linux"])
        .fails(125, "invalid argument \"lots\"");
    s.run(&["run", "--rm", "--cap-add", "FLY", "probe-linux"])
        .fails(125, "CAP_FLY");
    s.run(&["run", "--rm", "--network", "blue", "probe-linux"])
        .fails(125, "network blue not found");
    s.run(&["run", "--rm", "-p", "99999:80", "probe-linux"])
        .fails(125, "99999");
    s.run(&["run", "--rm", "-v", "a:b:c:d", "probe-linux"])
        .fails(125, "invalid");
}

#[test]
fn what_does_not_hold_for_wasm_is_said_or_refused() {
    let s = Sandbox::ready();
    let said = s.run(&["run", "--rm", "--ulimit", "as=1000000000", "probe-wasm"]);
    assert!(
        said.code == 0 && said.stderr.contains("WARNING: ulimit \"as\" is ignored"),
        "{said:?}"
    );
    s.run(&["run", "--rm", "--cap-add", "NET_ADMIN", "probe-wasm"])
        .fails(125, "CAP_NET_ADMIN is not supported for Wasm");
}

#[test]
fn objects_that_are_not_there() {
    let s = Sandbox::ready();
    for verb in ["start", "stop", "kill", "rm", "logs", "wait", "port"] {
        s.run(&[verb, "ghost"]).fails(1, "No such container: ghost");
    }
    s.run(&["rmi", "ghost"]).fails(1, "No such image: ghost");
    s.run(&["inspect", "ghost"])
        .fails(1, "No such object: ghost");
    s.run(&["volume", "rm", "ghost"]).fails(1, "ghost");
}

#[test]
fn things_that_are_no_archive_and_no_module() {
    let s = Sandbox::ready();
    let file = s.dir.join("noise");
    std::fs::write(&file, b"this is no archive and no module").unwrap();
    assert_eq!(s.run(&["load", "-i", path(&file)]).code, 1);
    let text = s.run(&["image", "add", path(&file), "-t", "noise"]);
    assert_eq!(text.code, 1, "{text:?}");
    s.run(&["load", "-i", "/no/such/file"])
        .fails(1, "no such file");
    s.run(&["run", "--rm", "--pull", "never", "noise"])
        .fails(125, "No such image");
    // A module that was cut off.
    let wasm = crate::fixtures::probe("wasm32-wasip2");
    let half = std::fs::read(wasm).unwrap();
    std::fs::write(&file, &half[..half.len() / 2]).unwrap();
    assert_eq!(s.run(&["image", "add", path(&file), "-t", "noise"]).code, 1);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn missing_imports_are_named() {
    let s = Sandbox::ready();
    let wasm = wat::parse_str(
        r#"(module (import "env" "teleport" (func)) (memory (export "memory") 1) (func (export "_start")))"#,
    )
    .unwrap();
    let file = s.dir.join("m.wasm");
    std::fs::write(&file, wasm).unwrap();
    let added = s.run(&["image", "add", path(&file), "-t", "needy"]);
    std::fs::remove_file(&file).unwrap();
    let said = if added.code == 0 {
        let said = s.run(&["run", "--rm", "needy"]);
        assert_eq!(said.code, 125, "{said:?}");
        s.run(&["rmi", "needy"]).ok();
        said.stderr
    } else {
        added.stderr
    };
    assert!(said.contains("env.teleport"), "{said}");
}

#[test]
fn a_full_disk_leaves_nothing_visible() {
    let s = Sandbox::with_tmpfs("size=24m");
    let archive = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("big.tar");
    let noise: Vec<u8> = (0..40_000_000u64)
        .scan(1u64, |x, _| {
            *x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            Some((*x >> 56) as u8)
        })
        .collect();
    crate::fixtures::Image::new("big", serde_json::json!({ "Cmd": ["/x"] }))
        .layer(
            &[crate::fixtures::file("x", 0o755, noise)],
            crate::fixtures::Wrap::Plain,
        )
        .write_oci(&archive);
    s.run(&["load", "-i", path(&archive)])
        .fails(1, "No space left");
    assert_eq!(s.run(&["images", "-q"]).ok(), "");
    std::fs::remove_file(&archive).unwrap();
    // The space is free again: a small image loads and runs.
    let small = s.dir.join("small.tar");
    crate::fixtures::busybox_image("bb").write_oci(&small);
    s.run(&["load", "-q", "-i", path(&small)]).ok();
    s.run(&["run", "--rm", "bb", "true"]).ok();
}

#[test]
fn images_in_use_stay() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "user", "probe-linux"]).ok();
    s.run(&["rmi", "probe-linux"])
        .fails(1, "is using its referenced image");
    s.run(&["rm", "user"]).ok();
}
