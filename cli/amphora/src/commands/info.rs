//! `info` and `version`.

use amphora_engine::{Engine, Settings, Status};
use amphora_template::{Missing, Mode, Object, Template, Value};
use clap::Args;
use serde_json::{Value as Json, json};

use crate::errors::{Failure, Outcome};
use crate::{format, ui};

/// Keys of `info` that are maps in Docker's types.
const MAPS: &[&str] = &["Runtimes", "Details", "IndexConfigs"];
/// Keys that are lists.
const SLICES: &[&str] = &["Labels", "Warnings", "SecurityOptions"];
/// Registries that need no certificate whatever is set.
const LOOPBACK: [&str; 2] = ["::1/128", "127.0.0.0/8"];

// Flags of `info` and `version`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "STRING")]
    format: Option<String>,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The architecture in Go's words.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn operating_system() -> String {
    read("/etc/os-release")
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned())
}

/// Prints JSON through a template; `false` when there is none.
///
/// The template is called `name`, as in Docker.
fn through(format: Option<&str>, json: &Json, name: &str, kind: &'static str) -> Outcome<bool> {
    let text = match format {
        None | Some("") => return Ok(false),
        Some("json") => "{{json .}}",
        Some(text) => text,
    };
    let template =
        Template::parse(text).map_err(|e| Failure::Status(64, format::parsing_error(&e)))?;
    let value = match Value::from_json(json, MAPS, SLICES) {
        Value::Object(object) if text != "{{json .}}" => {
            Value::Object(Object::new(object.fields, Missing::Type(kind)))
        }
        other => other,
    };
    let out = template.execute(&value, Mode::Rows).map_err(|e| {
        let text = e.to_string();
        let text = text.replacen("template: :", &format!("template: {name}:"), 1);
        Failure::Local(text.replacen("executing \"\"", &format!("executing \"{name}\""), 1))
    })?;
    ui::line(&out);
    Ok(true)
}

fn version_json() -> Json {
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "Client": {
            "Version": version,
            "Os": "linux",
            "Arch": go_arch(),
            "Context": "default",
            "Platform": { "Name": "amphora" },
        },
        "Server": {
            "Platform": { "Name": "amphora" },
            "Version": version,
            "Os": "linux",
            "Arch": go_arch(),
            "KernelVersion": read("/proc/sys/kernel/osrelease"),
            "Components": [{ "Name": "Engine", "Version": version, "Details": {
                "Arch": go_arch(), "KernelVersion": read("/proc/sys/kernel/osrelease"), "Os": "linux",
            } }],
        },
    })
}

/// Carries out `version`.
pub(crate) fn version(args: &FormatArgs) -> Outcome {
    let json = version_json();
    if through(
        args.format.as_deref(),
        &json,
        "version",
        "system.versionInfo",
    )? {
        return Ok(());
    }
    let version = env!("CARGO_PKG_VERSION");
    let arch = go_arch();
    ui::raw(&format!(
        "Client: amphora\n Version:           {version}\n OS/Arch:           linux/{arch}\n Context:           default\n\n\
         Server: amphora\n Engine:\n  Version:          {version}\n  OS/Arch:          linux/{arch}\n"
    ));
    Ok(())
}

fn pools_json(settings: &Settings) -> Vec<Json> {
    let pools = settings.network.pools.iter();
    pools
        .map(|(base, size)| json!({ "Base": base.to_string(), "Size": size }))
        .collect()
}

/// Registries that are spoken to in plain HTTP: hosts, and ranges of addresses.
fn insecure(settings: &Settings) -> (Vec<&str>, Vec<&str>) {
    let named = settings.insecure_registries.iter().map(String::as_str);
    let (mut ranges, hosts): (Vec<&str>, Vec<&str>) = named.partition(|name| name.contains('/'));
    ranges.extend(LOOPBACK);
    (hosts, ranges)
}

fn registry_json(settings: &Settings) -> Json {
    let config = |name: &str| {
        let config = json!({ "Name": name, "Mirrors": [], "Secure": false, "Official": false });
        (name.to_owned(), config)
    };
    let (hosts, ranges) = insecure(settings);
    let configs: serde_json::Map<String, Json> = hosts.into_iter().map(config).collect();
    json!({
        "Mirrors": settings.registry_mirrors,
        "InsecureRegistryCIDRs": ranges,
        "IndexConfigs": configs,
    })
}

fn info_json(engine: &Engine) -> Outcome<Json> {
    let containers = engine.ps(true)?;
    let running = containers
        .iter()
        .filter(|c| c.status == Status::Running)
        .count();
    let paused = containers
        .iter()
        .filter(|c| c.view.as_ref().is_some_and(|v| v.paused))
        .count();
    let settings = engine.settings();
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let images: std::collections::BTreeSet<_> = engine
        .images()?
        .into_iter()
        .map(|i| i.record.image_id)
        .collect();
    let mut info = json!({
        "Containers": containers.len(),
        "ContainersRunning": running - paused,
        "ContainersPaused": paused,
        "ContainersStopped": containers.len() - running,
        "Images": images.len(),
        "Driver": "overlay2",
        "LoggingDriver": settings.log.driver(),
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if v2 { "2" } else { "1" },
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Log": amphora_engine::logging::drivers().collect::<Vec<_>>(),
        },
        "KernelVersion": read("/proc/sys/kernel/osrelease"),
        "OperatingSystem": operating_system(),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": cpus,
        "MemTotal": engine.machine_memory(),
        "DockerRootDir": engine.data_root(),
        "Name": read("/proc/sys/kernel/hostname"),
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "ClientInfo": { "Version": env!("CARGO_PKG_VERSION"), "Context": "default", "Debug": false,
            "Os": "linux", "Arch": go_arch() },
        "Runtimes": { "linux": {}, "wasm": {} },
        "DefaultRuntime": settings.runtime.as_deref().unwrap_or("linux"),
        "DefaultAddressPools": pools_json(settings),
        "RegistryConfig": registry_json(settings),
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Swarm": { "LocalNodeState": "inactive" },
        "LiveRestoreEnabled": true,
        "Debug": false,
        "ExperimentalBuild": false,
        "SystemTime": crate::time::nano_text(jiff::Timestamp::now()),
        "Labels": null,
        "Warnings": null,
    });
    if let (Some(info), Json::Object(more)) = (info.as_object_mut(), machine_json()) {
        info.extend(more);
    }
    Ok(info)
}

