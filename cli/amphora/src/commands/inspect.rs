//! `inspect`: objects of all kinds as JSON, or through a template.

use amphora_engine::{Engine, EngineError};
use amphora_template::{Mode, Template, Value};
use clap::Args;
use serde_json::json;

use super::each;
use crate::errors::{Failure, Outcome};
use crate::ui;

/// Keys whose objects are maps in Docker's types: a missing entry is no error in a template.
const MAPS: &[&str] = &[
    "Annotations",
    "AuxiliaryAddresses",
    "Containers",
    "Data",
    "DriverOpts",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Status",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];
/// Keys whose `null` is an empty list in Docker's types.
const SLICES: &[&str] = &[
    "Aliases",
    "Args",
    "BlkioDeviceReadBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps",
    "BlkioWeightDevice",
    "Binds",
    "CapAdd",
    "CapDrop",
    "Cmd",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Entrypoint",
    "Env",
    "ExecIDs",
    "ExtraHosts",
    "GroupAdd",
    "Links",
    "MaskedPaths",
    "Mounts",
    "OnBuild",
    "ReadonlyPaths",
    "RepoDigests",
    "RepoTags",
    "SecondaryIPAddresses",
    "SecondaryIPv6Addresses",
    "SecurityOpt",
    "Shell",
    "Ulimits",
    "VolumesFrom",
];

// Arguments of `inspect` at the top level.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "STRING")]
    format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type", value_name = "STRING")]
    kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

// Arguments of `container inspect`.
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "STRING")]
    format: Option<String>,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

// Arguments of `image inspect`, `network inspect` and `volume inspect`.
#[derive(Debug, Args)]
pub(crate) struct OtherArgs {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "STRING")]
    format: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Any,
    Container,
    Image,
    Network,
    Volume,
}

/// Carries out `inspect`.
pub(crate) fn any(engine: &Engine, args: &InspectArgs) -> Outcome {
    let kind = match args.kind.as_deref() {
        None | Some("") => Kind::Any,
        Some("container") => Kind::Container,
        Some("image") => Kind::Image,
        Some("network") => Kind::Network,
        Some("volume") => Kind::Volume,
        Some(other @ ("node" | "plugin" | "secret" | "service" | "task" | "config")) => {
            return Err(Failure::Local(format!(
                "objects of type \"{other}\" are not supported"
            )));
        }
        Some(other) => {
            return Err(Failure::Local(format!(
                "unknown type: \"{other}\": must be one of \"config\", \"container\", \"image\", \"network\", \"node\", \"plugin\", \"secret\", \"service\", \"task\", \"volume\""
            )));
        }
    };
    run(engine, kind, args.format.as_deref(), args.size, &args.names)
}

/// Carries out `container inspect`.
pub(crate) fn container(engine: &Engine, args: &ContainerArgs) -> Outcome {
    let (format, names) = (args.format.as_deref(), &args.names);
    run(engine, Kind::Container, format, args.size, names)
}

/// Carries out `image inspect`, `network inspect` and `volume inspect`.
pub(crate) fn other(engine: &Engine, kind: Kind, args: &OtherArgs) -> Outcome {
    run(engine, kind, args.format.as_deref(), false, &args.names)
}

fn run(engine: &Engine, kind: Kind, format: Option<&str>, size: bool, names: &[String]) -> Outcome {
    let format = format.filter(|f| !f.is_empty());
    let template = match format {
        None | Some("json") => None,
        Some(text) => Some(
            Template::parse(text)
                .map_err(|e| Failure::Status(64, crate::format::parsing_error(&e)))?,
        ),
    };
    let mut found = Vec::new();
    let mut out = String::new();
    let outcome = each(names, |name| {
        let object = one(engine, kind, name, size)?;
        let Some(template) = &template else {
            found.push(object);
            return Ok(());
        };
        let execute = |object: &serde_json::Value| {
            template.execute(&Value::from_json(object, MAPS, SLICES), Mode::Rows)
        };
        let line = execute(&object)
            .or_else(|error| unsaid(object).map_or(Err(error), |whole| execute(&whole)))
            .map_err(|e| Failure::Local(crate::format::parsing_error(&e)))?;
        out.push_str(&line);
        out.push('\n');
        Ok(())
    });
    match format {
        None => {
            let text = serde_json::to_string_pretty(&found)
                .map_err(|e| Failure::Local(format!("failed to render: {e}")))?;
            // Docker indents by four.
            ui::line(&deeper(&text));
        }
        Some("json") => ui::line(&serde_json::Value::from(found).to_string()),
        Some(_) => ui::raw(&out),
    }
    outcome
}

/// A volume with the fields that Docker's type has, and JSON leaves out where they are empty: a
/// template may name them.
fn unsaid(mut object: serde_json::Value) -> Option<serde_json::Value> {
    let map = object
        .as_object_mut()
        .filter(|map| map.contains_key("Mountpoint"))?;
    for field in ["ClusterVolume", "Status", "UsageData"] {
        map.insert(field.to_owned(), serde_json::Value::Null);
    }
    Some(object)
}

/// Doubles the indentation.
fn deeper(text: &str) -> String {
    text.lines()
        .map(|line| {
            let depth = line.len() - line.trim_start_matches(' ').len();
            format!("{}{line}", " ".repeat(depth))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn one(engine: &Engine, kind: Kind, name: &str, size: bool) -> Outcome<serde_json::Value> {
    let mut object = match kind {
        Kind::Any => engine.inspect(name),
        Kind::Container => engine.inspect_container(name),
        Kind::Image => engine.inspect_image(name),
        Kind::Network => engine.inspect_network(name),
        Kind::Volume => engine.inspect_volume(name),
    }?;
    let is_container = object.get("HostConfig").is_some();
    if size
        && is_container
        && let Some(map) = object.as_object_mut()
    {
        let id = engine.find(name)?;
        match engine.container_size(&id) {
            Ok(size) => {
                map.insert("SizeRw".to_owned(), json!(size.writable));
                map.insert("SizeRootFs".to_owned(), json!(size.root));
            }
            Err(EngineError::NoSuchContainer(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(object)
}
