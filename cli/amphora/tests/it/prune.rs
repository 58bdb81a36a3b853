//! Prune, disk usage, information: what Docker prints for them.

use serde_json::Value;

use crate::sandbox::Sandbox;

#[test]
fn containers_are_pruned_when_agreed() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "aa", "-l", "keep=1", "probe-linux"])
        .ok();
    s.run(&["create", "--name", "bb", "probe-linux"]).ok();
    s.run(&["run", "-d", "--name", "up", "probe-linux", "sleep", "600"])
        .ok();
    let asked = s.run_with_input(&["container", "prune"], b"n\n").ok();
    assert_eq!(
        asked,
        "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] "
    );
    assert_eq!(s.run(&["ps", "-aq"]).ok().lines().count(), 3);
    let id = s.run(&["ps", "-aq", "--no-trunc", "-f", "name=bb"]).ok();
    let pruned = s
        .run(&["container", "prune", "-f", "--filter", "label!=keep"])
        .ok();
    assert_eq!(
        pruned,
        format!("Deleted Containers:\n{id}\nTotal reclaimed space: 0B\n")
    );
    let none = s
        .run(&["container", "prune", "-f", "--filter", "until=1h"])
        .ok();
    assert_eq!(none, "Total reclaimed space: 0B\n");
    let asked = s.run_with_input(&["container", "prune"], b"y\n").ok();
    assert!(asked.contains("Deleted Containers:\n"), "{asked}");
    assert_eq!(s.run(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "up\n");
    s.run(&["container", "prune", "-f", "--filter", "bogus=1"])
        .fails(1, "invalid filter 'bogus'");
    s.run(&["rm", "-f", "up"]).ok();
}

#[test]
fn a_network_that_a_damaged_container_may_want_stays() {
    let s = Sandbox::ready();
    s.run(&["network", "create", "blue"]).ok();
    s.run(&[
        "create",
        "--name",
        "hurt",
        "--network",
        "blue",
        "probe-linux",
    ])
    .ok();
    let id = s.inspect("hurt")["Id"].as_str().unwrap().to_owned();
    let config = s.root().join("containers").join(&id).join("config.json");
    let text = std::fs::read(&config).unwrap();
    std::fs::write(&config, "{").unwrap();
    s.run(&["network", "prune", "-f"]).fails(1, &id);
    std::fs::write(&config, text).unwrap();
    s.run(&["network", "inspect", "blue"]).ok();
    s.run(&["rm", "hurt"]).ok();
    let said = s.run(&["network", "prune", "-f"]).ok();
    assert_eq!(said, "Deleted Networks:\nblue\n\n");
}

#[test]
fn volumes_and_images_are_pruned() {
    let mut s = Sandbox::ready();
    s.run(&["volume", "create", "named"]).ok();
    let anonymous = s.run(&["volume", "create"]).ok();
    s.run(&["create", "--name", "user", "-v", "used:/u", "probe-linux"])
        .ok();
    let pruned = s.run(&["volume", "prune", "-f"]).ok();
    assert_eq!(
        pruned,
        format!("Deleted Volumes:\n{anonymous}\nTotal reclaimed space: 0B\n")
    );
    let pruned = s.run(&["volume", "prune", "-f", "-a"]).ok();
    assert!(
        pruned.starts_with("Deleted Volumes:\nnamed\n\n"),
        "{pruned}"
    );
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "used\n");
    assert_eq!(
        s.run(&["image", "prune", "-f"]).ok(),
        "Total reclaimed space: 0B\n"
    );
    let kept = ["image", "prune", "-a", "-f", "--filter", "label=nobody"];
    assert_eq!(s.run(&kept).ok(), "Total reclaimed space: 0B\n");
    let kept = ["system", "prune", "-f", "--filter", "label=nobody"];
    assert_eq!(s.run(&kept).ok(), "Total reclaimed space: 0B\n");
    let kept = ["volume", "prune", "-f", "-a", "--filter", "label=nobody"];
    assert_eq!(s.run(&kept).ok(), "Total reclaimed space: 0B\n");
    let pruned = s.run(&["image", "prune", "-a", "-f"]).ok();
    assert!(
        pruned.starts_with("Deleted Images:\nuntagged: "),
        "{pruned}"
    );
    assert!(
        pruned.contains("\ndeleted: sha256:") && !pruned.contains("space: 0B"),
        "{pruned}"
    );
    assert_eq!(
        s.run(&["images", "--format", "{{.Repository}}"]).ok(),
        "probe-linux\n"
    );
    let asked = s
        .run_with_input(&["system", "prune", "-a", "--volumes"], b"\n")
        .ok();
    assert_eq!(
        asked,
        "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n  - all anonymous volumes not used by at least one container\n  - all images without at least one container associated to them\n\nAre you sure you want to continue? [y/N] "
    );
    s.run(&["system", "prune", "--volumes", "--filter", "until=1h"])
        .fails(
            1,
            "The \"until\" filter is not supported with \"--volumes\"",
        );
    let pruned = s.run(&["system", "prune", "-a", "-f"]).ok();
    assert!(
        pruned.contains("Deleted Containers:\n") && pruned.contains("Deleted Images:\n"),
        "{pruned}"
    );
    assert_eq!(s.run(&["images", "-q"]).ok(), "");
    s.run(&["volume", "rm", "used"]).ok();
    s.mark();
}

