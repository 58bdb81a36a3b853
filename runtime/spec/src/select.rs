//! Which executor runs an image, and why: a pure function of recorded facts and given options.
//!
//! Facts are collected once, when an image arrives; options come with the container. The first
//! matching rule wins and its sentence is kept, so that `inspect` can show the reason. Choosing
//! an entry of an index (platform rules) happens before, where the index is at hand.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::media;
use crate::{Classify, Digest, ErrorKind, Platform};

/// Annotation and label by which crun and podman name a handler.
pub const HANDLER_ANNOTATION: &str = "run.oci.handler";
/// Annotation of the "compat" Wasm image variants.
pub const VARIANT_ANNOTATION: &str = "module.wasm.image/variant";
/// Where the proxy-wasm "compat" variant keeps its module.
pub const PROXY_PLUGIN: &str = "plugin.wasm";

/// Which executor runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// A Linux process.
    Linux,
    /// A Wasm module or component in our runner.
    Wasm,
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "linux",
            Self::Wasm => "wasm",
        })
    }
}

/// What the first bytes of the entrypoint say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Magic {
    /// An ELF executable.
    Elf,
    /// `#!`.
    Script,
    /// A core Wasm module, binary.
    WasmCore,
    /// A Wasm component, binary.
    WasmComponent,
    /// Native code that a Wasm compiler made (`.cwasm`).
    Precompiled,
    /// Wasm in its text form.
    Wat,
    /// None of these.
    Other,
    /// There is no such file, or no entrypoint.
    #[default]
    Missing,
}

impl Magic {
    fn describe(self) -> &'static str {
        match self {
            Self::Elf => "an ELF executable",
            Self::Script => "a script",
            Self::WasmCore => "a Wasm module",
            Self::WasmComponent => "a Wasm component",
            Self::Precompiled => "precompiled native code",
            Self::Wat => "Wasm text",
            Self::Other => "no Wasm module",
            Self::Missing => "missing",
        }
    }
}

/// Core module or component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleKind {
    /// A core module (WASI 0.1).
    Core,
    /// A component (WASI 0.2 and later).
    Component,
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Core => "module",
            Self::Component => "component",
        })
    }
}

/// What a module is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// Runs once and exits: `_start`, or exports `wasi:cli/run`.
    Command,
    /// Answers requests: exports a `wasi:http` handler.
    Http,
    /// Only exports functions: `_initialize` without `_start`.
    Reactor,
    /// None of these.
    Unknown,
}

/// What a Wasm binary says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmFacts {
    /// Core module or component.
    pub kind: ModuleKind,
    /// What it is made to do.
    pub world: World,
    /// Imports: `module::name` of a core module, interface names of a component.
    pub imports: Vec<String>,
    /// Names of the exports.
    pub exports: Vec<String>,
    /// Imports that nothing here provides: `module.name`, or interface names.
    pub missing: Vec<String>,
    /// It is a plugin for Envoy (`proxy_abi_version_*` is exported).
    #[serde(default)]
    pub proxy_wasm: bool,
}

/// Where a module's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleLocation {
    /// A file of the root file system, by its absolute path there.
    Rootfs(String),
    /// A layer that is no tar but the module itself.
    Layer(Digest),
}

/// A module found in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFacts {
    /// SHA-256 of the module's bytes.
    pub digest: Digest,
    /// Where it is.
    pub location: ModuleLocation,
    /// What it says of itself.
    pub wasm: WasmFacts,
}

/// Everything about an image that [`select`] looks at; recorded when the image arrives.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Media type of the config.
    pub config_media_type: String,
    /// `artifactType` of the manifest.
    pub artifact_type: Option<String>,
    /// Platform of the config.
    pub platform: Platform,
    /// Annotations of the manifest and of its index entry.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Media types of the layers, base first.
    pub layers: Vec<String>,
    /// What the entrypoint, or the one raw layer, begins with.
    pub magic: Magic,
    /// The module, when there is one.
    pub module: Option<ModuleFacts>,
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `--runtime`.
    pub runtime: Option<String>,
    /// `--platform`.
    pub platform: Option<Platform>,
    /// `--annotation`.
    pub annotations: BTreeMap<String, String>,
    /// The export to call, from an entrypoint `path#func`.
    pub function: Option<String>,
}

