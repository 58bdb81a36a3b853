//! Bare wasmtime without its command line: compiles a WASI 0.1 command ahead of time and runs the
//! result, as `wasmtime compile` and `wasmtime run --allow-precompiled` do. A stand-in on machines
//! where the wasmtime program is not installed; reports name it `wasmtime-runner`.
#![expect(unsafe_code, reason = "precompiled code is loaded on trust")]

use anyhow::{Context, Result, bail};
use wasmtime::{Engine, Linker, Module, Store};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p1::{WasiP1Ctx, add_to_linker_sync};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let engine = Engine::default();
    match args.as_slice() {
        ["compile", module, output] => {
            let bytes =
                std::fs::read(module).with_context(|| format!("failed to read {module}"))?;
            let code = engine.precompile_module(&bytes).map_err(plain)?;
            std::fs::write(output, code).with_context(|| format!("failed to write {output}"))
        }
        ["run", code] => run(&engine, code),
        _ => bail!("usage: wasmtime-runner compile MODULE OUTPUT | run CODE"),
    }
}

fn run(engine: &Engine, code: &str) -> Result<()> {
    // SAFETY: the file was written by `compile` above with the same engine; the harness makes it
    // itself right before it is run.
    let module = unsafe { Module::deserialize_file(engine, code) }.map_err(plain)?;
    let mut linker: Linker<WasiP1Ctx> = Linker::new(engine);
    add_to_linker_sync(&mut linker, |context| context).map_err(plain)?;
    let context = WasiCtxBuilder::new().inherit_stdio().build_p1();
    let mut store = Store::new(engine, context);
    let instance = linker.instantiate(&mut store, &module).map_err(plain)?;
    let start = instance
        .get_typed_func::<(), ()>(&mut store, "_start")
        .map_err(plain)?;
    start.call(&mut store, ()).map_err(plain)?;
    Ok(())
}

fn plain(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("{error:?}")
}