#[test]
fn disk_usage() {
    let s = Sandbox::ready();
    s.run(&["run", "--name", "one", "-v", "vol:/v", "probe-linux"])
        .ok();
    let text = s.run(&["system", "df"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("Images          3         1         "),
        "{text}"
    );
    assert!(
        lines[2].starts_with("Containers      1         0         "),
        "{text}"
    );
    assert!(
        lines[3].starts_with("Local Volumes   1         1         "),
        "{text}"
    );
    assert!(
        lines[4].starts_with("Build Cache     0         0         0B        0B"),
        "{text}"
    );
    let row = s.run(&["system", "df", "--format", "json"]).ok();
    let row: Value = serde_json::from_str(row.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&row["Type"], &row["TotalCount"]),
        (&"Images".into(), &"3".into())
    );
    let verbose = s.run(&["system", "df", "-v"]).ok();
    for part in [
        "Images space usage:\n\nREPOSITORY",
        "Containers space usage:\n\nCONTAINER ID",
        "Local Volumes space usage:\n\nVOLUME NAME   LINKS     SIZE\nvol           1         ",
        "Build cache usage: 0B",
    ] {
        assert!(verbose.contains(part), "{part}\n{verbose}");
    }
    s.run(&["rm", "one"]).ok();
    s.run(&["volume", "rm", "vol"]).ok();
}

#[test]
fn information() {
    let s = Sandbox::ready();
    let version = env!("CARGO_PKG_VERSION");
    let text = s.run(&["version"]).ok();
    assert!(
        text.starts_with("Client: amphora\n Version:           "),
        "{text}"
    );
    for template in ["{{.Server.Version}}", "{{.Client.Version}}"] {
        assert_eq!(s.run(&["version", "-f", template]).ok().trim(), version);
    }
    s.run(&["version", "-f", "{{.Nope}}"])
        .fails(1, "can't evaluate field Nope in type system.versionInfo");
    s.run(&["version", "-f", "{{"])
        .fails(64, "template parsing error: template: :1: unclosed action");
    let text = s.run(&["info"]).ok();
    assert!(
        text.contains(
            "\nServer:\n Containers: 0\n  Running: 0\n  Paused: 0\n  Stopped: 0\n Images: 3\n"
        ),
        "{text}"
    );
    assert_eq!(
        s.run(&[
            "info",
            "-f",
            "{{.Driver}} {{.Runtimes.nvidia}} {{.Swarm.LocalNodeState}}"
        ])
        .ok(),
        "overlay2 <no value> inactive\n"
    );
    let json: Value =
        serde_json::from_str(&s.run(&["system", "info", "--format", "json"]).ok()).unwrap();
    assert_eq!(json["ServerVersion"], version);
}

#[test]
fn history() {
    let s = Sandbox::ready();
    let archive = s.dir.join("h.tar");
    let mut image = crate::fixtures::probe_image();
    image.name = "layered".to_owned();
    image.write_docker(&archive);
    s.run(&["load", "-q", "-i", crate::sandbox::path(&archive)])
        .ok();
    std::fs::remove_file(&archive).unwrap();
    let text = s.run(&["history", "layered"]).ok();
    assert!(text.starts_with("IMAGE "), "{text}");
    let header: Vec<&str> = text
        .lines()
        .next()
        .unwrap()
        .split("  ")
        .filter(|c| !c.is_empty())
        .map(str::trim)
        .collect();
    assert_eq!(
        header,
        ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]
    );
    s.run(&["history", "ghost"])
        .fails(1, "No such image: ghost");
    s.run(&["rmi", "layered"]).ok();
}
