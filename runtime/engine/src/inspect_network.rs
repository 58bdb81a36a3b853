//! The part of `inspect` that says in which networks a container is, and by what names.

use amphora_network::{Endpoint, NetworkAttachment};
use serde_json::{Map, Value, json};

use crate::config::{ContainerConfig, NetworkMode};
use crate::container::{ContainerView, Status};
use crate::inspect::null_if_empty;

/// Describes a container's networks.
pub(crate) fn network_json(view: &ContainerView) -> Value {
    let host = &view.config.host;
    let main = view.endpoints.iter().find(|e| e.network == "bridge");
    let main = endpoint_json(None, main, &Value::Null);
    let ip = |key: &str| main.get(key).cloned().unwrap_or_default();
    let pid = view.state.as_ref().map(|s| s.init_pid);
    let pid = pid.filter(|_| view.status == Status::Running && host.network.is_own());
    json!({
        "Bridge": "",
        "Ports": if view.status == Status::Running { ports(view) } else { json!({}) },
        "IPAddress": ip("IPAddress"),
        "Gateway": ip("Gateway"),
        "IPPrefixLen": ip("IPPrefixLen"),
        "MacAddress": ip("MacAddress"),
        "Networks": networks(view),
        "EndpointID": ip("EndpointID"),
        "GlobalIPv6Address": ip("GlobalIPv6Address"),
        "GlobalIPv6PrefixLen": ip("GlobalIPv6PrefixLen"),
        "IPv6Gateway": ip("IPv6Gateway"),
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SandboxID": pid.map(|_| view.config.id.hex()).unwrap_or_default(),
        "SandboxKey": pid.map(|pid| format!("/proc/{pid}/ns/net")).unwrap_or_default(),
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
    })
}

fn ports(view: &ContainerView) -> Value {
    let mut ports = Map::new();
    let mode = &view.config.host.network;
    if !mode.is_own() || *mode == NetworkMode::None {
        return Value::Object(ports);
    }
    for exposed in &view.config.exposed {
        ports.insert(exposed.clone(), Value::Null);
    }
    for port in &view.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let list = ports.entry(key).or_insert(Value::Null);
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            list.push(json!({
                "HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string(),
            }));
        }
    }
    Value::Object(ports)
}

fn networks(view: &ContainerView) -> Value {
    let config = &view.config;
    let mut all = Map::new();
    let mode = &config.host.network;
    if mode.container().is_some() {
        return Value::Object(all);
    }
    let live = |name: &str| {
        let mut endpoints = view.endpoints.iter();
        endpoints.find(|e| e.network == name)
    };
    if config.host.networks.is_empty() && !config.host.unconnected {
        let name = mode.name();
        let one = endpoint_json(None, live(name), &dns_names(config, None));
        all.insert(name.to_owned(), one);
    }
    for asked in &config.host.networks {
        let names = dns_names(config, Some(asked));
        let one = endpoint_json(Some(asked), live(&asked.network), &names);
        all.insert(asked.network.clone(), one);
    }
    Value::Object(all)
}

/// The names a container is found by on a network of the user's: its own, those that were asked
/// for, its short id, its host name.
fn dns_names(config: &ContainerConfig, asked: Option<&NetworkAttachment>) -> Value {
    let Some(asked) = asked.filter(|a| !matches!(a.network.as_str(), "bridge" | "host" | "none"))
    else {
        return Value::Null;
    };
    let own = [config.id.short(), config.hostname.clone()];
    let mut names: Vec<&String> = vec![&config.name];
    for name in asked.aliases.iter().chain(&own) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    json!(names)
}

fn ipam_json(asked: &NetworkAttachment) -> Value {
    let mut map = Map::new();
    map.extend(asked.ip.map(|ip| ("IPv4Address".to_owned(), json!(ip))));
    map.extend(asked.ip6.map(|ip| ("IPv6Address".to_owned(), json!(ip))));
    null_if_empty(Value::Object(map))
}

fn endpoint_json(
    asked: Option<&NetworkAttachment>,
    endpoint: Option<&Endpoint>,
    names: &Value,
) -> Value {
    let text = |ip: Option<String>| ip.unwrap_or_default();
    let mac = endpoint.map(|e| e.mac.clone());
    let mac = mac.or_else(|| asked.and_then(|a| a.mac.clone()));
    json!({
        "IPAMConfig": asked.map_or(Value::Null, ipam_json),
        "Links": asked.map_or(Value::Null, |a| null_if_empty(json!(a.links))),
        "Aliases": asked.map_or(Value::Null, |a| null_if_empty(json!(a.aliases))),
        "MacAddress": text(mac),
        "DriverOpts": asked.map_or(Value::Null, |a| null_if_empty(json!(a.driver_opts))),
        "GwPriority": asked.map_or(0, |a| a.gw_priority),
        "NetworkID": text(endpoint.map(|e| e.network_id.clone())),
        "EndpointID": text(endpoint.map(|e| e.id.clone())),
        "Gateway": text(endpoint.and_then(gateway)),
        "IPAddress": text(endpoint.map(|e| e.address.to_string())),
        "IPPrefixLen": endpoint.map_or(0, |e| e.prefix),
        "IPv6Gateway": text(endpoint.and_then(gateway6)),
        "GlobalIPv6Address": text(endpoint.and_then(|e| e.address6).map(|a| a.to_string())),
        "GlobalIPv6PrefixLen": endpoint.map_or(0, |e| e.prefix6),
        "DNSNames": names,
    })
}

/// An internal network has none.
fn gateway(endpoint: &Endpoint) -> Option<String> {
    let leads = !endpoint.internal && !endpoint.gateway.is_unspecified();
    leads.then(|| endpoint.gateway.to_string())
}

fn gateway6(endpoint: &Endpoint) -> Option<String> {
    let leads = endpoint.gateway6.filter(|_| !endpoint.internal);
    leads.map(|gateway| gateway.to_string())
}
