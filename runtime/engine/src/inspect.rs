//! `inspect`: Docker's JSON of containers, images and volumes. Networks describe themselves.

use amphora_spec::select::{Options, select};
use amphora_spec::{Classify, ErrorKind};
use amphora_supervisor::HealthAction;
use serde_json::{Value, json};

use crate::config::MountPoint;
use crate::container::{ContainerView, Status};
use crate::image::ImageRecord;
use crate::{Engine, EngineError, Result};

const NEVER: &str = "0001-01-01T00:00:00Z";

impl Engine {
    /// Describes a container, an image, a network or a volume in Docker's JSON.
    ///
    /// # Errors
    /// [`EngineError::NoSuchObject`].
    pub fn inspect(&self, text: &str) -> Result<Value> {
        match self.inspect_container(text) {
            Err(EngineError::NoSuchContainer(_)) => {}
            other => return other,
        }
        match self.inspect_image(text) {
            Err(EngineError::NoSuchImage(_)) => {}
            other => return other,
        }
        match self.inspect_network(text) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        self.inspect_volume(text)
            .map_err(|_| EngineError::NoSuchObject(text.to_owned()))
    }

    /// Describes a container.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`].
    pub fn inspect_container(&self, text: &str) -> Result<Value> {
        let id = self.find(text)?;
        self.reconcile_one(&id)?;
        Ok(self.container_json(&self.view(&id)?))
    }

    /// Describes a volume.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect_volume(&self, name: &str) -> Result<Value> {
        let volume = self.volume(name)?;
        Ok(json!({
            "CreatedAt": crate::list::time_text(volume.created_s.saturating_mul(1_000_000_000)),
            "Driver": "local",
            "Labels": null_if_empty(json!(volume.labels)),
            "Mountpoint": self.volume_path(name),
            "Name": volume.name,
            "Options": null_if_empty(json!(volume.options)),
            "Scope": "local",
        }))
    }

    /// Describes an image.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`].
    pub fn inspect_image(&self, text: &str) -> Result<Value> {
        let (record, names) = self.image(text)?;
        let tags: Vec<String> = names
            .iter()
            .filter(|n| n.tag().is_some())
            .map(|n| n.familiar())
            .collect();
        let digests: Vec<String> = names
            .iter()
            .map(|n| format!("{}@{}", n.familiar_repository(), record.manifest.digest))
            .collect();
        Ok(image_json(&record, &tags, &digests))
    }

    fn container_json(&self, view: &ContainerView) -> Value {
        let config = &view.config;
        let args = config.args();
        let dir = self.container_dir(&config.id);
        let hosts = self.run_dir(&config.id).join("etc");
        let log = config.host.log.readable().ok();
        let log = log.map(|name| dir.join("logs").join(name));
        // As with Docker, files that the first start makes are not named before.
        let made = |path: std::path::PathBuf| match view.status {
            Status::Created => std::path::PathBuf::new(),
            _ => path,
        };
        json!({
            "Id": config.id.hex(),
            "Created": config.created,
            "Path": args.first().cloned().unwrap_or_default(),
            "Args": args.get(1..).unwrap_or_default(),
            "State": state_json(view),
            "Image": config.image_id,
            "ResolvConfPath": made(hosts.join("resolv.conf")),
            "HostnamePath": made(hosts.join("hostname")),
            "HostsPath": made(hosts.join("hosts")),
            "LogPath": made(log.unwrap_or_default()),
            "Name": format!("/{}", config.name),
            "RestartCount": restart_count(view),
            "Driver": "overlay2",
            "Platform": match config.executor {
                amphora_spec::select::Executor::Linux => "linux",
                amphora_spec::select::Executor::Wasm => "wasi",
            },
            "Executor": { "Kind": config.executor, "Reason": config.executor_reason },
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": "",
            "ExecIDs": null,
            "HostConfig": host_json(view),
            "GraphDriver": {
                "Name": "overlay2",
                "Data": { "UpperDir": dir.join("upper"), "WorkDir": dir.join("work") },
            },
            "Mounts": self.mounts_json(view),
            "Config": config_json(view),
            "NetworkSettings": crate::inspect_network::network_json(view),
        })
    }

    fn mounts_json(&self, view: &ContainerView) -> Value {
        view.config
            .host
            .mounts
            .iter()
            // Those of `--tmpfs` stand in the host's configuration alone.
            .filter(|m| {
                !matches!(m, MountPoint::Tmpfs { destination, .. }
                if !crate::inspect_host::given(&view.config.host, destination))
            })
            .map(|m| match m {
                MountPoint::Volume {
                    name,
                    destination,
                    read_only,
                    anonymous,
                    mode,
                    ..
                } => json!({
                    "Type": "volume", "Name": name, "Source": self.volume_path(name),
                    "Destination": destination, "Driver": "local",
                    "Mode": volume_mode(mode.as_deref(), *anonymous), "RW": !read_only,
                    "Propagation": "",
                }),
                MountPoint::Bind {
                    source,
                    destination,
                    read_only,
                    propagation,
                    mode,
                    ..
                } => json!({
                    "Type": "bind", "Source": source, "Destination": destination,
                    "Mode": mode.as_deref().unwrap_or_default(), "RW": !read_only,
                    "Propagation": if propagation.is_empty() { "rprivate" } else { propagation },
                }),
                MountPoint::Image {
                    source,
                    destination,
                    ..
                } => json!({
                    "Type": "image", "Source": source, "Destination": destination,
                    "Mode": "", "RW": false, "Propagation": "",
                }),
                MountPoint::Tmpfs {
                    destination,
                    options,
                } => json!({
                    "Type": "tmpfs", "Source": "", "Destination": destination,
                    "Mode": "", "RW": !options.iter().any(|o| o == "ro"), "Propagation": "",
                }),
            })
            .collect()
    }
}

