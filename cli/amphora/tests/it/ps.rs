//! `ps`: columns, filters, sizes, and its index.

use crate::sandbox::Sandbox;

fn names(s: &Sandbox, flags: &[&str]) -> Vec<String> {
    let mut args = vec!["ps", "--format", "{{.Names}}"];
    args.extend(flags);
    let text = s.run(&args).ok();
    text.lines().map(str::to_owned).collect()
}

/// What each filter finds of `made`, `done` and `up`.
const FOUND: &[(&str, &[&str])] = &[
    ("status=exited", &["done"]),
    ("status=created", &["made"]),
    ("exited=3", &["done"]),
    ("exited=4", &[]),
    ("name=^/?do", &["done"]),
    ("name=nothing", &[]),
    ("label=k", &["up"]),
    ("label=k=v", &["up"]),
    ("label=k=w", &[]),
    ("ancestor=probe-linux", &["done", "up"]),
    ("ancestor=probe-wasm:latest", &["made"]),
    ("volume=vol", &["done"]),
    ("volume=/v", &["done"]),
    ("network=none", &["made"]),
    ("before=done", &["up"]),
    ("since=done", &["made"]),
    ("health=none", &["made", "done", "up"]),
    ("health=healthy", &[]),
    ("is-task=false", &["made", "done", "up"]),
    ("is-task=true", &[]),
    ("expose=80", &["up"]),
    ("expose=80-90/tcp", &["up"]),
    ("expose=80/udp", &[]),
    ("publish=1-65535", &["up"]),
];

/// Three containers that the filters tell apart.
fn three() -> Sandbox {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "up",
        "-l",
        "k=v",
        "-p",
        "127.0.0.1::80",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    s.run(&[
        "run",
        "--name",
        "done",
        "-v",
        "vol:/v",
        "probe-linux",
        "exit",
        "3",
    ]);
    s.run(&[
        "create",
        "--name",
        "made",
        "--network",
        "none",
        "probe-wasm",
    ])
    .ok();
    s
}

#[test]
fn filters_find_what_docker_s_find() {
    let s = three();
    assert_eq!(names(&s, &[]), ["up"]);
    assert_eq!(names(&s, &["-a"]), ["made", "done", "up"]);
    assert_eq!(names(&s, &["-n", "2"]), ["made", "done"]);
    assert_eq!(names(&s, &["-l"]), ["made"]);
    let id = s.run(&["ps", "-aq", "--no-trunc", "-f", "name=done"]).ok();
    let id = id.trim();
    for (filter, want) in FOUND {
        assert_eq!(names(&s, &["-a", "-f", filter]), *want, "{filter}");
    }
    assert_eq!(
        names(&s, &["-a", "-f", &format!("id={}", &id[..6])]),
        ["done"]
    );
    assert_eq!(
        names(&s, &["-a", "-f", "status=exited", "-f", "status=created"]),
        ["made", "done"]
    );
    for (filter, text) in [
        (
            "bogus=1",
            "Error response from daemon: invalid filter 'bogus'",
        ),
        (
            "status=asleep",
            "Error response from daemon: invalid filter 'status=asleep'",
        ),
        ("exited=x", "strconv.Atoi: parsing \"x\": invalid syntax"),
        ("is-task=maybe", "invalid filter 'is-task=[maybe]'"),
        ("since=ghost", "No such container: ghost"),
    ] {
        s.run(&["ps", "-f", filter]).fails(1, text);
    }
    s.run(&["ps", "-f", "bogus"])
        .fails(125, "bad format of filter (expected name=value)");
    s.run(&["rm", "-f", "up", "done", "made"]).ok();
    s.run(&["volume", "rm", "vol"]).ok();
}

#[test]
fn columns_are_docker_s() {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "up",
        "-p",
        "127.0.0.1:18081:80",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    s.run(&["run", "--name", "done", "probe-linux", "exit", "3"]);
    let row = |name: &str, format: &str| {
        let text = s
            .run(&[
                "ps",
                "-a",
                "-f",
                &format!("name=^{name}$"),
                "--format",
                format,
            ])
            .ok();
        text.trim_end().to_owned()
    };
    assert!(row("up", "{{.Status}}").starts_with("Up "));
    let status = row("done", "{{.Status}}");
    assert!(
        status.starts_with("Exited (3) ") && status.ends_with(" ago"),
        "{status}"
    );
    assert_eq!(row("up", "{{.Ports}}"), "127.0.0.1:18081->80/tcp");
    assert_eq!(row("up", "{{.Command}}"), "\"/probe sleep 600\"");
    assert_eq!(row("done", "{{.Ports}}"), "");
    assert_eq!(
        row("up", "{{len .ID}} {{.State}} {{.Networks}}"),
        "12 running bridge"
    );
    let sized = s.run(&["ps", "-as"]).ok();
    assert!(sized.lines().next().unwrap().ends_with("SIZE"), "{sized}");
    assert!(sized.contains("(virtual "), "{sized}");
    let whole = s.run(&["ps", "-q", "--no-trunc"]).ok();
    assert_eq!(whole.trim().len(), 64);
    s.run(&["rm", "-f", "up", "done"]).ok();
}

/// The index saves reading; it never hides a change.
#[test]
fn the_index_follows_every_change() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "one", "probe-linux", "exit", "4"])
        .ok();
    let status = || {
        let text = s
            .run(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])
            .ok();
        text.trim_end().to_owned()
    };
    assert_eq!(status(), "one Created");
    let index = s.run_root().join("index");
    assert!(index.exists());
    assert_eq!(status(), "one Created");
    s.run(&["start", "-a", "one"]);
    s.settle();
    assert!(status().starts_with("one Exited (4) "), "{}", status());
    // A damaged one is made anew, one of a container that is gone forgotten.
    for damage in [
        b"".as_slice(),
        b"amphindx\x01\x00\xff\xff\xff\xff",
        b"noise",
    ] {
        std::fs::write(&index, damage).unwrap();
        assert!(status().starts_with("one Exited (4) "), "{}", status());
    }
    s.run(&["rm", "one"]).ok();
    assert_eq!(status(), "");
    std::fs::remove_file(&index).unwrap();
}
