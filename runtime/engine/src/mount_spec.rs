//! Mounts and ports as they are asked for: `--mount`, `--volumes-from`, `--expose`.

use std::collections::BTreeMap;
use std::path::Path;

use amphora_volume::{BindOptions, Propagation};
use serde_json::{Value, json};

use crate::config::{HostConfig, MountPoint};
use crate::{Engine, EngineError, Result};

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// How a bind of the configuration is mounted.
pub(crate) fn bind_options(
    readonly: bool,
    create_missing: bool,
    propagation: &str,
    alone: bool,
) -> BindOptions {
    BindOptions {
        readonly,
        recursive: !alone,
        create_missing,
        propagation: match propagation {
            "shared" | "rshared" => Propagation::Shared,
            "slave" | "rslave" => Propagation::Slave,
            _ => Propagation::Private,
        },
    }
}

/// What `--mount` says, before its kind is known.
#[derive(Debug, Default)]
struct Fields {
    kind: String,
    source: String,
    target: String,
    read_only: bool,
    propagation: String,
    alone: bool,
    no_copy: bool,
    subpath: Option<String>,
    labels: BTreeMap<String, String>,
    size: Option<u64>,
    mode: Option<u32>,
    /// Which kinds of options were given.
    of: Vec<&'static str>,
}

/// Parses a `--mount` value. Returns the mount, and what Docker's `inspect` shows of it; `size`
/// parses a number of bytes.
///
/// # Errors
/// Docker's words for what is wrong with it.
pub fn mount_spec(
    text: &str,
    cwd: &Path,
    size: impl Fn(&str) -> Option<u64>,
) -> Result<(MountPoint, Value)> {
    let mut fields = Fields {
        kind: "volume".to_owned(),
        ..Fields::default()
    };
    for field in text.split(',') {
        one(&mut fields, field, cwd, &size)?;
    }
    if fields.kind.is_empty() {
        return invalid("type is required");
    }
    if fields.target.is_empty() {
        return invalid("target is required");
    }
    let mixed = fields.of.iter().find(|of| **of != fields.kind);
    if let Some(of) = mixed {
        return invalid(format!(
            "cannot mix '{of}-*' options with mount type '{}'",
            fields.kind
        ));
    }
    let shown = shown(&fields);
    finish(fields).map(|point| (point, shown))
}

fn one(
    fields: &mut Fields,
    field: &str,
    cwd: &Path,
    size: &impl Fn(&str) -> Option<u64>,
) -> Result<()> {
    let (key, value) = match field.split_once('=') {
        Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
        None => (field.to_ascii_lowercase(), None),
    };
    let flag = |value: Option<&str>| match value.unwrap_or("true") {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => invalid(format!("invalid value for {key}: {other}")),
    };
    match (key.as_str(), value) {
        ("readonly" | "ro", value) => fields.read_only = flag(value)?,
        ("volume-nocopy", value) => {
            fields.no_copy = flag(value)?;
            fields.of.push("volume");
        }
        ("bind-nonrecursive", value) => {
            fields.alone = flag(value)?;
            fields.of.push("bind");
        }
        (_, None) => return invalid(format!("invalid field '{field}' must be a key=value pair")),
        ("type", Some(value)) => fields.kind = value.to_ascii_lowercase(),
        ("source" | "src", Some(value)) => {
            let relative = value.starts_with('.');
            fields.source = if relative {
                crate::archive::path::join(&cwd.to_string_lossy(), value)
            } else {
                value.to_owned()
            };
        }
        ("target" | "dst" | "destination", Some(value)) => value.clone_into(&mut fields.target),
        ("consistency", Some(_)) => {}
        (key, Some(value)) => special(fields, field, key, value, size)?,
    }
    Ok(())
}

