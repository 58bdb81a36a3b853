//! The value of `--mount`: keys and values between commas, as a line of CSV.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::{Value, json};

use crate::config::MountPoint;
use crate::id_map::{self, IdMap};
use crate::{EngineError, Result};

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// What is below a read-only bind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Read-only too.
    #[default]
    Usual,
    /// As it was (`bind-recursive=writable`).
    Writable,
    /// Read-only, or it is an error (`bind-recursive=readonly`).
    ReadOnly,
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
    below: Below,
    idmap: Option<IdMap>,
    no_copy: bool,
    subpath: Option<String>,
    driver: Option<String>,
    driver_options: BTreeMap<String, String>,
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
    for field in csv(text)? {
        one(&mut fields, &field, cwd, &size)?;
    }
    if fields.kind.is_empty() {
        return invalid("type is required");
    }
    if fields.target.is_empty() {
        return invalid("target is required");
    }
    for of in ["volume", "image", "bind", "tmpfs"] {
        if fields.of.contains(&of) && fields.kind != of {
            return invalid(format!(
                "cannot mix '{of}-*' options with mount type '{}'",
                fields.kind
            ));
        }
    }
    together(&fields)?;
    let shown = shown(&fields);
    finish(fields).map(|point| (point, shown))
}

/// Splits a line of CSV as Go's reader does: a field in quotes may have commas in it, and two quotes
/// for one.
fn csv(text: &str) -> Result<Vec<String>> {
    let wrong = |at: usize, what: &str| {
        invalid(format!(
            "parse error on line 1, column {}: {what}-field",
            at + 1
        ))
    };
    if text.is_empty() {
        return invalid("EOF");
    }
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(quoted) = rest.strip_prefix('"') else {
            let len = rest.find(',').unwrap_or(rest.len());
            let field = rest.get(..len).unwrap_or_default();
            if let Some(quote) = field.find('"') {
                return wrong(at + quote, "bare \" in non-quoted");
            }
            fields.push(field.to_owned());
            if len == rest.len() {
                return Ok(fields);
            }
            at += len + 1;
            continue;
        };
        let mut field = String::new();
        let mut seen = 0;
        loop {
            let left = quoted.get(seen..).unwrap_or_default();
            let Some(quote) = left.find('"') else {
                return wrong(text.len(), "extraneous or missing \" in quoted");
            };
            field.push_str(left.get(..quote).unwrap_or_default());
            seen += quote + 1;
            match quoted.get(seen..).and_then(|rest| rest.chars().next()) {
                Some('"') => {
                    field.push('"');
                    seen += 1;
                }
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(',') => break,
                Some(_) => return wrong(at + seen, "extraneous or missing \" in quoted"),
            }
        }
        fields.push(field);
        at += 1 + seen + 1;
    }
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
        ("idmap", None) => {
            return invalid(
                "option 'idmap' needs a mapping (idmap=uids=DISK-SHOWN-COUNT[#...];gids=...): containers have no user namespace",
            );
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
    let pair = || {
        let (key, value) = value.split_once('=').unwrap_or((value, ""));
        (key.to_owned(), value.to_owned())
    };
    let of = match key {
        "bind-propagation" => {
            fields.propagation = value.to_ascii_lowercase();
            "bind"
        }
        "bind-recursive" => {
            recursive(fields, value)?;
            "bind"
        }
        "idmap" => {
            fields.idmap = Some(id_map::parse(value)?);
            "bind"
        }
        "volume-subpath" => {
            fields.subpath = Some(value.to_owned()).filter(|path| !path.is_empty());
            "volume"
        }
        "image-subpath" => {
            fields.subpath = Some(value.to_owned()).filter(|path| !path.is_empty());
            "image"
        }
        "volume-label" => {
            fields.labels.extend([pair()]);
            "volume"
        }
        "volume-driver" => {
            fields.driver = Some(value.to_owned());
            "volume"
        }
        "volume-opt" => {
            fields.driver_options.extend([pair()]);
            "volume"
        }
        "tmpfs-size" => {
            let parsed = size(value);
            fields.size = Some(parsed.ok_or_else(|| wrong_value(key, value))?);
            "tmpfs"
        }
        "tmpfs-mode" => {
            let parsed = u32::from_str_radix(value, 8).ok().filter(|m| *m <= 0o7777);
            fields.mode = Some(parsed.ok_or_else(|| wrong_value(key, value))?);
            "tmpfs"
        }
        _ => return invalid(format!("unexpected key '{key}' in '{field}'")),
    };
    fields.of.push(of);
    Ok(())
}

fn wrong_value(key: &str, value: &str) -> EngineError {
    EngineError::Invalid(format!("invalid value for {key}: {value}"))
}

