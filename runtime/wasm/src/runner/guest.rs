//! Setting up WASI for a guest and running it.

use std::convert::Infallible;
use std::fs::File;
use std::path::Path;

use amphora_artifact::ModuleKind;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::stdio::{Input, Output};
use super::{Ended, RunnerConfig, end, load};
use crate::{WasmError, confine};

/// Most directories at the top of the root that are named to a guest.
const MAX_TOP_DIRECTORIES: usize = 256;

/// Loads, confines, runs and leaves.
pub(super) async fn run(config: &RunnerConfig, artefact: File) -> Result<Infallible, WasmError> {
    let Err(error) = match config.kind {
        ModuleKind::Core => core(config, artefact).await,
        ModuleKind::Component => component(config, &artefact).await,
    };
    end(&Ended::Refused(format!("{error:#}")))
}

fn limits(config: &RunnerConfig) -> StoreLimits {
    let mut limits = StoreLimitsBuilder::new();
    if let Some(bytes) = config.memory_bytes {
        limits = limits.memory_size(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    limits.build()
}

/// Gives up what loading needed; from here on only the guest runs.
fn confine(config: &RunnerConfig) -> wasmtime::Result<()> {
    Ok(confine::runner(&config.root)?)
}

fn context(config: &RunnerConfig) -> wasmtime::Result<WasiCtxBuilder> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.stdin(Input::default())
        .stdout(Output::Stdout)
        .stderr(Output::Stderr);
    wasi.args(&config.args);
    for entry in &config.env {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        wasi.env(key, value);
    }
    // One thread serves one guest: blocking it is what a native program would do.
    wasi.allow_blocking_current_thread(true);
    // The network namespace is the wall.
    wasi.inherit_network()
        .allow_tcp(true)
        .allow_udp(true)
        .allow_ip_name_lookup(true);
    preopen(&mut wasi, config)?;
    wasi.initial_cwd(&config.cwd);
    Ok(wasi)
}

/// Opens the guest's directories: `/`, and in another working directory what makes a guest's
/// libc find files there.
///
/// WASI 0.1 has no working directory, and the libc most 0.2 guests are built with ignores it.
/// Go takes the first directory for it. wasi-libc takes `/`, sees no difference between `name`
/// and `/name`, picks the longest name that fits and among equals the last: so the working
/// directory stands last as `.`, and every directory at the top of the root is named, which keeps
/// absolute paths below those right.
fn preopen(wasi: &mut WasiCtxBuilder, config: &RunnerConfig) -> wasmtime::Result<()> {
    let perms = if config.root_readonly {
        FsPerms::ReadOnly
    } else {
        FsPerms::ReadWrite
    };
    let root = config.root.trim_end_matches('/');
    let cwd = format!("{root}{}", config.cwd);
    let elsewhere = config.cwd != "/";
    if elsewhere {
        wasi.preopened_dir(&cwd, &config.cwd, perms)?;
    }
    wasi.preopened_dir(&config.root, "/", perms)?;
    for mount in &config.mounts {
        // A mounted file is reached through its directory.
        let _ = wasi.preopened_dir(format!("{root}{mount}"), mount, FsPerms::ReadWrite);
    }
    if elsewhere {
        let mounted = |n: &str| config.mounts.iter().any(|m| m.strip_prefix('/') == Some(n));
        let top = std::fs::read_dir(&config.root)?.flatten().filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            (!mounted(&name) && is_directory(&config.root, &e.path())).then_some((name, e.path()))
        });
        for (name, path) in top.take(MAX_TOP_DIRECTORIES) {
            // One that the guest's user may not open is no reason to fail.
            let _ = wasi.preopened_dir(path, format!("/{name}"), perms);
        }
        let below = |m: &String| {
            config.cwd == *m
                || config
                    .cwd
                    .strip_prefix(m.as_str())
                    .is_some_and(|r| r.starts_with('/'))
        };
        let own = if config.mounts.iter().any(below) {
            FsPerms::ReadWrite
        } else {
            perms
        };
        wasi.preopened_dir(cwd, ".", own)?;
    }
    Ok(())
}

