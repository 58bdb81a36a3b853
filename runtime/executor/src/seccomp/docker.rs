//! Docker's profile format, which says for each rule with which capabilities, architectures and
//! kernels it holds; and the default profile, which is Docker's own (see `default.json`).

use amphora_spec::runtime::{Seccomp, SeccompArg, SeccompRule};
use serde::Deserialize;

use super::{Arch, SeccompError, compile};

/// Docker's default profile (moby 28.5.2, Apache-2.0), unchanged.
const DEFAULT: &str = include_str!("default.json");

/// The default profile compiled for the capabilities containers have unless told otherwise, and
/// for none. A test keeps them equal to what the compiler makes of `DEFAULT`.
#[cfg(target_arch = "x86_64")]
const COMPILED: [&[u8]; 2] = [
    include_bytes!("x86_64-default.bpf"),
    include_bytes!("x86_64-none.bpf"),
];
/// As above.
#[cfg(target_arch = "aarch64")]
const COMPILED: [&[u8]; 2] = [
    include_bytes!("aarch64-default.bpf"),
    include_bytes!("aarch64-none.bpf"),
];

/// Capabilities the default profile asks about, in the order of its rules.
const RELEVANT: [&str; 14] = [
    "CAP_DAC_READ_SEARCH",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_SYS_NICE",
    "CAP_SYSLOG",
    "CAP_BPF",
    "CAP_PERFMON",
];
/// The one among them that containers have by default.
const CHROOT: &str = "CAP_SYS_CHROOT";

/// Oldest kernel that can run the engine; rules for older ones hold always.
const KERNEL_MIN: (u32, u32) = (5, 12);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<SeccompArg>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Turns a profile in Docker's format into the runtime specification's, for a container with
/// these capabilities in its bounding set.
///
/// # Errors
/// When it is not such a profile, or contradicts itself.
pub fn docker_profile<S: AsRef<str>>(json: &str, caps: &[S]) -> Result<Seccomp, SeccompError> {
    resolve(json, caps, Arch::NATIVE, kernel())
}

/// Returns the default profile for a container with these capabilities in its bounding set.
///
/// # Panics
/// Never: the profile is part of the program and tested.
#[must_use]
pub fn default_profile<S: AsRef<str>>(caps: &[S]) -> Seccomp {
    default_profile_for(Arch::NATIVE, caps)
}

#[expect(
    clippy::expect_used,
    reason = "the profile is a constant that tests go through"
)]
pub(super) fn default_profile_for<S: AsRef<str>>(arch: Arch, caps: &[S]) -> Seccomp {
    resolve(DEFAULT, caps, arch, KERNEL_MIN).expect("the default profile is well formed")
}

/// Returns the compiled default profile: an array of `struct sock_filter`. For the capabilities
/// containers have unless told otherwise, and for any set that makes no difference, this is a copy.
///
/// # Panics
/// Never: the profile is part of the program and tested.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "the profile is a constant that tests go through"
)]
pub fn default_filter<S: AsRef<str>>(caps: &[S]) -> Vec<u8> {
    let mut relevant = caps
        .iter()
        .map(AsRef::as_ref)
        .filter(|cap| RELEVANT.contains(cap));
    let [default, none] = COMPILED;
    match (relevant.next(), relevant.any(|cap| cap != CHROOT)) {
        (Some(CHROOT), false) => default.to_vec(),
        (None, _) => none.to_vec(),
        _ => {
            compile(&default_profile(caps))
                .expect("the default profile compiles")
                .program
        }
    }
}

fn resolve<S: AsRef<str>>(
    json: &str,
    caps: &[S],
    arch: Arch,
    kernel: (u32, u32),
) -> Result<Seccomp, SeccompError> {
    let profile: Profile = serde_json::from_str(json)?;
    for path in [&profile.listener_path, &profile.listener_metadata]
        .into_iter()
        .flatten()
    {
        if !path.is_empty() {
            return Err(SeccompError::unsupported("seccomp profile listener", path));
        }
    }
    let mut out = Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures: architectures(profile.architectures, profile.arch_map, arch)?,
        flags: profile.flags.unwrap_or_default(),
        ..Seccomp::default()
    };
    let has = |cap: &String| caps.iter().any(|have| have.as_ref() == cap);
    let is = |name: &String| name == arch.docker_name();
    for rule in profile.syscalls.unwrap_or_default() {
        if let Some(no) = &rule.excludes
            && (list(&no.arches).iter().any(is)
                || list(&no.caps).iter().any(has)
                || (no.min_kernel.is_some() && since(no.min_kernel.as_ref(), kernel)?))
        {
            continue;
        }
        let yes = rule.includes.unwrap_or_default();
        let arch_fits = list(&yes.arches).is_empty() || list(&yes.arches).iter().any(is);
        let fits = arch_fits && list(&yes.caps).iter().all(has);
        if !fits || !since(yes.min_kernel.as_ref(), kernel)? {
            continue;
        }
        let mut names = rule.names.unwrap_or_default();
        match rule.name {
            Some(name) if names.is_empty() => names.push(name),
            Some(name) => return Err(SeccompError::invalid("seccomp rule with names", name)),
            None => {}
        }
        out.syscalls.push(SeccompRule {
            names,
            action: rule.action,
            errno_ret: rule.errno_ret,
            args: rule.args.unwrap_or_default(),
        });
    }
    Ok(out)
}

fn list(names: &Option<Vec<String>>) -> &[String] {
    names.as_deref().unwrap_or_default()
}

fn architectures(
    plain: Option<Vec<String>>,
    map: Option<Vec<ArchMap>>,
    native: Arch,
) -> Result<Vec<String>, SeccompError> {
    let plain = plain.unwrap_or_default();
    let map = map.unwrap_or_default();
    if let (Some(first), false) = (plain.first(), map.is_empty()) {
        return Err(SeccompError::invalid("architectures beside archMap", first));
    }
    let mut out = plain;
    for entry in map {
        if Arch::parse(&entry.architecture)? == Some(native) {
            out.push(entry.architecture);
            out.extend(entry.sub_architectures.unwrap_or_default());
        }
    }
    Ok(out)
}

/// Whether the kernel is as new as `wanted`, such as "4.8".
fn since(wanted: Option<&String>, kernel: (u32, u32)) -> Result<bool, SeccompError> {
    let Some(text) = wanted else { return Ok(true) };
    match version(text) {
        Some(wanted) => Ok(kernel >= wanted),
        None => Err(SeccompError::invalid("minKernel", text)),
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    version(&uname.release().to_string_lossy()).unwrap_or(KERNEL_MIN)
}