fn recursive(fields: &mut Fields, value: &str) -> Result<()> {
    match value {
        "enabled" => {}
        "disabled" => fields.alone = true,
        "writable" => fields.below = Below::Writable,
        "readonly" => fields.below = Below::ReadOnly,
        _ => {
            return invalid(format!(
                "invalid value for bind-recursive: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
            ));
        }
    }
    Ok(())
}

/// Options that need others.
fn together(fields: &Fields) -> Result<()> {
    let needs = |option: &str, other: &str| {
        invalid(format!(
            "option 'bind-recursive={option}' requires '{other}' to be specified in conjunction"
        ))
    };
    match fields.below {
        Below::Writable if !fields.read_only => needs("writable", "readonly"),
        Below::ReadOnly if !fields.read_only => needs("readonly", "readonly"),
        Below::ReadOnly if fields.propagation != "rprivate" => {
            needs("readonly", "bind-propagation=rprivate")
        }
        _ => Ok(()),
    }
}

fn config<T>(kind: &str, why: &str) -> Result<T> {
    invalid(format!("invalid mount config for type \"{kind}\": {why}"))
}

fn finish(fields: Fields) -> Result<MountPoint> {
    let kind = fields.kind.as_str();
    if !matches!(kind, "bind" | "volume" | "tmpfs" | "image") {
        return config(kind, "mount type unknown");
    }
    let target = &fields.target;
    if !target.starts_with('/') {
        let why = format!("invalid mount path: '{target}' mount path must be absolute");
        return config(kind, &why);
    }
    if depth(target) == Some(0) {
        let why = "invalid specification: destination can't be '/'";
        return config(kind, why);
    }
    match kind {
        "bind" => bind(fields),
        "volume" => volume(fields),
        "image" => image(fields),
        _ => tmpfs(fields),
    }
}

/// How many folders a path leads down in the end; nothing where it leads up on its way.
fn depth(path: &str) -> Option<usize> {
    let mut depth: usize = 0;
    for part in Path::new(path).components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir if path.starts_with('/') => depth = depth.saturating_sub(1),
            Component::ParentDir => depth = depth.checked_sub(1)?,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(depth)
}

