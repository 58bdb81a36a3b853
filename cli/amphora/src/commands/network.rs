//! Network commands.

use amphora_engine::{Engine, NetworkAttachment};
use amphora_spec::{Classify, ErrorKind};
use clap::{Args, Subcommand};

use super::each;
use super::network_flags::{address4, address6};
use crate::errors::{Failure, Outcome};
use crate::ui;

/// `network …`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Network {
    /// Connect a container to a network
    Connect(ConnectArgs),
    /// Create a network
    Create(super::network_create::CreateArgs),
    /// Disconnect a container from a network
    Disconnect(DisconnectArgs),
    /// Display detailed information on one or more networks
    Inspect(InspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(super::network_ls::LsArgs),
    /// Remove all unused networks
    Prune(super::prune::NetworkArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

// Arguments of `network connect`.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Add network-scoped alias for the container
    #[arg(long, value_delimiter = ',')]
    alias: Vec<String>,
    /// Driver options for the network
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE")]
    driver_opt: Vec<String>,
    /// Highest gw-priority provides the default gateway: positive or negative
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    gw_priority: i64,
    /// IPv4 address (e.g., "172.30.100.104")
    #[arg(long, default_value = "")]
    ip: String,
    /// IPv6 address (e.g., "2001:db8::33")
    #[arg(long, default_value = "")]
    ip6: String,
    /// Add link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Name or id
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

// Arguments of `network disconnect`.
#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// Force the container to disconnect from a network: what one that ended has left goes too
    #[arg(short, long)]
    force: bool,
    /// Name or id
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

// Arguments of `network inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) what: super::inspect::OtherArgs,
    /// Verbose output for diagnostics; local networks have no more to tell
    #[arg(short, long)]
    verbose: bool,
}

// Flags of `network rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Carries out `network …`.
pub(crate) fn network(engine: impl FnOnce() -> Outcome<Engine>, command: Network) -> Outcome {
    let engine = engine()?;
    match command {
        Network::Connect(args) => connect(&engine, args),
        Network::Create(args) => super::network_create::create(&engine, &args),
        Network::Disconnect(args) => {
            if args.force {
                // What containers that ended have left in it goes with a look at it.
                engine.inspect_network(&args.network)?;
            }
            ui::warnings(engine.disconnect_network(&args.container, &args.network)?);
            Ok(())
        }
        Network::Inspect(args) => {
            super::inspect::other(&engine, super::inspect::Kind::Network, &args.what)
        }
        Network::Ls(args) => super::network_ls::ls(&engine, &args),
        Network::Prune(args) => super::prune::networks(&engine, &args),
        Network::Rm(args) => each(&args.names, |name| match engine.remove_network(name) {
            Err(e) if args.force && e.kind() == ErrorKind::NotFound => Ok(()),
            other => {
                other?;
                ui::line(name);
                Ok(())
            }
        }),
    }
}

/// An address that is none, in the words of Docker's daemon.
fn wrong(why: &str) -> Failure {
    Failure::Daemon(format!("invalid endpoint settings:\n{why}"))
}

fn connect(engine: &Engine, args: ConnectArgs) -> Outcome {
    let attachment = NetworkAttachment {
        network: args.network,
        aliases: args.alias,
        ip: address4(&args.ip).map_err(|why| wrong(&why))?,
        ip6: address6(&args.ip6).map_err(|why| wrong(&why))?,
        links: args.link,
        gw_priority: args.gw_priority,
        driver_opts: super::network_create::driver_options(&args.driver_opt)?,
        ..NetworkAttachment::default()
    };
    ui::warnings(engine.connect_network(&args.container, &attachment)?);
    Ok(())
}
