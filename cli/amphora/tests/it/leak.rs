//! The leak counter: everything a container could leave behind, as sorted lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::sandbox::tool;

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks everywhere.
    pub(crate) fn take(dir: &Path) -> Self {
        let mut lines = BTreeSet::new();
        mounts(&mut lines);
        command(&mut lines, "link", &["ip", "-o", "link"], |l| {
            l.split(':')
                .nth(1)
                .map(|n| n.trim().split('@').next().unwrap_or_default().to_owned())
        });
        command(&mut lines, "nft", &["nft", "list", "ruleset"], |l| {
            Some(without_counters(l))
        });
        command(&mut lines, "netns", &["ip", "netns"], |l| {
            Some(l.to_owned())
        });
        cgroups(&mut lines);
        sysctls(&mut lines);
        processes(&mut lines);
        locks(&mut lines, dir);
        for root in ["run", "root"] {
            files(&mut |line| _ = lines.insert(line), dir, &dir.join(root), 0);
        }
        Self { lines }
    }

    /// The same with more to watch.
    pub(crate) fn with(mut self, more: impl IntoIterator<Item = String>) -> Self {
        self.lines.extend(more);
        self
    }

    /// Says what came and what went.
    pub(crate) fn difference(&self, now: &Self) -> String {
        let came = now
            .lines
            .difference(&self.lines)
            .map(|l| format!("+ {l}\n"));
        let went = self
            .lines
            .difference(&now.lines)
            .map(|l| format!("- {l}\n"));
        came.chain(went).collect()
    }
}

/// A line of a ruleset: what it counted is not part of it.
pub(crate) fn without_counters(line: &str) -> String {
    let mut words = Vec::new();
    let mut rest = line.split_whitespace();
    while let Some(word) = rest.next() {
        if word == "counter" {
            // packets N bytes N
            rest.by_ref().take(4).for_each(drop);
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

fn mounts(lines: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        lines.insert(format!(
            "mount {}",
            fields.get(4).copied().unwrap_or_default()
        ));
    }
}

fn command(
    lines: &mut BTreeSet<String>,
    kind: &str,
    words: &[&str],
    pick: impl Fn(&str) -> Option<String>,
) {
    for line in tool(words).lines().filter_map(pick) {
        lines.insert(format!("{kind} {line}"));
    }
}

fn cgroups(lines: &mut BTreeSet<String>) {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(hierarchies) = fs::read_dir(root) else {
        return;
    };
    let below = hierarchies.flatten().map(|h| h.path());
    for hierarchy in below.chain([root.to_owned()]) {
        for parent in ["amphora", "amphora-devices"] {
            let Ok(children) = fs::read_dir(hierarchy.join(parent)) else {
                continue;
            };
            for child in children.flatten().filter(|c| c.path().is_dir()) {
                lines.insert(format!("cgroup {}", child.path().display()));
            }
        }
    }
}

fn sysctls(lines: &mut BTreeSet<String>) {
    const WATCHED: [&str; 6] = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "kernel/core_pattern",
        "net/ipv4/ip_local_port_range",
    ];
    for name in WATCHED {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            lines.insert(format!("sysctl {name} = {}", value.trim()));
        }
    }
}

fn processes(lines: &mut BTreeSet<String>) {
    each_process(|pid, words, cgroup| {
        if is_ours(words)
            || ["/amphora/", "/amphora-devices/"]
                .iter()
                .any(|parent| cgroup.contains(parent))
        {
            lines.insert(format!("process {pid} {}", words.join(" ")));
        }
    });
}

/// Counts what is on its way out: supervisors and finishers, and links of namespaces that are being destroyed.
/// Both end by themselves, some time after the command that started it. Without words is what is
/// between one program and the next, or has given up its memory and is about to end.
pub(crate) fn unsettled() -> usize {
    keepers()
        + tool(&["ip", "-o", "link"])
            .lines()
            .filter(|l| l.contains(": am") && !l.contains(": amphora0"))
            .count()
}

/// Counts supervisors and finishers: one for each container that runs or is on its way out.
pub(crate) fn keepers() -> usize {
    let mut count = 0;
    each_process(|_, words, _| {
        let leaving = |w: &String| w == "finish" || w == "supervise";
        if words.is_empty() || is_ours(words) && words.get(1).is_some_and(leaving) {
            count += 1;
        }
    });
    count
}

fn is_ours(words: &[String]) -> bool {
    words
        .first()
        .is_some_and(|w| w.rsplit('/').next() == Some("amphora"))
}

/// Tells pid, words and cgroups of every process of this network namespace.
pub(crate) fn each_process(mut f: impl FnMut(u32, &[String], &str)) {
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        // Processes of other engines and other tests live in other network namespaces.
        let own = fs::read_link("/proc/thread-self/ns/net").ok();
        if fs::read_link(entry.path().join("ns/net")).ok() != own {
            continue;
        }
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Ok(text) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<String> = text
            .split(|b| *b == 0)
            .filter(|w| !w.is_empty())
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        f(pid, &words, &cgroup);
    }
}

fn locks(lines: &mut BTreeSet<String>, dir: &Path) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::metadata(dir) else { return };
    let dev = format!(
        "{:02x}:{:02x}:",
        rustix::fs::major(meta.dev()),
        rustix::fs::minor(meta.dev())
    );
    let Ok(text) = fs::read_to_string("/proc/locks") else {
        return;
    };
    for line in text.lines().filter(|l| l.contains(&dev)) {
        let inode = line.split_whitespace().nth(5).unwrap_or_default();
        lines.insert(format!("lock {inode}"));
    }
}

/// Names what lies beneath a directory, four levels deep.
pub(crate) fn files(each: &mut dyn FnMut(String), base: &Path, dir: &Path, depth: usize) {
    // What lies in layers and volumes is content, not bookkeeping.
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let shown = path
            .strip_prefix(base)
            .unwrap_or(&path)
            .display()
            .to_string();
        // What is known of everything together stays.
        if ["run/index", "run/events", "run/events.1"].contains(&shown.as_str()) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let aliases = shown.contains("/aliases");
        // One folder a network, as that of the leases; what is in it is looked at.
        if !(is_dir && shown.ends_with("/aliases")) {
            each(format!("file {shown}"));
        }
        if is_dir && (depth < 3 || aliases) {
            files(each, base, &path, depth + 1);
        }
    }
}

#[test]
#[should_panic(expected = "false")]
fn a_tool_that_fails_is_no_empty_list() {
    command(&mut BTreeSet::new(), "none", &["false"], |l| {
        Some(l.to_owned())
    });
}

#[test]
fn what_has_no_words_yet_is_not_settled() {
    use std::os::unix::process::CommandExt;

    let _s = crate::sandbox::Sandbox::new();
    assert_eq!(unsettled(), 0);
    let mut nameless = std::process::Command::new("cat")
        .arg0("")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(unsettled(), 1);
    drop(nameless.stdin.take());
    assert_eq!(crate::sandbox::wait_for(&mut nameless), 0);
    assert_eq!(unsettled(), 0);
}
