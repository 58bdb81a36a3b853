//! What changes a container after its creation: pause, rename, update, wait.

use std::time::Duration;

use crate::sandbox::{Sandbox, has_controller, wait_until};

both!(
    pause_stops_the_clock_of_a_container,
    a_paused_container_is_stopped_killed_and_removed,
    rename_moves_the_name,
    a_renamed_container_frees_its_name,
    wait_for_several,
);

/// CPU time of a container's cgroup in nanoseconds, or of its init.
fn cpu_time(s: &Sandbox, name: &str) -> u64 {
    let pid = s.inspect(name)["State"]["Pid"].as_i64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn pause_stops_the_clock_of_a_container(image: &str) {
    if !has_controller("freezer") {
        return;
    }
    let s = Sandbox::ready();
    s.run(&["pause", "none"])
        .fails(1, "No such container: none");
    s.run(&["run", "-d", "--name", "busy", image, "spin", "600000"])
        .ok();
    wait_until("it to use CPU", Duration::from_secs(20), || {
        cpu_time(&s, "busy") > 2
    });
    assert_eq!(s.run(&["pause", "busy"]).ok(), "busy\n");
    let before = cpu_time(&s, "busy");
    let state = s.inspect("busy")["State"].clone();
    assert_eq!(
        (&state["Status"], &state["Paused"], &state["Running"]),
        (&"paused".into(), &true.into(), &true.into())
    );
    assert!(s.run(&["ps"]).ok().contains(" (Paused)"));
    let id = s.inspect("busy")["Id"].as_str().unwrap().to_owned();
    s.run(&["pause", "busy"]).fails(
        1,
        &format!("Error response from daemon: Container {id} is already paused"),
    );
    s.run(&["start", "busy"])
        .fails(1, "cannot start a paused container, try unpause instead");
    s.run(&["rm", "busy"])
        .fails(1, "container is paused and must be unpaused first");
    // Other commands take their time meanwhile; the frozen one uses none of it.
    s.run(&["run", "--rm", image, "spin", "200"]).ok();
    assert_eq!(cpu_time(&s, "busy"), before);
    assert_eq!(s.run(&["unpause", "busy"]).ok(), "busy\n");
    assert_eq!(s.inspect("busy")["State"]["Status"], "running");
    wait_until("it to go on", Duration::from_secs(20), || {
        cpu_time(&s, "busy") > before
    });
    s.run(&["unpause", "busy"])
        .fails(1, &format!("Container {id} is not paused"));
    s.run(&["rm", "-f", "busy"]).ok();
    s.run(&["create", "--name", "still", image]).ok();
    s.run(&["pause", "still"]).fails(1, "is not running");
}

fn a_paused_container_is_stopped_killed_and_removed(image: &str) {
    if !has_controller("freezer") {
        return;
    }
    let s = Sandbox::ready();
    for end in [
        &["stop", "-t", "2", "pp"][..],
        &["kill", "pp"],
        &["rm", "-f", "pp"],
    ] {
        s.run(&["run", "-d", "--name", "pp", image, "sleep", "600"])
            .ok();
        s.run(&["pause", "pp"]).ok();
        let began = std::time::Instant::now();
        s.run(end).ok();
        assert!(began.elapsed() < Duration::from_secs(15), "{end:?}");
        if end[0] != "rm" {
            assert_ne!(s.run(&["wait", "pp"]).ok(), "0\n");
            let state = s.inspect("pp")["State"].clone();
            assert_eq!(
                (&state["Status"], &state["Paused"]),
                (&"exited".into(), &false.into())
            );
            s.run(&["rm", "pp"]).ok();
        }
    }
    // A signal that is not to end it waits until it goes on.
    s.run(&["run", "-d", "--name", "pp", image, "sleep", "600"])
        .ok();
    s.run(&["pause", "pp"]).ok();
    s.run(&["kill", "-s", "USR2", "pp"]).ok();
    assert_eq!(s.inspect("pp")["State"]["Status"], "paused");
    s.run(&["rm", "-f", "pp"]).ok();
}

fn rename_moves_the_name(image: &str) {
    let s = Sandbox::ready();
    let id = s.run(&["create", "--name", "one", image]).ok();
    let id = id.trim();
    s.run(&["create", "--name", "two", image]).ok();
    assert_eq!(s.run(&["rename", "one", "three"]).ok(), "");
    assert_eq!(s.inspect("three")["Id"], id);
    assert_eq!(s.inspect(id)["Name"], "/three");
    s.run(&["inspect", "one"]).fails(1, "No such object: one");
    let text = s.run(&["rename", "three", "two"]).fails(
        1,
        "Error response from daemon: Error when allocating new name: Conflict. The container name \"/two\" is already in use by container",
    );
    assert!(
        text.ends_with("Error: failed to rename container named three\n"),
        "{text}"
    );
    for same in ["three", "/three"] {
        s.run(&["rename", "three", same]).fails(
            1,
            "Renaming a container with the same name as its current name",
        );
    }
    s.run(&["rename", "three", "no/slash"])
        .fails(1, "Error when allocating new name: Invalid container name");
    s.run(&["rename", "three", " "])
        .fails(1, "Error: Neither old nor new names may be empty");
    s.run(&["rename", "ghost", "x"])
        .fails(1, "No such container: ghost");
    // The old name is free at once, also for a rename.
    s.run(&["create", "--name", "one", image]).ok();
    s.run(&["rm", "one"]).ok();
    s.run(&["rename", "two", "one"]).ok();
    assert_eq!(
        s.run(&["create", "--name", "one", image]).code,
        1,
        "a renamed container lost its name"
    );
}

fn a_renamed_container_frees_its_name(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run", "-d", "--rm", "--name", "first", image, "sleep", "600",
    ])
    .ok();
    s.run(&["rename", "first", "second"]).ok();
    // Its old name belongs to somebody else now, and stays theirs when it ends.
    s.run(&["run", "-d", "--name", "first", image, "sleep", "600"])
        .ok();
    s.run(&["stop", "-t", "0", "second"]).ok();
    s.run(&["run", "--rm", "--name", "second", image]).ok();
    assert_eq!(s.inspect("first")["State"]["Status"], "running");
    s.run(&["rm", "-f", "first"]).ok();
}