/// What `-v` said; Docker takes `z` for granted where it said nothing, and for `--mount`.
fn volume_mode(mode: Option<&str>, anonymous: bool) -> &str {
    match mode {
        Some("") | None if !anonymous => "z",
        mode => mode.unwrap_or_default(),
    }
}

fn restart_count(view: &ContainerView) -> u32 {
    let recorded = view.exit.as_ref().map_or(0, |e| e.restarts);
    view.state.as_ref().map_or(recorded, |s| s.restarts)
}

fn state_json(view: &ContainerView) -> Value {
    let running = view.status == Status::Running;
    let restarting = view.status == Status::Restarting;
    let exit = view.exit.as_ref();
    let mut value = json!({
        "Status": view.state_word(),
        "Running": running || restarting,
        "Paused": view.paused,
        "Restarting": restarting,
        "OOMKilled": exit.is_some_and(|e| e.oom_killed),
        "Dead": view.status == Status::Dead,
        "Pid": view.state.as_ref().filter(|_| running).map_or(0, |s| s.init_pid),
        "ExitCode": if running { 0 } else { exit.map_or(0, |e| e.code) },
        "Error": exit.map(|e| e.error.clone()).unwrap_or_default(),
        "StartedAt": view.state.as_ref().map(|s| crate::list::time_text(s.started_at))
            .or_else(|| exit.map(|e| e.started_at.clone())).unwrap_or_else(|| NEVER.to_owned()),
        "FinishedAt": exit.filter(|_| !running).map_or_else(|| NEVER.to_owned(), |e| e.finished_at.clone()),
    });
    if let Some(health) = &view.health {
        value["Health"] = json!({
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": health.log,
        });
    }
    value
}

fn config_json(view: &ContainerView) -> Value {
    let config = &view.config;
    let exposed: serde_json::Map<String, Value> = config
        .exposed
        .iter()
        .map(|p| (p.clone(), json!({})))
        .collect();
    let mut value = json!({
        "Hostname": config.hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.stdin_once,
        "AttachStdout": config.attach_output[0],
        "AttachStderr": config.attach_output[1],
        "ExposedPorts": exposed,
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": config.env,
        "Cmd": config.cmd,
        "Image": config.image,
        "Volumes": null,
        "WorkingDir": config.workdir,
        "Entrypoint": if config.entrypoint.is_empty() { Value::Null } else { json!(config.entrypoint) },
        "OnBuild": null,
        "Labels": config.labels,
        "StopSignal": config.stop_signal,
        "StopTimeout": config.stop_timeout,
    });
    if let Some(check) = &config.health {
        value["Healthcheck"] = json!(check);
    }
    if config.host.health_on_failure != HealthAction::None {
        value["HealthcheckOnFailureAction"] = json!(config.host.health_on_failure);
    }
    value
}

