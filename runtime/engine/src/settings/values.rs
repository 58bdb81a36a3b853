//! How the values of the keys are read. Each says what is wrong with a value in one sentence.

use std::net::IpAddr;
use std::path::PathBuf;

use amphora_distribution::AddressRange;
use amphora_network::Subnet;
use amphora_spec::runtime::{RLIMITS, Rlimit};
use serde_json::Value;

use super::Settings;

type Done = Result<(), String>;

/// Smallest MTU that IPv6 works with, and the largest a bridge takes.
const MTU: std::ops::RangeInclusive<u64> = 1280..=65_535;
/// Longest prefix of a subnet that has room for a bridge and a container.
const PREFIX_MAX: u8 = 30;

fn text(value: &Value) -> Result<&str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("{value} is not a string"))
}

fn flag(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("{value} is neither true nor false"))
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = value
        .as_array()
        .ok_or_else(|| format!("{value} is not a list of strings"))?;
    list.iter().map(|v| text(v).map(str::to_owned)).collect()
}

fn directory(value: &Value) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{value} is not an absolute path"))
    }
}

pub(super) fn data_root(settings: &mut Settings, value: &Value) -> Done {
    settings.data_root = Some(directory(value)?);
    Ok(())
}

pub(super) fn exec_root(settings: &mut Settings, value: &Value) -> Done {
    settings.exec_root = Some(directory(value)?);
    Ok(())
}

fn subnet(value: &Value) -> Result<Subnet, String> {
    let text = text(value)?;
    let subnet: Subnet = text.parse().map_err(|e| format!("{e}"))?;
    if subnet.base().is_ipv4() {
        Ok(subnet)
    } else {
        Err(format!("\"{text}\" is not an IPv4 subnet"))
    }
}

pub(super) fn bip(settings: &mut Settings, value: &Value) -> Done {
    let subnet = subnet(value)?;
    if subnet.prefix() > PREFIX_MAX || subnet.prefix() < 8 {
        return Err(format!("{value} is not between /8 and /{PREFIX_MAX}"));
    }
    let address = text(value)?.split('/').next().unwrap_or_default();
    let first = subnet.nth(1);
    if address.parse() != Ok(first) {
        return Err(format!(
            "{value}: the bridge has the first address of its subnet, here \"{first}/{}\"",
            subnet.prefix()
        ));
    }
    settings.network.bridge = Some(subnet);
    Ok(())
}

pub(super) fn pools(settings: &mut Settings, value: &Value) -> Done {
    let list = value
        .as_array()
        .ok_or_else(|| format!("{value} is not a list of {{\"base\", \"size\"}}"))?;
    for pool in list {
        let fields = pool
            .as_object()
            .ok_or_else(|| format!("{pool} is not {{\"base\", \"size\"}}"))?;
        if let Some(other) = fields.keys().find(|k| !["base", "size"].contains(&&***k)) {
            return Err(format!("a pool has no \"{other}\""));
        }
        let base = fields
            .get("base")
            .ok_or_else(|| format!("{pool} has no \"base\""))?;
        let base = subnet(base)?;
        let size = fields
            .get("size")
            .and_then(Value::as_u64)
            .and_then(|size| u8::try_from(size).ok())
            .filter(|size| (base.prefix()..=PREFIX_MAX).contains(size))
            .ok_or_else(|| {
                format!(
                    "the size of {pool} is not between {} and {PREFIX_MAX}",
                    base.prefix()
                )
            })?;
        settings.network.pools.push((base, size));
    }
    Ok(())
}

pub(super) fn mtu(settings: &mut Settings, value: &Value) -> Done {
    let mtu = value.as_u64().filter(|mtu| MTU.contains(mtu));
    let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok());
    settings.network.mtu = Some(mtu.ok_or_else(|| {
        format!(
            "{value} is not a number from {} to {}",
            MTU.start(),
            MTU.end()
        )
    })?);
    Ok(())
}

pub(super) fn ipv6(settings: &mut Settings, value: &Value) -> Done {
    settings.network.ipv6 = Some(flag(value)?);
    Ok(())
}

pub(super) fn log_driver(settings: &mut Settings, value: &Value) -> Done {
    text(value)?.clone_into(&mut settings.log.driver);
    crate::logging::check(&crate::logging::LogSettings {
        driver: settings.log.driver.clone(),
        ..Default::default()
    })
    .map_err(|e| e.to_string())
}

pub(super) fn log_options(settings: &mut Settings, value: &Value) -> Done {
    let map = value
        .as_object()
        .ok_or_else(|| format!("{value} is not an object of strings"))?;
    for (key, value) in map {
        // dockerd takes strings alone; its words for others are hard to understand.
        let value = value
            .as_str()
            .ok_or_else(|| format!("\"{key}\": {value} is not a string: write \"{value}\""))?;
        settings.log.options.insert(key.clone(), value.to_owned());
    }
    Ok(())
}

