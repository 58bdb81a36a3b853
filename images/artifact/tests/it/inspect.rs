//! `inspect_wasm` on binaries made from text.

use amphora_artifact::{ArtifactError, MAX_NAMES, ModuleKind, World, inspect_wasm};

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn a_command_module_lists_imports_and_exports() {
    let facts = inspect_wasm(&wasm(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
            (memory (export "memory") 1)
            (func (export "_start")))"#,
    ))
    .unwrap();
    assert_eq!(
        (facts.kind, facts.world),
        (ModuleKind::Core, World::Command)
    );
    assert_eq!(facts.imports, ["wasi_snapshot_preview1::proc_exit"]);
    assert_eq!(facts.exports, ["memory", "_start"]);
    assert!(facts.missing.is_empty() && !facts.proxy_wasm);
}

#[test]
fn foreign_imports_are_missing_by_name_and_once() {
    let facts = inspect_wasm(&wasm(
        r#"(module
            (import "env" "foo" (func))
            (import "env" "foo" (func (param i32)))
            (import "gojs" "bar" (func))
            (import "env" "memory" (memory 1))
            (import "wasi_snapshot_preview1" "sock_open" (func))
            (import "wasi_snapshot_preview1" "fd_write" (global i32))
            (func (export "_start")))"#,
    ))
    .unwrap();
    assert_eq!(
        facts.missing,
        [
            "env.foo",
            "gojs.bar",
            "env.memory",
            "wasi_snapshot_preview1.sock_open",
            "wasi_snapshot_preview1.fd_write"
        ]
    );
}

#[test]
fn worlds_of_core_modules() {
    let world = |text: &str| inspect_wasm(&wasm(text)).unwrap().world;
    assert_eq!(
        world(r#"(module (func (export "_initialize")))"#),
        World::Reactor
    );
    assert_eq!(world(r#"(module (func (export "main")))"#), World::Unknown);
    let both = r#"(module (func (export "_initialize")) (func (export "_start")))"#;
    assert_eq!(world(both), World::Command);
}

#[test]
fn worlds_of_components() {
    let world = |export: &str| {
        let text = format!(r#"(component (instance $i) (export "{export}" (instance $i)))"#);
        let facts = inspect_wasm(&wasm(&text)).unwrap();
        assert_eq!(facts.kind, ModuleKind::Component);
        facts.world
    };
    assert_eq!(world("wasi:cli/run@0.2.3"), World::Command);
    assert_eq!(world("wasi:cli/run@0.3.0"), World::Command);
    assert_eq!(world("wasi:http/incoming-handler@0.2.0"), World::Http);
    assert_eq!(world("wasi:http/handler@0.3.0"), World::Http);
    assert_eq!(world("wasi:cli/run@0.1.0"), World::Unknown);
    assert_eq!(world("my:own/thing@1.0.0"), World::Unknown);
}

#[test]
fn only_the_outermost_imports_of_a_component_count() {
    let facts = inspect_wasm(&wasm(
        r#"(component
            (import "wasi:io/streams@0.2.6" (instance))
            (import "wasi:nn/graph@0.2.0" (instance))
            (import "run" (func))
            (core module (import "env" "inner" (func)) (func (export "_start")))
            (component (import "inner:most/thing@1.0.0" (instance))))"#,
    ))
    .unwrap();
    assert_eq!(
        facts.imports,
        ["wasi:io/streams@0.2.6", "wasi:nn/graph@0.2.0", "run"]
    );
    assert_eq!(facts.missing, ["wasi:nn/graph@0.2.0", "run"]);
    assert!(facts.exports.is_empty());
}

#[test]
fn proxy_wasm_plugins_are_flagged() {
    let facts = inspect_wasm(&wasm(
        r#"(module (func (export "proxy_abi_version_0_2_1")))"#,
    ))
    .unwrap();
    assert!(facts.proxy_wasm);
}

#[test]
fn everything_that_is_no_binary_module_is_refused() {
    let text = |bytes: &[u8]| inspect_wasm(bytes).unwrap_err().to_string();
    assert_eq!(
        text(b""),
        "not a Wasm module: it begins with nothing, it is empty"
    );
    assert_eq!(
        text(b"#!/bin/sh"),
        "not a Wasm module: it begins with 23 21 2f 62"
    );
    assert_eq!(
        text(b"\0asm\x0a\0\x01\0"),
        "unsupported Wasm version 0x0001000a"
    );
    assert!(matches!(
        inspect_wasm(b"(module)"),
        Err(ArtifactError::Text)
    ));
    let precompiled = b"\x7fELF\x02\x01\x01\xc8\0\0\0\0\0\0\0\0";
    assert!(matches!(
        inspect_wasm(precompiled),
        Err(ArtifactError::Precompiled)
    ));
}

#[test]
fn every_truncation_and_many_bit_flips_end_in_an_answer() {
    let bytes = wasm(
        r#"(component
            (import "wasi:io/streams@0.2.6" (instance))
            (core module $m (import "env" "f" (func)) (func (export "g")))
            (instance $i) (export "wasi:cli/run@0.2.3" (instance $i)))"#,
    );
    for end in 0..bytes.len() {
        let _ = inspect_wasm(&bytes[..end]);
    }
    for at in 8..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            let _ = inspect_wasm(&broken);
        }
    }
}

#[test]
fn a_truncated_module_names_the_offset() {
    let mut bytes = wasm(r#"(module (func (export "_start")))"#);
    bytes.truncate(bytes.len() - 1);
    let text = inspect_wasm(&bytes).unwrap_err().to_string();
    assert!(
        text.starts_with("invalid Wasm module at offset 0x"),
        "{text}"
    );
}

#[test]
fn names_are_bounded_and_escaped() {
    let long = "x".repeat(2000);
    let module = wasm(&format!(r#"(module (import "env" "{long}" (func)))"#));
    let missing = inspect_wasm(&module).unwrap().missing;
    assert!(missing[0].len() < 600);
    let module = wasm(r#"(module (import "env" "a\1b[31m" (func)))"#);
    assert_eq!(inspect_wasm(&module).unwrap().missing, ["env.a\\u{1b}[31m"]);
    let exports = |count: usize| {
        let all = (0..count)
            .map(|n| format!(r#"(export "e{n}" (func $f))"#))
            .collect::<String>();
        inspect_wasm(&wasm(&format!("(module (func $f) {all})")))
    };
    assert_eq!(exports(MAX_NAMES).unwrap().exports.len(), MAX_NAMES);
    assert!(matches!(
        exports(MAX_NAMES + 1),
        Err(ArtifactError::TooManyNames(_))
    ));
}