fn host_json(view: &ContainerView) -> Value {
    let host = &view.config.host;
    let mut bindings = serde_json::Map::new();
    for port in &host.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let entry = json!({
            "HostIp": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            "HostPort": port.host_port.map(|p| p.to_string()).unwrap_or_default(),
        });
        let list = bindings.entry(key).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(entry);
        }
    }
    let mut value = json!({
        "NetworkMode": host.network.name(),
        "PortBindings": bindings,
        "RestartPolicy": {
            "Name": host.restart.kind.name(), "MaximumRetryCount": host.restart.max,
        },
        "AutoRemove": host.auto_remove,
        "LogConfig": { "Type": host.log.driver(), "Config": host.log.options },
        "CapAdd": capabilities(&host.cap_add),
        "CapDrop": capabilities(&host.cap_drop),
        "ExtraHosts": null_if_empty(json!(host.extra_hosts)),
        "PublishAllPorts": host.publish_all,
        "ReadonlyRootfs": host.read_only,
        "Dns": host.dns.servers,
        "DnsSearch": host.dns.search,
        "DnsOptions": host.dns.options,
        "ShmSize": host.shm_size.unwrap_or(64 << 20),
        "Runtime": "amphora",
        "Ulimits": host.ulimits.iter().map(|u| json!({
            "Name": u.kind.trim_start_matches("RLIMIT_").to_ascii_lowercase(),
            "Hard": u.hard, "Soft": u.soft,
        })).collect::<Vec<_>>(),
    });
    if !view.config.annotations.is_empty() {
        value["Annotations"] = json!(view.config.annotations);
    }
    if let Some(map) = value.as_object_mut() {
        map.extend(crate::limits::json(host));
        map.extend(crate::inspect_host::json(&view.config.name, host));
    }
    value
}

/// Capabilities by their whole names, sorted as Docker does.
fn capabilities(given: &[String]) -> Value {
    let whole = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") {
            return upper;
        }
        format!("CAP_{upper}")
    };
    let names: std::collections::BTreeSet<String> = given.iter().map(whole).collect();
    null_if_empty(json!(names))
}

/// Docker's `null` for a list or map that nobody gave.
pub(crate) fn null_if_empty(value: Value) -> Value {
    let empty = match &value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if empty { Value::Null } else { value }
}

fn image_json(record: &ImageRecord, tags: &[String], digests: &[String]) -> Value {
    let config = &record.config;
    let layers: Vec<String> = record
        .layers
        .iter()
        .map(|l| l.diff_id.unwrap_or(l.digest).to_string())
        .collect();
    let (executor, reason) = match select(&record.facts, &Options::default()) {
        Ok(selection) => (json!(selection.executor), selection.reason),
        Err(refused) => (Value::Null, refused.to_string()),
    };
    let comment = config.history.last().and_then(|h| h.comment.clone());
    json!({
        "Id": record.image_id,
        "Parent": "",
        "Comment": comment.unwrap_or_default(),
        "DockerVersion": "",
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config.created,
        "Author": config.author.clone().unwrap_or_default(),
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": record.size,
        "Config": image_config(json!(config.config)),
        "RootFS": { "Type": "layers", "Layers": layers },
        "Descriptor": record.manifest,
        "Metadata": { "LastTagTime": NEVER },
        "Executor": { "Kind": executor, "Reason": reason },
        "Wasm": record.facts.module.as_ref().map(|m| &m.wasm),
    })
}

/// What Docker's type of an image's configuration has and an OCI image need not say.
fn image_config(given: Value) -> Value {
    let mut whole = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false,
        "AttachStdout": false, "AttachStderr": false, "Tty": false, "OpenStdin": false,
        "StdinOnce": false, "Env": null, "Cmd": null, "Image": "", "Volumes": null,
        "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    });
    if let (Some(whole), Value::Object(given)) = (whole.as_object_mut(), given) {
        whole.extend(given);
    }
    whole
}