fn tmpfs(fields: Fields) -> Result<MountPoint> {
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

fn bind(fields: Fields) -> Result<MountPoint> {
    const KNOWN: [&str; 7] = [
        "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    ];
    let source = fields.source;
    if source.is_empty() {
        return config("bind", "field Source must not be empty");
    }
    if !KNOWN.contains(&fields.propagation.as_str()) {
        let why = format!("invalid propagation mode: {}", fields.propagation);
        return config("bind", &why);
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
        writable_below: fields.below == Below::Writable,
        idmap: fields.idmap,
        mode: None,
    })
}

/// A path that stays in what it begins in, by its text.
fn is_local(path: &str) -> bool {
    !path.starts_with('/') && depth(path).is_some()
}

fn image(fields: Fields) -> Result<MountPoint> {
    if fields.source.is_empty() {
        return config("image", "field Source must not be empty");
    }
    if fields
        .subpath
        .as_deref()
        .is_some_and(|path| !is_local(path))
    {
        return config("image", "subpath must be a relative path within the image");
    }
    Ok(MountPoint::Image {
        source: fields.source,
        destination: fields.target,
        subpath: fields.subpath,
        manifest: None,
        layers: Vec::new(),
    })
}

fn volume(fields: Fields) -> Result<MountPoint> {
    let anonymous = fields.source.is_empty();
    if anonymous && fields.read_only {
        let why = "must not set ReadOnly mode when using anonymous volumes";
        return config("volume", why);
    }
    if anonymous && fields.subpath.is_some() {
        let why = "must not set Subpath when using anonymous volumes";
        return config("volume", why);
    }
    if fields
        .subpath
        .as_deref()
        .is_some_and(|path| !is_local(path))
    {
        let why = "subpath must be a relative path within the volume";
        return config("volume", why);
    }
    let name = if anonymous {
        amphora_spec::Digest::from_sha256(crate::files::random()?).hex()
    } else {
        amphora_volume::check_name(&fields.source)
            .map_err(|e| EngineError::Invalid(e.to_string()))?;
        fields.source
    };
    if let Some(driver) = fields
        .driver
        .filter(|d| !matches!(d.as_str(), "" | "local"))
    {
        return invalid(format!(
            "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
        ));
    }
    Ok(MountPoint::Volume {
        name,
        destination: fields.target,
        read_only: fields.read_only,
        no_copy: fields.no_copy,
        anonymous,
        subpath: fields.subpath,
        labels: fields.labels,
        options: fields.driver_options,
        mode: None,
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
    let mut bind = serde_json::Map::new();
    if !fields.propagation.is_empty() {
        bind.insert("Propagation".to_owned(), json!(fields.propagation));
    }
    for (key, set) in [
        ("NonRecursive", fields.alone),
        ("ReadOnlyNonRecursive", fields.below == Below::Writable),
        ("ReadOnlyForceRecursive", fields.below == Below::ReadOnly),
    ] {
        if set {
            bind.insert(key.to_owned(), json!(true));
        }
    }
    if let Some(map) = &fields.idmap {
        bind.insert("IDMap".to_owned(), json!(map));
    }
    let mut volume = serde_json::Map::new();
    if fields.no_copy {
        volume.insert("NoCopy".to_owned(), json!(true));
    }
    if !fields.labels.is_empty() {
        volume.insert("Labels".to_owned(), json!(fields.labels));
    }
    let mut driver = serde_json::Map::new();
    if let Some(name) = &fields.driver {
        driver.insert("Name".to_owned(), json!(name));
    }
    if !fields.driver_options.is_empty() {
        driver.insert("Options".to_owned(), json!(fields.driver_options));
    }
    if !driver.is_empty() {
        volume.insert("DriverConfig".to_owned(), Value::Object(driver));
    }
    let mut image = serde_json::Map::new();
    if let Some(subpath) = &fields.subpath {
        let of = if fields.kind == "image" {
            &mut image
        } else {
            &mut volume
        };
        of.insert("Subpath".to_owned(), json!(subpath));
    }
    let mut tmpfs = serde_json::Map::new();
    tmpfs.extend(
        fields
            .size
            .map(|size| ("SizeBytes".to_owned(), json!(size))),
    );
    tmpfs.extend(fields.mode.map(|mode| ("Mode".to_owned(), json!(mode))));
    for (key, map) in [
        ("BindOptions", bind),
        ("VolumeOptions", volume),
        ("ImageOptions", image),
        ("TmpfsOptions", tmpfs),
    ] {
        if !map.is_empty() {
            value[key] = Value::Object(map);
        }
    }
    value
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

    const REFUSED: &[(&str, &str)] = &[
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
            "type=image,dst=/a",
            "invalid mount config for type \"image\": field Source must not be empty",
        ),
        (
            "type=cluster,src=x,dst=/a",
            "invalid mount config for type \"cluster\": mount type unknown",
        ),
        (
            "type=bind,src=/,dst=/a,bind-recursive=writable",
            "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction",
        ),
        (
            "type=bind,src=/,dst=/a,bind-recursive=readonly",
            "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction",
        ),
        (
            "type=bind,src=/,dst=/a,ro,bind-recursive=readonly",
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction",
        ),
        (
            "type=bind,src=/,dst=/a,bind-propagation=foo",
            "invalid mount config for type \"bind\": invalid propagation mode: foo",
        ),
        (
            "type=volume,dst=/a,image-subpath=1",
            "cannot mix 'image-*' options with mount type 'volume'",
        ),
        (
            "dst=/a,volume-subpath=x",
            "invalid mount config for type \"volume\": must not set Subpath when using anonymous volumes",
        ),
        (
            "src=vol,dst=/a,volume-subpath=../x",
            "invalid mount config for type \"volume\": subpath must be a relative path within the volume",
        ),
        (
            "type=tmpfs,dst=a",
            "invalid mount config for type \"tmpfs\": invalid mount path: 'a' mount path must be absolute",
        ),
        (
            "type=bind,src=/,dst=/a/..",
            "invalid mount config for type \"bind\": invalid specification: destination can't be '/'",
        ),
        ("", "EOF"),
        ("dst=", "target is required"),
        ("dst=/a,", "invalid field '' must be a key=value pair"),
        ("dst = /a", "unexpected key 'dst ' in 'dst = /a'"),
        (
            "dst=/a,\"ro",
            "parse error on line 1, column 11: extraneous or missing \" in quoted-field",
        ),
        (
            "dst=/a,\"r\"o",
            "parse error on line 1, column 10: extraneous or missing \" in quoted-field",
        ),
        (
            "dst=\"/a\"",
            "parse error on line 1, column 5: bare \" in non-quoted-field",
        ),
        (
            "\"",
            "parse error on line 1, column 2: extraneous or missing \" in quoted-field",
        ),
        (
            "dst=/a,\"ro\"\"x\"",
            "invalid field 'ro\"x' must be a key=value pair",
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
    ];

    #[test]
    fn refusals_use_docker_s_words() {
        for (text, why) in REFUSED {
            assert_eq!(&parsed(text).unwrap_err(), why, "{text}");
        }
    }
}
