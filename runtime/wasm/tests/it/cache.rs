//! The cache: made once, checked, made again when anything does not fit.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use amphora_executor::Module;
use amphora_spec::{Classify, Digest, ErrorKind};
use amphora_wasm::{Compiler, WasmError};

use crate::guests::{Temp, Wasi, cache, compiler, guest, module};

const SMALL: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

fn small() -> Vec<u8> {
    wat::parse_str(SMALL).unwrap()
}

fn artefact(temp: &Temp, module: &Module) -> PathBuf {
    temp.join("aot")
        .join(format!("{}.cwasm", cache(temp).key(&module.digest).hex()))
}

fn files(temp: &Temp) -> usize {
    std::fs::read_dir(temp.join("aot")).unwrap().count()
}

#[test]
fn a_module_is_compiled_once() {
    let temp = Temp::new();
    let module = module(&temp, &small());
    assert!(cache(&temp).get(&module.digest).unwrap().is_none());
    assert!(cache(&temp).ensure(&module, &compiler()).unwrap().compiled);
    assert!(!cache(&temp).ensure(&module, &compiler()).unwrap().compiled);
    let meta = std::fs::metadata(artefact(&temp, &module)).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o444);
    let dir = std::fs::metadata(temp.join("aot")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
    assert_eq!(files(&temp), 1, "no lock or part file stays");
}

#[test]
fn concurrent_starts_compile_once() {
    let temp = Temp::new();
    let bytes = small();
    let compiled = std::thread::scope(|scope| {
        let start = || {
            let module = module(&temp, &bytes);
            cache(&temp).ensure(&module, &compiler()).unwrap().compiled
        };
        let all = (0..8).map(|_| scope.spawn(start)).collect::<Vec<_>>();
        all.into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|&made| made)
            .count()
    });
    assert_eq!(compiled, 1);
    assert_eq!(files(&temp), 1);
}

#[test]
fn whatever_is_wrong_with_an_artefact_it_is_made_again() {
    let temp = Temp::new();
    let module = module(&temp, &small());
    cache(&temp).ensure(&module, &compiler()).unwrap();
    let path = artefact(&temp, &module);
    let sound = std::fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    let broken: [&[u8]; 5] = [
        b"",
        b"short",
        &sound[..sound.len() - 1],
        &flipped,
        &[0; 4096],
    ];
    for bytes in broken {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert!(cache(&temp).ensure(&module, &compiler()).unwrap().compiled);
        assert_eq!(std::fs::read(&path).unwrap(), sound);
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        cache(&temp).ensure(&module, &compiler()).unwrap().compiled,
        "writable"
    );
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    assert!(
        cache(&temp).ensure(&module, &compiler()).unwrap().compiled,
        "owned by somebody"
    );
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(
        cache(&temp).get(&module.digest).is_err(),
        "a link is not followed"
    );
}

#[test]
fn the_sum_is_checked_once_per_boot_and_when_the_file_changes() {
    let temp = Temp::new();
    let module = module(&temp, &small());
    cache(&temp).ensure(&module, &compiler()).unwrap();
    let path = artefact(&temp, &module);
    let stamps = || std::fs::read_dir(temp.join("stamps")).unwrap().count();
    assert_eq!(stamps(), 1);
    std::fs::remove_dir_all(temp.join("stamps")).unwrap();
    assert!(
        cache(&temp).get(&module.digest).unwrap().is_some(),
        "a new boot"
    );
    assert_eq!(stamps(), 1);
    let inode = std::fs::metadata(&path).unwrap().ino();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert!(
        cache(&temp).get(&module.digest).unwrap().is_none(),
        "changed in place"
    );
    assert_eq!((files(&temp), stamps()), (0, 0), "and discarded");
}

#[test]
fn keys_differ_by_module() {
    let temp = Temp::new();
    let cache = cache(&temp);
    let key = |fill| cache.key(&Digest::from_sha256([fill; 32]));
    assert_ne!(key(1), key(2));
    assert_eq!(key(1), key(1));
}

#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let temp = Temp::new();
    let error = cache(&temp)
        .ensure(&module(&temp, bytes), &compiler())
        .unwrap_err();
    assert!(matches!(error, WasmError::Module(_)), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(files(&temp), 0);
    error.to_string()
}

#[test]
fn what_is_no_module_is_refused_with_the_reason() {
    assert_eq!(
        refused(b"#!/bin/sh"),
        "not a Wasm module: it begins with 23 21 2f 62"
    );
    assert_eq!(
        refused(b""),
        "not a Wasm module: it begins with nothing, it is empty"
    );
    assert_eq!(
        refused(b"(module)"),
        "Wasm text is not accepted, ship the binary .wasm file"
    );
    let text = refused(&wat::parse_str(r#"(module (func (i32.add)))"#).unwrap());
    assert!(text.starts_with("invalid Wasm module: "), "{text}");
    assert!(text.contains("offset"), "{text}");
    let mut cut = guest(Wasi::P1, "hello");
    cut.truncate(cut.len() / 2);
    assert!(refused(&cut).contains("offset"));
}

#[test]
fn missing_imports_are_refused_by_name() {
    let text = r#"(module (import "env" "foo" (func)) (import "gojs" "bar" (func))
        (func (export "_start")))"#;
    assert_eq!(
        refused(&wat::parse_str(text).unwrap()),
        "module imports unknown functions: env.foo, gojs.bar"
    );
}

#[test]
fn our_own_artefact_is_refused_as_a_module() {
    let temp = Temp::new();
    let small = module(&temp, &small());
    cache(&temp).ensure(&small, &compiler()).unwrap();
    let native = std::fs::read(artefact(&temp, &small)).unwrap();
    assert!(refused(&native).contains("never loaded from an image"));
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let temp = Temp::new();
    let mut module = module(&temp, &small());
    module.digest = Digest::from_sha256([1; 32]);
    let text = cache(&temp)
        .ensure(&module, &compiler())
        .unwrap_err()
        .to_string();
    assert!(text.contains("expected sha256:0101"), "{text}");
    assert_eq!(files(&temp), 0);
}

#[test]
fn a_compiler_that_dies_hangs_or_is_missing_is_told() {
    let temp = Temp::new();
    let module = module(&temp, &small());
    let fails = |program: &str| {
        let compiler =
            Compiler::with_program(program.into()).with_timeout(Duration::from_millis(300));
        cache(&temp)
            .ensure(&module, &compiler)
            .unwrap_err()
            .to_string()
    };
    assert!(fails("/bin/false").contains("the compiler ended with exit code 1"));
    assert!(fails("/nonexistent").starts_with("failed to run the compiler"));
    let script = temp.join("hang");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 100\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(fails(script.to_str().unwrap()).contains("no result within"));
    assert_eq!(files(&temp), 0);
    // A compiler that writes nothing is found out, too.
    assert!(
        cache(&temp)
            .ensure(&module, &Compiler::with_program("/bin/true".into()))
            .is_err()
    );
    let _ = module.file.as_fd();
}