fn special(
    fields: &mut Fields,
    field: &str,
    key: &str,
    value: &str,
    size: &impl Fn(&str) -> Option<u64>,
) -> Result<()> {
    let of = match key {
        "bind-propagation" => {
            let known = [
                "private", "rprivate", "shared", "rshared", "slave", "rslave",
            ];
            if !known.contains(&value) {
                return invalid(format!("invalid propagation value: {value}"));
            }
            value.clone_into(&mut fields.propagation);
            "bind"
        }
        "bind-recursive" => {
            match value {
                "enabled" => {}
                "disabled" => fields.alone = true,
                "writable" | "readonly" => {
                    return Err(EngineError::Unsupported(format!(
                        "bind-recursive={value} is not supported"
                    )));
                }
                _ => {
                    return invalid(format!(
                        "invalid value for bind-recursive: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                    ));
                }
            }
            "bind"
        }
        "volume-subpath" => {
            fields.subpath = Some(value.to_owned());
            "volume"
        }
        "volume-label" => {
            let (key, value) = value.split_once('=').unwrap_or((value, ""));
            fields.labels.insert(key.to_owned(), value.to_owned());
            "volume"
        }
        "volume-driver" if matches!(value, "" | "local") => "volume",
        "volume-driver" | "volume-opt" => {
            return Err(EngineError::Unsupported(format!(
                "{key} \"{value}\" is not supported"
            )));
        }
        "tmpfs-size" => {
            let parsed = size(value);
            fields.size = Some(parsed.ok_or_else(|| {
                EngineError::Invalid(format!("invalid value for {key}: {value}"))
            })?);
            "tmpfs"
        }
        "tmpfs-mode" => {
            let parsed = u32::from_str_radix(value, 8).ok().filter(|m| *m <= 0o7777);
            fields.mode = Some(parsed.ok_or_else(|| {
                EngineError::Invalid(format!("invalid value for {key}: {value}"))
            })?);
            "tmpfs"
        }
        _ => return invalid(format!("unexpected key '{key}' in '{field}'")),
    };
    fields.of.push(of);
    Ok(())
}

fn config<T>(kind: &str, why: &str) -> Result<T> {
    invalid(format!("invalid mount config for type \"{kind}\": {why}"))
}

fn finish(fields: Fields) -> Result<MountPoint> {
    match fields.kind.as_str() {
        "bind" => bind(fields),
        "volume" => volume(fields),
        "tmpfs" => {
            if !fields.source.is_empty() {
                return config("tmpfs", "field Source must not be specified");
            }
            let mut options = Vec::new();
            if fields.read_only {
                options.push("ro".to_owned());
            }
            options.extend(fields.size.map(|size| format!("size={size}")));
            options.extend(fields.mode.map(|mode| format!("mode={mode:o}")));
            Ok(MountPoint::Tmpfs {
                destination: fields.target,
                options,
            })
        }
        "image" | "npipe" | "cluster" => Err(EngineError::Unsupported(format!(
            "mount type \"{}\" is not supported",
            fields.kind
        ))),
        other => invalid(format!(
            "invalid mount config for type \"{other}\": mount type unknown"
        )),
    }
}

fn bind(fields: Fields) -> Result<MountPoint> {
    let source = fields.source;
    if source.is_empty() {
        return config("bind", "field Source must not be empty");
    }
    if !source.starts_with('/') {
        let why = format!("invalid mount path: '{source}' mount path must be absolute");
        return config("bind", &why);
    }
    if !Path::new(&source).exists() {
        let why = format!("bind source path does not exist: {source}");
        return config("bind", &why);
    }
    Ok(MountPoint::Bind {
        source,
        destination: fields.target,
        read_only: fields.read_only,
        create: false,
        propagation: fields.propagation,
        alone: fields.alone,
    })
}

fn volume(fields: Fields) -> Result<MountPoint> {
    let anonymous = fields.source.is_empty();
    if anonymous && fields.subpath.is_some() {
        let why = "must not set Subpath when using anonymous volumes";
        return config("volume", why);
    }
    let name = if anonymous {
        amphora_spec::Digest::from_sha256(crate::files::random()?).hex()
    } else {
        amphora_spec::id::check_name(&fields.source).map_err(|_| {
            EngineError::Invalid(format!(
                "create {0}: \"{0}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
                fields.source
            ))
        })?;
        fields.source
    };
    Ok(MountPoint::Volume {
        name,
        destination: fields.target,
        read_only: fields.read_only,
        no_copy: fields.no_copy,
        anonymous,
        subpath: fields.subpath,
        labels: fields.labels,
    })
}

fn shown(fields: &Fields) -> Value {
    let mut value = json!({ "Type": fields.kind, "Target": fields.target });
    if !fields.source.is_empty() {
        value["Source"] = json!(fields.source);
    }
    if fields.read_only {
        value["ReadOnly"] = json!(true);
    }
    if !fields.propagation.is_empty() || fields.alone {
        value["BindOptions"] = json!({});
        if !fields.propagation.is_empty() {
            value["BindOptions"]["Propagation"] = json!(fields.propagation);
        }
        if fields.alone {
            value["BindOptions"]["NonRecursive"] = json!(true);
        }
    }
    if fields.no_copy || fields.subpath.is_some() || !fields.labels.is_empty() {
        value["VolumeOptions"] = json!({});
        if fields.no_copy {
            value["VolumeOptions"]["NoCopy"] = json!(true);
        }
        if let Some(subpath) = &fields.subpath {
            value["VolumeOptions"]["Subpath"] = json!(subpath);
        }
        if !fields.labels.is_empty() {
            value["VolumeOptions"]["Labels"] = json!(fields.labels);
        }
    }
    if fields.size.is_some() || fields.mode.is_some() {
        value["TmpfsOptions"] = json!({});
        if let Some(size) = fields.size {
            value["TmpfsOptions"]["SizeBytes"] = json!(size);
        }
        if let Some(mode) = fields.mode {
            value["TmpfsOptions"]["Mode"] = json!(mode);
        }
    }
    value
}

impl Engine {
    /// Adds the volumes and binds of other containers where nothing else is to be mounted.
    pub(crate) fn volumes_from(&self, host: &mut HostConfig) -> Result<()> {
        for text in host.volumes_from.clone() {
            let (container, mode) = text.split_once(':').unwrap_or((&text, ""));
            let read_only = match mode {
                "" | "rw" | "z" | "Z" => false,
                "ro" => true,
                other => return invalid(format!("invalid mode for volumes-from: {other}")),
            };
            let donor = self.config(&self.find(container)?)?;
            for mut point in donor.host.mounts {
                let clean = |p: &MountPoint| p.destination().trim_end_matches('/').to_owned();
                if host.mounts.iter().any(|m| clean(m) == clean(&point)) {
                    continue;
                }
                match &mut point {
                    MountPoint::Volume {
                        read_only: ro,
                        anonymous,
                        ..
                    } => (*ro, *anonymous) = (*ro || read_only, false),
                    MountPoint::Bind { read_only: ro, .. } => *ro = *ro || read_only,
                    MountPoint::Tmpfs { .. } => continue,
                }
                host.mounts.push(point);
            }
        }
        Ok(())
    }
}

/// Merges `--expose` values with the ports of the image, as `port/proto`.
///
/// # Errors
/// Docker's words for a value that is no port, range or protocol.
pub fn expose<'a>(
    given: &[String],
    image: impl Iterator<Item = &'a String>,
) -> Result<Vec<String>> {
    let mut out: Vec<String> = image.cloned().collect();
    for text in given {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if ports.contains(':') {
            return invalid(format!("invalid port format for --expose: {text}"));
        }
        let bad = |why: &str| {
            EngineError::Invalid(format!(
                "invalid range format for --expose: {text}, error: {why}"
            ))
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |port: &str| {
            let why = || format!("strconv.ParseUint: parsing \"{port}\": invalid syntax");
            port.parse::<u16>().map_err(|_| bad(&why()))
        };
        let (first, last) = (port(first)?, port(last)?);
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(bad(&format!("invalid proto: {protocol}")));
        }
        if first > last {
            return Err(bad("Invalid range specified for the Port"));
        }
        for port in first..=last {
            let key = format!("{port}/{protocol}");
            if !out.contains(&key) {
                out.push(key);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(MountPoint, Value), String> {
        mount_spec(text, Path::new("/home/u"), |s| s.parse().ok()).map_err(|e| e.to_string())
    }

    #[test]
    fn mounts_of_every_kind() {
        let (point, shown) = parsed("src=data,dst=/d,ro,volume-nocopy,volume-subpath=a").unwrap();
        assert!(matches!(
            point,
            MountPoint::Volume { ref name, read_only: true, no_copy: true, anonymous: false, .. }
                if name == "data"
        ));
        assert_eq!(
            shown["VolumeOptions"],
            json!({ "NoCopy": true, "Subpath": "a" })
        );
        let (point, _) = parsed("type=bind,source=/,target=/d,bind-propagation=rslave").unwrap();
        assert!(
            matches!(point, MountPoint::Bind { ref propagation, create: false, .. } if propagation == "rslave")
        );
        let (point, _) = parsed("type=tmpfs,dst=/t,tmpfs-size=4096,tmpfs-mode=0700").unwrap();
        let options = vec!["size=4096".to_owned(), "mode=700".to_owned()];
        assert_eq!(
            point,
            MountPoint::Tmpfs {
                destination: "/t".to_owned(),
                options
            }
        );
    }

    #[test]
    fn refusals_use_docker_s_words() {
        for (text, why) in [
            ("type=bind,src=/", "target is required"),
            ("dst=/a,x=y", "unexpected key 'x' in 'x=y'"),
            (
                "dst=/a,nonsense",
                "invalid field 'nonsense' must be a key=value pair",
            ),
            ("dst=/a,ro=maybe", "invalid value for ro: maybe"),
            (
                "type=bind,src=/,dst=/a,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "type=magic,dst=/a",
                "invalid mount config for type \"magic\": mount type unknown",
            ),
            (
                "type=image,src=x,dst=/a",
                "mount type \"image\" is not supported",
            ),
            (
                "type=bind,dst=/a",
                "invalid mount config for type \"bind\": field Source must not be empty",
            ),
            (
                "type=bind,src=/no/such,dst=/a",
                "invalid mount config for type \"bind\": bind source path does not exist: /no/such",
            ),
            (
                "type=tmpfs,src=x,dst=/a",
                "invalid mount config for type \"tmpfs\": field Source must not be specified",
            ),
        ] {
            assert_eq!(parsed(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn ports_are_exposed_beside_the_image_s() {
        let image = ["80/tcp".to_owned()];
        let given = ["80".to_owned(), "53/udp".to_owned(), "1-2".to_owned()];
        let all = expose(&given, image.iter()).unwrap();
        assert_eq!(all, ["80/tcp", "53/udp", "1/tcp", "2/tcp"]);
        assert!(expose(&["1:2".to_owned()], image.iter()).is_err());
        assert!(expose(&["x".to_owned()], image.iter()).is_err());
    }
}