fn wait_for_several(image: &str) {
    let s = Sandbox::ready();
    let image = if image == "probe-wasm" {
        "probe-p1"
    } else {
        image
    };
    for code in ["33", "44"] {
        s.run(&["run", "-d", "--name", code, image, "exit", code])
            .ok();
    }
    s.run(&["create", "--name", "made", image]).ok();
    let all = s.run(&["wait", "33", "ghost", "44", "made"]);
    assert_eq!((all.code, all.stdout.as_str()), (1, "33\n44\n0\n"));
    assert!(all.stderr.contains("No such container: ghost"), "{all:?}");
}

#[test]
fn renames_of_many_end_in_one_winner() {
    let s = Sandbox::ready();
    let names: Vec<String> = (0..12).map(|n| format!("c{n}")).collect();
    for name in &names {
        s.run(&["create", "--name", name, "probe-linux"]).ok();
    }
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            s.command(&["rename", name, "prize"])
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let won = children
        .into_iter()
        .filter_map(|mut child| (crate::sandbox::wait_for(&mut child) == 0).then_some(()))
        .count();
    assert_eq!(won, 1);
    let all = s.run(&["ps", "-a", "--format", "json"]).ok();
    assert_eq!(all.matches("\"Names\":\"prize\"").count(), 1, "{all}");
    assert_eq!(all.lines().count(), 12);
    let claims = std::fs::read_dir(s.root().join("names")).unwrap().count();
    assert_eq!(claims, 12);
}

/// Reads a file of the cgroup of a running container.
fn limit(s: &Sandbox, name: &str, v1: &str, v2: &str) -> String {
    let id = s.inspect(name)["Id"].as_str().unwrap().to_owned();
    let root = std::path::Path::new("/sys/fs/cgroup");
    let (controller, file) = v1.split_once('/').unwrap();
    let one = root.join(controller).join("amphora").join(&id).join(file);
    let two = root.join("amphora").join(&id).join(v2);
    let text = std::fs::read_to_string(one).or_else(|_| std::fs::read_to_string(two));
    text.unwrap().trim().to_owned()
}

