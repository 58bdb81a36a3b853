//! `port`: what is published, in Docker's order; `port add` and `port rm`, which are ours.
//!
//! Docker's `port` takes one word or two, ours take three at least: a container that is named `add`
//! or `rm` is still asked by `port add` and `port add 80`.

use std::cmp::Ordering;

use amphora_engine::Engine;
use clap::Args;

use super::usage;
use crate::errors::{Failure, Outcome};
use crate::ui;

// Arguments of `port`.
#[derive(Debug, Args)]
#[command(
    after_help = "amphora port add CONTAINER SPEC...   Publish more ports of a container, as run -p does\n\
                  amphora port rm CONTAINER SPEC...    Take published ports back: 80, 8080:80, 127.0.0.1:8080:80/udp"
)]
pub(crate) struct PortArgs {
    /// Name or id
    container: String,
    /// Only this port
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
    /// Behind `add` or `rm` and a container: ports as `run -p` has them
    #[arg(value_name = "SPEC", hide = true)]
    specs: Vec<String>,
}

/// Puts the rules of running containers right. What stands in the way of that is told by the next
/// start: a list is a list all the same.
pub(crate) fn repair(engine: &Engine) {
    if let Ok(told) = engine.repair_rules() {
        ui::warnings(told);
    }
}

pub(crate) fn port(engine: &Engine, args: &PortArgs) -> Outcome {
    repair(engine);
    match (args.container.as_str(), &args.port, args.specs.as_slice()) {
        ("add", Some(container), specs @ [_, ..]) => add(engine, container, specs),
        ("rm", Some(container), specs @ [_, ..]) => {
            let id = engine.find(container)?;
            Ok(engine.unpublish(&id, &requests(specs)?)?)
        }
        (_, _, [_, ..]) => {
            usage::count_error(&std::env::args_os().collect::<Vec<_>>());
            Err(Failure::Code(1))
        }
        (container, wanted, []) => list(engine, container, wanted.as_deref()),
    }
}

fn requests(specs: &[String]) -> Outcome<Vec<amphora_engine::PortRequest>> {
    let mut all = Vec::new();
    for text in specs {
        let parsed = amphora_engine::port_specs(text).map_err(|e| Failure::Local(e.to_string()))?;
        all.extend(parsed);
    }
    Ok(all)
}

fn add(engine: &Engine, container: &str, specs: &[String]) -> Outcome {
    let id = engine.find(container)?;
    let published = engine.publish(&id, &requests(specs)?)?;
    show(published.iter().map(|port| {
        let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
        format!("{}/{} -> {host}", port.container_port, port.protocol)
    }));
    Ok(())
}

/// `80` as `80/tcp`, when it is a port.
fn wanted_port(text: &str) -> Outcome<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    number.parse::<u16>().map_err(|_| {
        Failure::Local(format!(
            "Error: invalid port ({number}): strconv.ParseUint: parsing \"{number}\": invalid syntax"
        ))
    })?;
    Ok(format!("{number}/{protocol}"))
}

fn list(engine: &Engine, container: &str, port: Option<&str>) -> Outcome {
    let view = engine.view(&engine.find(container)?)?;
    let wanted = port.map(wanted_port).transpose()?;
    let lines: Vec<String> = view
        .ports
        .iter()
        .filter_map(|port| {
            let key = format!("{}/{}", port.container_port, port.protocol);
            let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
            match &wanted {
                Some(want) => (*want == key).then(|| host.to_string()),
                None => Some(format!("{key} -> {host}")),
            }
        })
        .collect();
    if wanted.is_some() && lines.is_empty() {
        return Err(Failure::Local(format!(
            "Error: No public port '{}' published for {container}",
            port.unwrap_or_default()
        )));
    }
    show(lines.into_iter());
    Ok(())
}

fn show(lines: impl Iterator<Item = String>) {
    let mut lines: Vec<String> = lines.collect();
    lines.sort_by(|a, b| natural(a, b));
    lines.iter().for_each(|line| ui::line(line));
}

/// Docker's order: numbers within the text by their value.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (in_a, in_b) = (digits(a), digits(b));
        let order = if in_a > 0 && in_b > 0 {
            let ((x, rest_a), (y, rest_b)) = (a.split_at(in_a), b.split_at(in_b));
            (a, b) = (rest_a, rest_b);
            let (short_x, short_y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            let value = short_x.len().cmp(&short_y.len()).then(short_x.cmp(short_y));
            value.then(x.len().cmp(&y.len()))
        } else {
            let (mut rest_a, mut rest_b) = (a.chars(), b.chars());
            let (x, y) = (rest_a.next(), rest_b.next());
            if x.is_none() && y.is_none() {
                return Ordering::Equal;
            }
            (a, b) = (rest_a.as_str(), rest_b.as_str());
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_in_docker_s_order() {
        let wanted = [
            "80/tcp -> 0.0.0.0:8080",
            "80/tcp -> 0.0.0.0:10080",
            "80/tcp -> 127.0.0.1:8080",
            "80/tcp -> [::]:8080",
            "80/udp -> 0.0.0.0:8080",
            "443/tcp -> 0.0.0.0:443",
        ];
        let mut lines = wanted;
        lines.reverse();
        lines.sort_by(|a, b| natural(a, b));
        assert_eq!(lines, wanted);
    }
}
