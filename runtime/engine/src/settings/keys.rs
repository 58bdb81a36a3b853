//! The table of keys: dockerd's own, each with what becomes of it here.

use serde_json::Value;

use super::{Settings, values};

/// What becomes of a key.
pub(super) enum Key {
    /// Its value is read and holds.
    Works(fn(&mut Settings, &Value) -> Result<(), String>),
    /// Only values that say what is so anyway; why there are no others.
    Only(fn(&Value) -> bool, &'static str),
    /// Whatever its value.
    Refused(&'static str),
}

const NO_DAEMON: &str = "amphora has no daemon";
const NO_API: &str = "amphora has no daemon that listens";
const NO_SWARM: &str = "there are no clusters";
const OWN_RUNTIME: &str = "amphora is its own runtime and starts no other program";
const RULES: &str = "published ports and bridges are always rules in amphora's own nftables table";
const NOT_YET: &str = "not yet";
const LIMIT: &str = "transfers are not limited";

fn is_true(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn is_overlay(value: &Value) -> bool {
    matches!(value.as_str(), Some("overlay2" | "overlayfs"))
}

fn is_cgroupfs(value: &Value) -> bool {
    value.as_array().is_some_and(|list| {
        list.iter()
            .all(|option| option == "native.cgroupdriver=cgroupfs")
    })
}

fn is_builtin(value: &Value) -> bool {
    value == "builtin"
}

/// All keys, in alphabetical order.
pub(super) const KEYS: &[(&str, Key)] = &[
    ("allow-direct-routing", Key::Only(is_false, NOT_YET)),
    ("api-cors-header", Key::Refused(NO_API)),
    ("authorization-plugins", Key::Only(is_empty, NO_API)),
    ("bip", Key::Works(values::bip)),
    ("bip6", Key::Refused(NOT_YET)),
    (
        "bridge",
        Key::Refused("the default bridge is amphora's own"),
    ),
    ("bridge-accept-fwmark", Key::Refused(RULES)),
    ("builder", Key::Refused("images are not built here yet")),
    (
        "cgroup-parent",
        Key::Refused("containers are always in the cgroup \"amphora\""),
    ),
    ("cluster-advertise", Key::Refused(NO_SWARM)),
    ("cluster-store", Key::Refused(NO_SWARM)),
    ("cluster-store-opts", Key::Refused(NO_SWARM)),
    ("containerd", Key::Refused(OWN_RUNTIME)),
    ("containerd-namespace", Key::Refused(OWN_RUNTIME)),
    ("containerd-plugin-namespace", Key::Refused(OWN_RUNTIME)),
    ("cpu-rt-period", Key::Refused(NOT_YET)),
    ("cpu-rt-runtime", Key::Refused(NOT_YET)),
    ("data-root", Key::Works(values::data_root)),
    (
        "debug",
        Key::Only(is_false, "there is no daemon whose log could say more"),
    ),
    ("default-address-pools", Key::Works(values::pools)),
    ("default-cgroupns-mode", Key::Works(values::cgroupns_mode)),
    ("default-gateway", Key::Refused(NOT_YET)),
    ("default-gateway-v6", Key::Refused(NOT_YET)),
    ("default-init", Key::Works(values::init)),
    ("default-ipc-mode", Key::Works(values::ipc_mode)),
    ("default-network-opts", Key::Only(is_empty, NOT_YET)),
    ("default-runtime", Key::Works(values::runtime)),
    ("default-shm-size", Key::Works(values::shm_size)),
    ("default-ulimits", Key::Works(values::ulimits)),
    ("dns", Key::Works(values::dns)),
    ("dns-opts", Key::Works(values::dns_options)),
    ("dns-search", Key::Works(values::dns_search)),
    (
        "exec-opts",
        Key::Only(
            is_cgroupfs,
            "amphora writes cgroups itself and asks no manager",
        ),
    ),
    ("exec-root", Key::Works(values::exec_root)),
    (
        "experimental",
        Key::Only(is_false, "there are no experimental features"),
    ),
    (
        "features",
        Key::Only(is_empty, "there are no features to turn on or off"),
    ),
    ("fixed-cidr", Key::Refused(NOT_YET)),
    ("fixed-cidr-v6", Key::Refused(NOT_YET)),
    ("graph", Key::Refused("its name is \"data-root\" now")),
    ("group", Key::Refused(NO_API)),
    (
        "host-gateway-ip",
        Key::Refused("the name host-gateway stands for the bridge's own address"),
    ),
    (
        "host-gateway-ips",
        Key::Refused("the name host-gateway stands for the bridge's own address"),
    ),
    ("hosts", Key::Refused(NO_API)),
    (
        "icc",
        Key::Only(is_true, "containers of one bridge always reach each other"),
    ),
    ("ignore-cidr", Key::Refused(NOT_YET)),
    ("init", Key::Works(values::init)),
    (
        "init-path",
        Key::Refused("the init process is amphora's own"),
    ),
    (
        "insecure-registries",
        Key::Works(values::insecure_registries),
    ),
    (
        "ip",
        Key::Refused("ports are published on all addresses unless the container says otherwise"),
    ),
    ("ip-forward", Key::Only(is_true, RULES)),
    ("ip-forward-no-drop", Key::Refused(RULES)),
    ("ip-masq", Key::Only(is_true, RULES)),
    ("ip6tables", Key::Only(is_true, RULES)),
    ("iptables", Key::Only(is_true, RULES)),
    ("ipv6", Key::Works(values::ipv6)),
    (
        "labels",
        Key::Only(is_empty, "there is no daemon to be labelled"),
    ),
    (
        "live-restore",
        Key::Only(
            is_true,
            "containers always outlive the program that started them",
        ),
    ),
    ("log-driver", Key::Works(values::log_driver)),
    ("log-format", Key::Refused(NO_DAEMON)),
    ("log-level", Key::Refused(NO_DAEMON)),
    ("log-opts", Key::Works(values::log_options)),
    ("max-concurrent-downloads", Key::Refused(LIMIT)),
    ("max-concurrent-uploads", Key::Refused(LIMIT)),
    ("max-download-attempts", Key::Refused(LIMIT)),
    ("metrics-addr", Key::Refused(NO_API)),
    ("mtu", Key::Works(values::mtu)),
    ("network-control-plane-mtu", Key::Refused(NO_SWARM)),
    ("network-diagnostic-port", Key::Refused(NO_API)),
    ("no-new-privileges", Key::Works(values::no_new_privileges)),
    (
        "no-proxy",
        Key::Refused("proxies are taken from the environment"),
    ),
    ("node-generic-resources", Key::Only(is_empty, NO_SWARM)),
    ("oom-score-adjust", Key::Refused(NO_DAEMON)),
    ("pidfile", Key::Refused(NO_DAEMON)),
    (
        "proxies",
        Key::Only(is_empty, "proxies are taken from the environment"),
    ),
    ("raw-logs", Key::Refused(NO_DAEMON)),
    ("registry-mirrors", Key::Works(values::registry_mirrors)),
    ("rootless", Key::Only(is_false, "amphora needs root")),
    ("runtimes", Key::Only(is_empty, OWN_RUNTIME)),
    (
        "seccomp-profile",
        Key::Only(
            is_builtin,
            "a profile is given to a container, with --security-opt",
        ),
    ),
    (
        "selinux-enabled",
        Key::Only(is_false, "this engine drives no SELinux"),
    ),
    (
        "shutdown-timeout",
        Key::Refused("there is no daemon whose end would stop containers"),
    ),
    (
        "storage-driver",
        Key::Only(is_overlay, "root file systems are always overlays"),
    ),
    (
        "storage-opts",
        Key::Only(is_empty, "root file systems are always overlays"),
    ),
    ("swarm-default-advertise-addr", Key::Refused(NO_SWARM)),
    ("tls", Key::Refused(NO_API)),
    ("tlscacert", Key::Refused(NO_API)),
    ("tlscert", Key::Refused(NO_API)),
    ("tlskey", Key::Refused(NO_API)),
    ("tlsverify", Key::Refused(NO_API)),
    (
        "userland-proxy",
        Key::Only(is_false, "no port is published through a proxy"),
    ),
    (
        "userland-proxy-path",
        Key::Refused("no port is published through a proxy"),
    ),
    (
        "userns-remap",
        Key::Only(is_empty, "user namespaces are not used"),
    ),
    (
        "validate",
        Key::Refused("the file is checked whenever it is read"),
    ),
];
