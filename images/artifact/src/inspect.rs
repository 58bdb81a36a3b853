//! Reads the sections of a Wasm binary: cheap, without looking at any function body. The
//! compiler validates the rest.

use amphora_spec::select::{Magic, ModuleKind, WasmFacts, World};
use wasmparser::{ComponentTypeRef, Encoding, Parser, Payload, TypeRef};

use crate::error::ArtifactError;
use crate::imports::{core_function, interface, is_release};
use crate::{MAX_MODULE_BYTES, MAX_NAME_BYTES, MAX_NAMES, classify};

/// Reads what a Wasm binary imports, exports and is made to do.
///
/// # Errors
/// [`ArtifactError`]: it is something else, too large, or its structure is broken.
pub fn inspect_wasm(bytes: &[u8]) -> Result<WasmFacts, ArtifactError> {
    let size = bytes.len() as u64;
    if size > MAX_MODULE_BYTES {
        return Err(ArtifactError::TooLarge {
            size,
            limit: MAX_MODULE_BYTES,
        });
    }
    let kind = match classify(bytes) {
        Magic::WasmCore => ModuleKind::Core,
        Magic::WasmComponent => ModuleKind::Component,
        Magic::Precompiled => return Err(ArtifactError::Precompiled),
        Magic::Wat => return Err(ArtifactError::Text),
        _ => return Err(not_wasm(bytes)),
    };
    let mut scan = Scan::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            // Modules and components inside follow as payloads of their own.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            payload if depth == 0 => scan.payload(payload)?,
            _ => {}
        }
    }
    Ok(scan.finish(kind))
}

fn not_wasm(bytes: &[u8]) -> ArtifactError {
    if let Some(version) = bytes
        .strip_prefix(b"\0asm")
        .and_then(|rest| rest.first_chunk::<4>())
    {
        return ArtifactError::Version(u32::from_le_bytes(*version));
    }
    if bytes.is_empty() {
        return ArtifactError::NotWasm("nothing, it is empty".to_owned());
    }
    let head = bytes
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>();
    ArtifactError::NotWasm(head.join(" "))
}

#[derive(Default)]
struct Scan {
    imports: Vec<String>,
    exports: Vec<String>,
    missing: Vec<String>,
}

impl Scan {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), ArtifactError> {
        match payload {
            Payload::Version { encoding, num, .. } => {
                let known = match encoding {
                    Encoding::Module => num == 1,
                    Encoding::Component => num == 0x0d,
                };
                if !known {
                    return Err(ArtifactError::Version(u32::from(num)));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let function = matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_));
                    let provided = function && core_function(import.module, import.name);
                    let missing = format!("{}.{}", short(import.module), short(import.name));
                    let name = format!("{}::{}", short(import.module), short(import.name));
                    self.import(name, (!provided).then_some(missing))?;
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import?;
                    let name = import.name.name;
                    let provided =
                        matches!(import.ty, ComponentTypeRef::Instance(_)) && interface(name);
                    self.import(short(name), (!provided).then(|| short(name)))?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    push(&mut self.exports, short(export?.name))?;
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    push(&mut self.exports, short(export?.name.name))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, name: String, missing: Option<String>) -> Result<(), ArtifactError> {
        push(&mut self.imports, name)?;
        missing.map_or(Ok(()), |missing| push(&mut self.missing, missing))
    }

    fn finish(mut self, kind: ModuleKind) -> WasmFacts {
        for list in [&mut self.imports, &mut self.missing] {
            let mut seen = std::collections::HashSet::new();
            list.retain(|name| seen.insert(name.clone()));
        }
        let proxy_wasm = self
            .exports
            .iter()
            .any(|name| name.starts_with("proxy_abi_version_"));
        let world = match kind {
            ModuleKind::Core => core_world(&self.exports),
            ModuleKind::Component => component_world(&self.exports),
        };
        let Self {
            imports,
            exports,
            missing,
        } = self;
        WasmFacts {
            kind,
            world,
            imports,
            exports,
            missing,
            proxy_wasm,
        }
    }
}

fn push(list: &mut Vec<String>, name: String) -> Result<(), ArtifactError> {
    if list.len() >= MAX_NAMES {
        return Err(ArtifactError::TooManyNames(MAX_NAMES));
    }
    list.push(name);
    Ok(())
}

/// A name from a module, cut to a length that a record and a terminal can bear; control
/// characters are escaped.
fn short(name: &str) -> String {
    let mut text = String::with_capacity(name.len().min(MAX_NAME_BYTES));
    for c in name.chars() {
        if text.len() >= MAX_NAME_BYTES {
            text.push('…');
            break;
        }
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

fn core_world(exports: &[String]) -> World {
    let has = |name: &str| exports.iter().any(|export| export == name);
    if has("_start") {
        World::Command
    } else if has("_initialize") {
        World::Reactor
    } else {
        World::Unknown
    }
}

fn component_world(exports: &[String]) -> World {
    let has = |interface: &str, line: &str| {
        exports.iter().any(|export| {
            export
                .split_once('@')
                .is_some_and(|(path, version)| path == interface && is_release(version, line))
        })
    };
    if has("wasi:cli/run", "0.2.") || has("wasi:cli/run", "0.3.") {
        World::Command
    } else if has("wasi:http/incoming-handler", "0.2.") || has("wasi:http/handler", "0.3.") {
        World::Http
    } else {
        World::Unknown
    }
}