/// What the machine can, in the words of `info`.
fn machine_json() -> Json {
    let v2 = read("/sys/fs/cgroup/cgroup.controllers");
    let has = |name: &str| {
        let v1 = std::path::Path::new("/sys/fs/cgroup").join(name);
        v1.is_dir() || v2.split_whitespace().any(|c| c == name)
    };
    let version = read("/etc/os-release");
    let version = version.lines().find_map(|l| l.strip_prefix("VERSION_ID="));
    json!({
        "MemoryLimit": has("memory"),
        "SwapLimit": has("memory"),
        "KernelMemoryTCP": false,
        "OomKillDisable": has("memory") && v2.is_empty(),
        "CpuCfsPeriod": has("cpu"),
        "CpuCfsQuota": has("cpu"),
        "CPUShares": has("cpu"),
        "CPUSet": has("cpuset"),
        "PidsLimit": has("pids"),
        "IPv4Forwarding": read("/proc/sys/net/ipv4/ip_forward") == "1",
        "OSVersion": version.unwrap_or_default().trim_matches('"'),
        "Isolation": "",
        "GenericResources": null,
        "CDISpecDirs": null,
    })
}

/// Carries out `info`.
pub(crate) fn info(engine: &Engine, args: &FormatArgs) -> Outcome {
    let json = info_json(engine)?;
    super::port::repair(engine);
    ui::warnings(engine.firewall_hints().unwrap_or_default());
    if through(args.format.as_deref(), &json, "", "system.dockerInfo")? {
        return Ok(());
    }
    let field = |name: &str| match json.pointer(name) {
        Some(Json::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let list = |name: &str| {
        let list = json.pointer(name).and_then(Json::as_array);
        let words: Vec<&str> = list
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        words.join(" ")
    };
    let memory = json.get("MemTotal").and_then(Json::as_u64).unwrap_or(0);
    let mut out = format!(
        "Client: amphora\n Version:    {}\n Context:    default\n Debug Mode: false\n\nServer:\n",
        env!("CARGO_PKG_VERSION")
    );
    for (indent, title, value) in [
        (1, "Containers", field("/Containers")),
        (2, "Running", field("/ContainersRunning")),
        (2, "Paused", field("/ContainersPaused")),
        (2, "Stopped", field("/ContainersStopped")),
        (1, "Images", field("/Images")),
        (1, "Server Version", field("/ServerVersion")),
        (1, "Storage Driver", field("/Driver")),
        (1, "Logging Driver", field("/LoggingDriver")),
        (1, "Cgroup Driver", field("/CgroupDriver")),
        (1, "Cgroup Version", field("/CgroupVersion")),
        (1, "Plugins", String::new()),
        (2, "Volume", list("/Plugins/Volume")),
        (2, "Network", list("/Plugins/Network")),
        (2, "Log", list("/Plugins/Log")),
        (1, "Swarm", "inactive".to_owned()),
        (1, "Runtimes", "linux wasm".to_owned()),
        (1, "Default Runtime", field("/DefaultRuntime")),
        (1, "Security Options", String::new()),
        (2, "seccomp", String::new()),
        (3, "Profile", "builtin".to_owned()),
        (1, "Kernel Version", field("/KernelVersion")),
        (1, "Operating System", field("/OperatingSystem")),
        (1, "OSType", field("/OSType")),
        (1, "Architecture", field("/Architecture")),
        (1, "CPUs", field("/NCPU")),
        (1, "Total Memory", ui::size_of_four(memory, true)),
        (1, "Name", field("/Name")),
        (1, "Docker Root Dir", field("/DockerRootDir")),
        (1, "Debug Mode", "false".to_owned()),
        (1, "Experimental", "false".to_owned()),
    ] {
        // Docker writes the names of security options without a colon.
        let colon = if title == "seccomp" { "" } else { ":" };
        let gap = if value.is_empty() { "" } else { " " };
        out.push_str(&format!(
            "{}{title}{colon}{gap}{value}\n",
            " ".repeat(indent)
        ));
    }
    out.push_str(&registries_and_pools(engine.settings()));
    ui::raw(&out);
    Ok(())
}

/// The last lines of `info`: what the configuration file says of registries and addresses.
fn registries_and_pools(settings: &Settings) -> String {
    let mut out = " Insecure Registries:\n".to_owned();
    let (hosts, ranges) = insecure(settings);
    for name in hosts.into_iter().chain(ranges) {
        out.push_str(&format!("  {name}\n"));
    }
    if !settings.registry_mirrors.is_empty() {
        out.push_str(" Registry Mirrors:\n");
    }
    for mirror in &settings.registry_mirrors {
        out.push_str(&format!("  {mirror}\n"));
    }
    out.push_str(" Live Restore Enabled: true\n");
    if !settings.network.pools.is_empty() {
        out.push_str(" Default Address Pools:\n");
    }
    for (base, size) in &settings.network.pools {
        out.push_str(&format!("   Base: {base}, Size: {size}\n"));
    }
    out
}