/// The choice and its reason, a clause without full stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Who runs it.
    #[serde(rename = "kind")]
    pub executor: Executor,
    /// Why.
    pub reason: String,
}

/// Why no executor runs the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// `--runtime` names nothing that is known.
    #[error("unknown runtime \"{0}\"")]
    UnknownRuntime(String),
    /// What was asked for and what the image is exclude each other.
    #[error("{asked} asks for {executor}, but {content}")]
    Conflict {
        /// The option or annotation, as given.
        asked: String,
        /// What it asks for.
        executor: &'static str,
        /// What the image is instead.
        content: String,
    },
    /// A CNCF Wasm artifact must have exactly one layer.
    #[error("Wasm artifact has {0} layers, the format allows exactly one")]
    LayerCount(usize),
    /// Nothing here can run it.
    #[error("{0}")]
    Refused(String),
    /// The module needs what nothing here provides.
    #[error("{kind} imports unknown {what}: {}", names(.missing))]
    MissingImports {
        /// Module or component.
        kind: ModuleKind,
        /// `functions` or `interfaces`.
        what: &'static str,
        /// The imports.
        missing: Vec<String>,
    },
}

impl Classify for SelectError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownRuntime(_) | Self::Conflict { .. } => ErrorKind::InvalidArgument,
            Self::LayerCount(_) | Self::Refused(_) | Self::MissingImports { .. } => {
                ErrorKind::Unsupported
            }
        }
    }
}

/// Missing imports shown in a sentence; the rest are counted.
const SHOWN_IMPORTS: usize = 12;