/// Whether an entry of the root is a directory in it, or a link to one.
fn is_directory(root: &str, path: &Path) -> bool {
    let target = path.canonicalize();
    target.is_ok_and(|target| target.starts_with(root) && target.is_dir())
}

/// Tells a guest's own exit from a trap.
fn ended(result: wasmtime::Result<i32>) -> Ended {
    match result {
        Ok(code) => Ended::Code(code),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => Ended::Code(*code),
            None => Ended::Trap(format!("{error:?}")),
        },
    }
}

struct Core {
    wasi: WasiP1Ctx,
    limits: StoreLimits,
}

async fn core(config: &RunnerConfig, artefact: File) -> wasmtime::Result<Infallible> {
    let module = load::module(artefact)?;
    let mut linker = wasmtime::Linker::new(module.engine());
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut Core| &mut state.wasi)?;
    if module
        .imports()
        .any(|import| import.module() == "wasi_unstable")
    {
        wasmtime_wasi::p0::add_to_linker_async(&mut linker, |state: &mut Core| &mut state.wasi)?;
    }
    let state = Core {
        wasi: context(config)?.build_p1(),
        limits: limits(config),
    };
    let mut store = Store::new(module.engine(), state);
    store.limiter(|state| &mut state.limits);
    let instance = linker.instantiate_pre(&module)?;
    confine(config)?;
    let instance = match instance.instantiate_async(&mut store).await {
        Ok(instance) => instance,
        // A start section is guest code already.
        Err(error) if error.is::<wasmtime::Trap>() || error.is::<I32Exit>() => {
            end(&ended(Err(error)));
        }
        Err(error) => return Err(error),
    };
    let name = config.function.as_deref().unwrap_or("_start");
    let Some(function) = instance.get_func(&mut store, name) else {
        return Err(wasmtime::Error::msg(format!(
            "module exports no function \"{name}\""
        )));
    };
    if config.function.is_some()
        && let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize")
        && let Err(error) = initialize.call_async(&mut store, ()).await
    {
        end(&ended(Err(error)));
    }
    let ty = function.ty(&store);
    if ty.params().len() != 0 {
        return Err(wasmtime::Error::msg(format!(
            "function \"{name}\" takes parameters"
        )));
    }
    let mut results = vec![wasmtime::Val::I32(0); ty.results().len()];
    let result = function.call_async(&mut store, &[], &mut results).await;
    end(&ended(result.map(|()| 0)))
}

struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

async fn component(config: &RunnerConfig, artefact: &File) -> wasmtime::Result<Infallible> {
    let component = load::component(artefact)?;
    let mut linker = wasmtime::component::Linker::new(component.engine());
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    let wasi = context(config)?.build();
    let state = Host {
        wasi,
        table: ResourceTable::new(),
        limits: limits(config),
    };
    let mut store = Store::new(component.engine(), state);
    store.limiter(|state| &mut state.limits);
    let instance = linker.instantiate_pre(&component)?;
    confine(config)?;
    if let Some(name) = &config.function {
        let instance = instance.instantiate_async(&mut store).await?;
        let Some(function) = instance.get_func(&mut store, name) else {
            return Err(wasmtime::Error::msg(format!(
                "component exports no function \"{name}\""
            )));
        };
        let ty = function.ty(&store);
        if ty.params().len() != 0 {
            return Err(wasmtime::Error::msg(format!(
                "function \"{name}\" takes parameters"
            )));
        }
        let mut results = vec![wasmtime::component::Val::Bool(false); ty.results().len()];
        let result = function.call_async(&mut store, &[], &mut results).await;
        end(&ended(result.map(|()| 0)));
    }
    let command = CommandPre::new(instance)?
        .instantiate_async(&mut store)
        .await?;
    let result = command.wasi_cli_run().call_run(&mut store).await;
    end(&ended(result.map(|run| i32::from(run.is_err()))))
}
