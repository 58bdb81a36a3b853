//! Networks as `inspect` and `ls` have them.

use std::collections::BTreeSet;

use amphora_network::{Endpoint, IpamConfig, NetworkConfig};
use serde_json::{Map, Value, json};

use crate::{Engine, EngineError, Result};

impl Engine {
    /// Names of the networks that containers are in, or will be in when they are started.
    ///
    /// # Errors
    /// When containers cannot be listed.
    pub fn networks_in_use(&self) -> Result<BTreeSet<String>> {
        let all = self.ps(true)?;
        let names = all.iter().flat_map(|row| row.summary.networks());
        Ok(names.map(str::to_owned).collect())
    }

    /// Describes a network.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect_network(&self, text: &str) -> Result<Value> {
        let network = self.network(text)?;
        let mut members = self.network_endpoints(&network)?;
        for member in &members {
            match self.reconcile_one(&member.container) {
                Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        // What those that ended have left is gone by now.
        if !members.is_empty() {
            members = self.network_endpoints(&network)?;
        }
        Ok(self.network_json(&network, &members))
    }

    fn network_json(&self, network: &NetworkConfig, members: &[Endpoint]) -> Value {
        let containers: Map<String, Value> = members
            .iter()
            .map(|endpoint| (endpoint.container.hex(), self.member_json(endpoint)))
            .collect();
        let ipam: Vec<Value> = network.ipam().iter().map(ipam_json).collect();
        let own = !network.is_predefined();
        json!({
            "Name": network.name,
            "Id": network.id,
            "Created": network.created,
            "Scope": "local",
            "Driver": network.driver.as_str(),
            "EnableIPv4": network.subnet.is_some(),
            "EnableIPv6": network.subnet6.is_some(),
            "IPAM": {
                "Driver": "default",
                "Options": if own { json!({}) } else { Value::Null },
                "Config": if ipam.is_empty() { Value::Null } else { json!(ipam) },
            },
            "Internal": network.internal,
            "Attachable": network.attachable,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": containers,
            "Options": network.options,
            "Labels": network.labels,
        })
    }

    fn member_json(&self, endpoint: &Endpoint) -> Value {
        let name = self.config(&endpoint.container).map(|c| c.name);
        let v6 = endpoint
            .address6
            .map(|a| format!("{a}/{}", endpoint.prefix6));
        json!({
            "Name": name.unwrap_or_default(),
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac,
            "IPv4Address": format!("{}/{}", endpoint.address, endpoint.prefix),
            "IPv6Address": v6.unwrap_or_default(),
        })
    }
}

fn ipam_json(config: &IpamConfig) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        map.extend(value.map(|value| (key.to_owned(), value)));
    };
    put("Subnet", config.subnet.map(|s| json!(s)));
    put("IPRange", config.ip_range.map(|r| json!(r)));
    put("Gateway", config.gateway.map(|g| json!(g)));
    let aux = (!config.aux.is_empty()).then(|| json!(config.aux));
    put("AuxiliaryAddresses", aux);
    Value::Object(map)
}