fn names(list: &[String]) -> String {
    let shown = list
        .iter()
        .take(SHOWN_IMPORTS)
        .map(String::as_str)
        .collect::<Vec<_>>();
    let mut text = shown.join(", ");
    if let Some(more) = list.len().checked_sub(SHOWN_IMPORTS).filter(|&n| n > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Makes the error that names the imports a module lacks, if it lacks any.
#[must_use]
pub fn missing_imports(wasm: &WasmFacts) -> Option<SelectError> {
    let what = match wasm.kind {
        ModuleKind::Core => "functions",
        ModuleKind::Component => "interfaces",
    };
    let missing = wasm.missing.clone();
    (!missing.is_empty()).then_some(SelectError::MissingImports {
        kind: wasm.kind,
        what,
        missing,
    })
}

/// Maps a runtime's name, in Docker's, podman's or containerd's spelling, to an executor.
#[must_use]
pub fn runtime_executor(name: &str) -> Option<Executor> {
    match name {
        "wasm"
        | "wasmtime"
        | "crun-wasm"
        | "io.containerd.wasmtime.v1"
        | "io.containerd.wasmedge.v1"
        | "io.containerd.wasmer.v1" => Some(Executor::Wasm),
        "linux" | "runc" | "crun" | "youki" | "io.containerd.runc.v2" => Some(Executor::Linux),
        _ => None,
    }
}

/// Chooses the executor: the first rule that matches wins.
///
/// # Errors
/// [`SelectError`], with the sentence to show, when nothing here can run the image as asked.
pub fn select(facts: &Facts, options: &Options) -> Result<Selection, SelectError> {
    refuse_native(facts)?;
    if let Some(name) = &options.runtime {
        return forced(facts, options, name);
    }
    by_platform_option(facts, options)?;
    if let Some(form) = raw_artifact(facts) {
        return artifact(facts, options, form);
    }
    refuse_foreign(facts)?;
    if facts.platform.is_wasm() {
        return wasm(
            facts,
            options,
            format!("the image is made for {}", facts.platform),
        );
    }
    if let Some(asked) = handler(facts, options) {
        if facts.module.is_none() {
            return Err(SelectError::Conflict {
                asked,
                executor: "Wasm",
                content: entrypoint_is(facts),
            });
        }
        return wasm(facts, options, asked);
    }
    match facts.magic {
        Magic::WasmCore | Magic::WasmComponent => wasm(
            facts,
            options,
            format!("the entrypoint is {}", facts.magic.describe()),
        ),
        Magic::Elf | Magic::Script => Ok(linux(format!("{}", Article(facts.magic)))),
        _ => Ok(linux("nothing in the image asks for Wasm".to_owned())),
    }
}

struct Article(Magic);

impl fmt::Display for Article {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the entrypoint is {}", self.0.describe())
    }
}

fn linux(reason: String) -> Selection {
    Selection {
        executor: Executor::Linux,
        reason,
    }
}

fn entrypoint_is(facts: &Facts) -> String {
    format!("{}", Article(facts.magic))
}

/// Native code from an image is never loaded, and text is never compiled, whatever is asked.
fn refuse_native(facts: &Facts) -> Result<(), SelectError> {
    match facts.magic {
        Magic::Precompiled => Err(SelectError::Refused(
            "the entrypoint is precompiled native code of a Wasm compiler, which is never loaded \
             from an image; ship the .wasm file"
                .to_owned(),
        )),
        Magic::Wat => Err(SelectError::Refused(
            "the entrypoint is Wasm in its text form; ship the binary .wasm file".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn forced(facts: &Facts, options: &Options, name: &str) -> Result<Selection, SelectError> {
    let asked = format!("runtime \"{name}\"");
    match runtime_executor(name) {
        None => Err(SelectError::UnknownRuntime(name.to_owned())),
        Some(Executor::Wasm) if facts.module.is_none() => {
            refuse_foreign(facts)?;
            Err(SelectError::Conflict {
                asked,
                executor: "Wasm",
                content: entrypoint_is(facts),
            })
        }
        Some(Executor::Wasm) => {
            refuse_foreign(facts)?;
            wasm(facts, options, format!("{asked} was asked for"))
        }
        Some(Executor::Linux) => {
            if let Some(form) = raw_artifact(facts) {
                let content = format!("the image is {}", form.describe());
                return Err(SelectError::Conflict {
                    asked,
                    executor: "Linux",
                    content,
                });
            }
            refuse_foreign(facts)?;
            if facts.module.is_some() {
                let content = entrypoint_is(facts);
                return Err(SelectError::Conflict {
                    asked,
                    executor: "Linux",
                    content,
                });
            }
            Ok(linux(format!("{asked} was asked for")))
        }
    }
}

/// A platform that was asked for must be of the image's family; a module under a Linux platform
/// (forms D and K) is no conflict with `linux/...`.
fn by_platform_option(facts: &Facts, options: &Options) -> Result<(), SelectError> {
    let Some(platform) = &options.platform else {
        return Ok(());
    };
    let asked = format!("platform \"{platform}\"");
    if platform.is_wasm() && facts.module.is_none() {
        refuse_foreign(facts)?;
        return Err(SelectError::Conflict {
            asked,
            executor: "Wasm",
            content: entrypoint_is(facts),
        });
    }
    if !platform.is_wasm() && facts.platform.is_wasm() {
        let content = format!("the image is made for {}", facts.platform);
        return Err(SelectError::Conflict {
            asked,
            executor: "Linux",
            content,
        });
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RawForm {
    Cncf,
    Legacy,
    WasmCloud,
}

impl RawForm {
    fn describe(self) -> &'static str {
        match self {
            Self::Cncf => "a Wasm OCI artifact",
            Self::Legacy => "a Wasm artifact of the older kind (wasm-to-oci)",
            Self::WasmCloud => "a wasmCloud module",
        }
    }
}

fn raw_artifact(facts: &Facts) -> Option<RawForm> {
    let types = [
        Some(facts.config_media_type.as_str()),
        facts.artifact_type.as_deref(),
    ];
    let is = |media: &str| types.contains(&Some(media));
    if is(media::WASM_CONFIG_V0) || facts.artifact_type.as_deref() == Some(media::WASM_LAYER) {
        Some(RawForm::Cncf)
    } else if is(media::WASM_CONFIG_V1) {
        Some(RawForm::Legacy)
    } else if is(media::WASMCLOUD_CONFIG) {
        Some(RawForm::WasmCloud)
    } else {
        None
    }
}

fn artifact(facts: &Facts, options: &Options, form: RawForm) -> Result<Selection, SelectError> {
    if form == RawForm::Cncf && facts.layers.len() != 1 {
        return Err(SelectError::LayerCount(facts.layers.len()));
    }
    wasm(facts, options, format!("the image is {}", form.describe()))
}

/// Wasm that is made for another host.
fn refuse_foreign(facts: &Facts) -> Result<(), SelectError> {
    let refuse = |text: &str| Err(SelectError::Refused(text.to_owned()));
    let config = facts.config_media_type.as_str();
    if config == media::SPIN_APPLICATION
        || facts
            .layers
            .iter()
            .any(|layer| layer == media::SPIN_APPLICATION)
    {
        return refuse("the image is a Spin application, which needs the Spin runtime");
    }
    let proxy = facts
        .module
        .as_ref()
        .is_some_and(|module| module.wasm.proxy_wasm);
    let plugin = facts
        .module
        .as_ref()
        .is_some_and(|module| match &module.location {
            ModuleLocation::Rootfs(path) => path.trim_start_matches('/') == PROXY_PLUGIN,
            ModuleLocation::Layer(_) => false,
        });
    let compat = facts
        .annotations
        .get(VARIANT_ANNOTATION)
        .map(String::as_str)
        == Some("compat");
    if config == media::PROXY_WASM_CONFIG || proxy || (compat && plugin) {
        return refuse("the image is an Envoy proxy-wasm plugin, not a container");
    }
    let arch = facts.platform.architecture.to_ascii_lowercase();
    if arch.starts_with("wasm") && facts.platform.os.eq_ignore_ascii_case("js") {
        return refuse("the image is made for js/wasm, which needs a JavaScript host");
    }
    Ok(())
}

/// The annotation or label that asks for a Wasm handler outright. The `-smart` spellings leave
/// the choice to the entrypoint's magic bytes.
fn handler(facts: &Facts, options: &Options) -> Option<String> {
    let sources = [
        ("annotation", &options.annotations),
        ("annotation", &facts.annotations),
        ("label", &facts.labels),
    ];
    for (what, map) in sources {
        if let Some(value) = map.get(HANDLER_ANNOTATION) {
            let wasm = matches!(
                value.as_str(),
                "wasm" | "wasmtime" | "wasmedge" | "wasmer" | "wamr"
            );
            return wasm.then(|| format!("{what} {HANDLER_ANNOTATION}={value}"));
        }
        if let Some(value) = map.get(VARIANT_ANNOTATION) {
            return (value == "compat").then(|| format!("{what} {VARIANT_ANNOTATION}={value}"));
        }
    }
    None
}

/// Checks that the module can be run at all and states the choice.
fn wasm(facts: &Facts, options: &Options, reason: String) -> Result<Selection, SelectError> {
    let Some(module) = &facts.module else {
        let text = match facts.magic {
            Magic::Missing => format!("{reason}, but it holds no module"),
            _ => format!("{reason}, but {}", entrypoint_is(facts)),
        };
        return Err(SelectError::Refused(text));
    };
    refuse_foreign(facts)?;
    if let Some(error) = missing_imports(&module.wasm) {
        return Err(error);
    }
    check_world(&module.wasm, options.function.as_deref())?;
    Ok(Selection {
        executor: Executor::Wasm,
        reason,
    })
}

/// Says whether there is something to call.
///
/// # Errors
/// [`SelectError::Refused`] with the world that is not served, or the export that is missing.
pub fn check_world(wasm: &WasmFacts, function: Option<&str>) -> Result<(), SelectError> {
    let kind = wasm.kind;
    if let Some(function) = function {
        if wasm.exports.iter().any(|export| export == function) {
            return Ok(());
        }
        return Err(SelectError::Refused(format!(
            "{kind} exports no function \"{function}\""
        )));
    }
    match wasm.world {
        World::Command => Ok(()),
        World::Http => Err(SelectError::Refused(format!(
            "{kind} is a wasi:http server, which is not served yet"
        ))),
        World::Reactor => Err(SelectError::Refused(format!(
            "{kind} is a reactor without a start function; name an export, as in \
             \"/app.wasm#function\""
        ))),
        World::Unknown => {
            let imports = if wasm.imports.is_empty() {
                "imports nothing".to_owned()
            } else {
                format!("imports {}", names(&wasm.imports))
            };
            Err(SelectError::Refused(format!(
                "{kind} exports no known entry point and {imports}"
            )))
        }
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
