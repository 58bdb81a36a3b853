//! `network create`: flags, and what Docker's client finds wrong with subnets before it asks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use amphora_engine::{CreateNetwork, Engine, IpamConfig, Subnet};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// Drivers that are there, or known by name: whatever else there is, a plugin would bring.
const DRIVERS: [&str; 7] = ["", "bridge", "host", "ipvlan", "macvlan", "null", "overlay"];
/// The one there is: addresses are records of ours.
const IPAM_DRIVER: &str = "default";

// Arguments of `network create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver
    #[arg(long, value_name = "NAME=ADDRESS")]
    aux_address: Vec<String>,
    /// Driver to manage the Network
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// IPv4 or IPv6 Gateway for the master subnet
    #[arg(long, value_delimiter = ',')]
    gateway: Vec<String>,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_delimiter = ',')]
    ip_range: Vec<String>,
    /// IP Address Management Driver; only "default"
    #[arg(long, default_value = IPAM_DRIVER)]
    ipam_driver: String,
    /// Set IPAM driver specific options
    #[arg(long, value_name = "KEY=VALUE")]
    ipam_opt: Vec<String>,
    /// Enable or disable IPv4 address assignment (default true)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    ipv4: Option<bool>,
    /// Enable or disable IPv6 address assignment (default: as the host has it)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    ipv6: Option<bool>,
    /// Set metadata on a network
    #[arg(long)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_delimiter = ',')]
    subnet: Vec<String>,
    /// Name
    #[arg(value_name = "NETWORK")]
    name: String,
}

/// Carries out `network create`.
pub(crate) fn create(engine: &Engine, args: &CreateArgs) -> Outcome {
    if args.ipam_driver != IPAM_DRIVER {
        let driver = &args.ipam_driver;
        return Err(Failure::Daemon(format!("plugin \"{driver}\" not found")));
    }
    if let Some(option) = parse::pairs(&args.ipam_opt).keys().next() {
        return Err(Failure::Daemon(format!(
            "IPAM option \"{option}\" is not supported"
        )));
    }
    if let Some(text) = args.label.iter().find(|text| text.starts_with('=')) {
        let why = format!("invalid label '{text}': empty name");
        return Err(parse::bad_flag("--label", text, &why));
    }
    let asked = CreateNetwork {
        name: args.name.clone(),
        driver: args.driver.clone(),
        internal: args.internal,
        ipv4: args.ipv4.unwrap_or(true),
        ipv6: args.ipv6,
        attachable: args.attachable,
        labels: parse::pairs(&args.label),
        options: parse::pairs(&args.opt),
        ipam: ipam(args)?,
    };
    if asked.name == "default" {
        let text = "operation is not permitted on predefined default network ";
        return Err(Failure::Daemon(text.to_owned()));
    }
    if !DRIVERS.contains(&asked.driver.as_str()) {
        let driver = &asked.driver;
        return Err(Failure::Daemon(format!("plugin \"{driver}\" not found")));
    }
    let made = engine.create_network(&asked)?;
    ui::line(&made.id);
    Ok(())
}

fn local(text: impl Into<String>) -> Failure {
    Failure::Local(text.into())
}

/// A subnet as it was written, and what belongs to it.
struct Part {
    given: String,
    subnet: Subnet,
    config: IpamConfig,
}

/// Puts ranges, gateways and other addresses to the subnets that they lie in.
fn ipam(args: &CreateArgs) -> Outcome<Vec<IpamConfig>> {
    let most = args.ip_range.len().max(args.gateway.len());
    if args.subnet.len() < most {
        return Err(local(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut parts: Vec<Part> = Vec::new();
    for text in &args.subnet {
        let subnet = subnet(text)?;
        if parts.iter().any(|part| part.subnet.overlaps(&subnet)) {
            return Err(local(
                "multiple overlapping subnet configuration is not supported",
            ));
        }
        parts.push(Part {
            given: text.clone(),
            subnet,
            config: IpamConfig {
                subnet: Some(subnet),
                ..IpamConfig::default()
            },
        });
    }
    for text in &args.ip_range {
        range(&mut parts, text)?;
    }
    for text in &args.gateway {
        gateway(&mut parts, text)?;
    }
    for pair in &args.aux_address {
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        let found = text.parse::<IpAddr>().ok().and_then(|address| {
            let mut all = parts.iter_mut();
            Some((all.find(|part| part.subnet.contains(address))?, address))
        });
        let (part, address) =
            found.ok_or_else(|| local(format!("no matching subnet for aux-address {text}")))?;
        part.config.aux.insert(name.to_owned(), address);
    }
    Ok(parts.into_iter().map(|part| part.config).collect())
}

fn range(parts: &mut [Part], text: &str) -> Outcome {
    let range = cidr(text).map_err(local)?;
    let part = parts
        .iter_mut()
        .find(|part| part.subnet.contains(range.nth(0)));
    let part = part.ok_or_else(|| local(format!("no matching subnet for range {text}")))?;
    if let Some(before) = part.config.ip_range.replace(range) {
        return Err(local(format!(
            "cannot configure multiple ranges ({text}, {before}) on the same subnet ({})",
            part.given
        )));
    }
    Ok(())
}

fn gateway(parts: &mut [Part], text: &str) -> Outcome {
    let found = text.parse::<IpAddr>().ok().and_then(|address| {
        let mut all = parts.iter_mut();
        Some((all.find(|part| part.subnet.contains(address))?, address))
    });
    let (part, address) =
        found.ok_or_else(|| local(format!("no matching subnet for gateway {text}")))?;
    if let Some(before) = part.config.gateway.replace(address) {
        return Err(local(format!(
            "cannot configure multiple gateways ({text}, {before}) for the same subnet ({})",
            part.given
        )));
    }
    Ok(())
}

/// Reads a subnet; what is wrong with it Docker's daemon says.
fn subnet(text: &str) -> Outcome<Subnet> {
    let why = match text.parse::<Subnet>() {
        Ok(subnet)
            if text.split('/').next().and_then(|a| a.parse().ok()) == Some(subnet.base()) =>
        {
            return Ok(subnet);
        }
        Ok(subnet) => format!("it should be {subnet}"),
        Err(_) => "invalid CIDR block notation".to_owned(),
    };
    Err(Failure::Daemon(format!(
        "invalid network config:\ninvalid subnet {text}: {why}"
    )))
}

fn cidr(text: &str) -> Result<Subnet, String> {
    text.parse()
        .map_err(|_| format!("invalid CIDR address: {text}"))
}

/// Reads `--driver-opt` values of an endpoint.
pub(crate) fn driver_options(values: &[String]) -> Outcome<BTreeMap<String, String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_lowercase(), value.to_owned())),
        _ => Err(local("invalid key/value pair format in driver options")),
    };
    values.iter().map(pair).collect()
}