pub(super) fn ulimits(settings: &mut Settings, value: &Value) -> Done {
    let map = value
        .as_object()
        .ok_or_else(|| format!("{value} is not an object of limits"))?;
    for (name, limit) in map {
        if !RLIMITS.contains(&name.as_str()) {
            return Err(format!("there is no limit \"{name}\""));
        }
        let fields = limit
            .as_object()
            .ok_or_else(|| format!("\"{name}\" is not {{\"Name\", \"Hard\", \"Soft\"}}"))?;
        let (mut hard, mut soft) = (None, None);
        for (key, value) in fields {
            match key.to_ascii_lowercase().as_str() {
                "name" if value == name => {}
                "name" => return Err(format!("\"{name}\" has the name {value}")),
                "hard" => hard = Some(number(name, value)?),
                "soft" => soft = Some(number(name, value)?),
                _ => return Err(format!("\"{name}\" has no \"{key}\"")),
            }
        }
        let (Some(hard), Some(soft)) = (hard, soft) else {
            return Err(format!("\"{name}\" needs both \"Hard\" and \"Soft\""));
        };
        if soft > hard {
            return Err(format!("\"{name}\": the soft limit is above the hard one"));
        }
        settings.ulimits.push(Rlimit {
            kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            hard,
            soft,
        });
    }
    Ok(())
}

fn number(name: &str, value: &Value) -> Result<u64, String> {
    match value.as_i64() {
        Some(-1) => Ok(u64::MAX),
        _ => value
            .as_u64()
            .ok_or_else(|| format!("\"{name}\": {value} is neither a number nor -1")),
    }
}

pub(super) fn shm_size(settings: &mut Settings, value: &Value) -> Done {
    let bytes = match value {
        Value::String(text) => crate::logging::size(text),
        other => other.as_u64(),
    };
    settings.shm_size = Some(
        bytes
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| format!("{value} is not a size, as \"64m\" is"))?,
    );
    Ok(())
}

fn one_of(value: &Value, allowed: [&str; 2]) -> Result<String, String> {
    let text = text(value)?;
    if allowed.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "\"{text}\" is neither \"{}\" nor \"{}\"",
            allowed[0], allowed[1]
        ))
    }
}

pub(super) fn cgroupns_mode(settings: &mut Settings, value: &Value) -> Done {
    settings.cgroupns_mode = one_of(value, ["host", "private"])?;
    Ok(())
}

pub(super) fn ipc_mode(settings: &mut Settings, value: &Value) -> Done {
    settings.ipc_mode = one_of(value, ["private", "shareable"])?;
    Ok(())
}

pub(super) fn dns(settings: &mut Settings, value: &Value) -> Done {
    let servers = texts(value)?;
    for server in &servers {
        server
            .parse::<IpAddr>()
            .map_err(|_| format!("\"{server}\" is not an address"))?;
    }
    settings.dns.servers = servers;
    Ok(())
}

fn words(value: &Value) -> Result<Vec<String>, String> {
    let words = texts(value)?;
    match words
        .iter()
        .find(|w| w.is_empty() || w.contains(char::is_whitespace))
    {
        Some(bad) => Err(format!("\"{bad}\" is not one word")),
        None => Ok(words),
    }
}

pub(super) fn dns_search(settings: &mut Settings, value: &Value) -> Done {
    settings.dns.search = words(value)?;
    Ok(())
}

pub(super) fn dns_options(settings: &mut Settings, value: &Value) -> Done {
    settings.dns.options = words(value)?;
    Ok(())
}

pub(super) fn init(settings: &mut Settings, value: &Value) -> Done {
    settings.init = flag(value)?;
    Ok(())
}

pub(super) fn no_new_privileges(settings: &mut Settings, value: &Value) -> Done {
    settings.no_new_privileges = flag(value)?;
    Ok(())
}

/// Docker's default means what is done without the key: the image decides.
pub(super) fn runtime(settings: &mut Settings, value: &Value) -> Done {
    settings.runtime = match text(value)? {
        "runc" | "io.containerd.runc.v2" => None,
        name @ ("linux" | "wasm") => Some(name.to_owned()),
        name => {
            return Err(format!(
                "there is no runtime \"{name}\"; there are \"linux\" and \"wasm\", and \"runc\" \
                 for the one that fits the image"
            ));
        }
    };
    Ok(())
}

pub(super) fn insecure_registries(settings: &mut Settings, value: &Value) -> Done {
    let list = texts(value)?;
    for registry in &list {
        if registry.contains("://") {
            return Err(format!("\"{registry}\" must be a host, without a scheme"));
        }
        if registry.contains('/') && registry.parse::<AddressRange>().is_err() {
            return Err(format!(
                "\"{registry}\" is neither a host nor a range of addresses"
            ));
        }
        if registry.is_empty() || registry.contains(char::is_whitespace) {
            return Err(format!("\"{registry}\" is not a host"));
        }
    }
    settings.insecure_registries = list;
    Ok(())
}

pub(super) fn registry_mirrors(settings: &mut Settings, value: &Value) -> Done {
    for mirror in texts(value)? {
        let host = mirror
            .strip_prefix("https://")
            .or_else(|| mirror.strip_prefix("http://"))
            .map(|rest| rest.trim_end_matches('/'));
        match host {
            Some(host) if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) => {
                return Err(format!(
                    "\"{mirror}\" must be a scheme and a host, without path, query or user"
                ));
            }
            Some(_) => {
                let whole = mirror.trim_end_matches('/').to_owned();
                settings.registry_mirrors.push(whole);
            }
            None => return Err(format!("\"{mirror}\" is no http or https URL")),
        }
    }
    Ok(())
}