#[test]
fn update_changes_kernel_and_record() {
    if !has_controller("memory") || !has_controller("cpu") || !has_controller("pids") {
        return;
    }
    let s = Sandbox::ready();
    s.run(&["update", "x"]).fails(
        1,
        "you must provide one or more flags when using this command",
    );
    s.run(&[
        "run",
        "-d",
        "-m",
        "64m",
        "--name",
        "uu",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    let update = |flags: &[&str]| {
        let mut args = vec!["update"];
        args.extend(flags);
        args.push("uu");
        s.run(&args)
    };
    assert_eq!(
        update(&[
            "-m",
            "96m",
            "--memory-reservation",
            "32m",
            "--cpus",
            "0.5",
            "--cpu-shares",
            "512",
            "--pids-limit",
            "77",
        ])
        .ok(),
        "uu\n"
    );
    let host = s.inspect("uu")["HostConfig"].clone();
    assert_eq!(host["Memory"], 96 << 20);
    assert_eq!(host["MemorySwap"], 128 << 20);
    assert_eq!(host["MemoryReservation"], 32 << 20);
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!(host["CpuShares"], 512);
    assert_eq!(host["PidsLimit"], 77);
    let memory = limit(&s, "uu", "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (96 << 20).to_string());
    assert_eq!(limit(&s, "uu", "pids/pids.max", "pids.max"), "77");
    assert!(limit(&s, "uu", "cpu/cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    // Refused as a whole, by us or by the kernel: nothing has changed.
    update(&["-m", "200m"]).fails(1, "update the memoryswap at the same time");
    update(&["--cpu-quota", "30000"]).fails(
        1,
        "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set",
    );
    update(&["--pids-limit", "99", "--cpuset-cpus", "4000"])
        .fails(1, "Requested CPUs are not available - requested 4000");
    assert_eq!(s.inspect("uu")["HostConfig"], host);
    assert_eq!(limit(&s, "uu", "pids/pids.max", "pids.max"), "77");
    unlimited_again(&s);
}

fn unlimited_again(s: &Sandbox) {
    let flags = ["-m", "200m", "--memory-swap", "-1", "--pids-limit", "-1"];
    let mut args = vec!["update"];
    args.extend(flags);
    args.push("uu");
    s.run(&args).ok();
    assert_eq!(limit(s, "uu", "pids/pids.max", "pids.max"), "max");
    s.run(&["restart", "-t", "0", "uu"]).ok();
    let memory = limit(s, "uu", "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (200 << 20).to_string());
    s.run(&["rm", "-f", "uu"]).ok();
}

#[test]
fn update_of_a_stopped_container_holds_when_it_starts() {
    if !has_controller("pids") {
        return;
    }
    let s = Sandbox::ready();
    for image in ["probe-linux", "probe-wasm"] {
        s.run(&["create", "--name", "uu", image, "sleep", "600"])
            .ok();
        s.run(&["update", "--pids-limit", "55", "uu"]).ok();
        s.run(&["start", "uu"]).ok();
        assert_eq!(limit(&s, "uu", "pids/pids.max", "pids.max"), "55");
        s.run(&["rm", "-f", "uu"]).ok();
    }
}

#[test]
fn what_the_kernel_refuses_is_taken_back() {
    if !has_controller("memory") || !has_controller("pids") {
        return;
    }
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "-m",
        "300m",
        "--pids-limit",
        "50",
        "--name",
        "uu",
        "probe-linux",
        "alloc",
        "100",
    ])
    .ok();
    s.run(&["rm", "-f", "uu"]).ok();
    s.run(&[
        "run",
        "-d",
        "-m",
        "64m",
        "--pids-limit",
        "50",
        "--name",
        "uu",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    // A weight needs a scheduler that most machines have not loaded; the memory limit comes first.
    let out = s.run(&["update", "-m", "80m", "--blkio-weight", "300", "uu"]);
    let memory = limit(&s, "uu", "memory/memory.limit_in_bytes", "memory.max");
    if out.code == 0 {
        assert_eq!(memory, (80 << 20).to_string());
    } else {
        assert!(out.stderr.contains("Cannot update container"), "{out:?}");
        assert_eq!(memory, (64 << 20).to_string());
        assert_eq!(s.inspect("uu")["HostConfig"]["Memory"], 64 << 20);
        assert_eq!(s.inspect("uu")["HostConfig"]["BlkioWeight"], 0);
    }
    s.run(&["rm", "-f", "uu"]).ok();
}
