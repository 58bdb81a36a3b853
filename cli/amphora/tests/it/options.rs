//! Flags that no other test has a reason to use: each is seen to do what it says.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, path};

fn value(s: &Sandbox, name: &str, pointer: &str) -> Value {
    s.inspect(name)
        .pointer(pointer)
        .cloned()
        .unwrap_or_default()
}

/// What is told to both.
#[rustfmt::skip]
const FLAGS: &[&str] = &[
    "--name", "one", "--annotation", "org.a=b", "-m", "64m", "--memory-swap", "96m",
    "--shm-size", "1m", "--stop-signal", "USR1", "--stop-timeout", "3", "--restart", "no",
    "--read-only",
];

#[test]
fn create_and_run_record_what_they_are_told() {
    let s = Sandbox::ready();
    let (id_file, env_file) = (s.dir.join("cid"), s.dir.join("env"));
    std::fs::write(&env_file, "# comment\nFROM_FILE=1\n").unwrap();
    for verb in ["create", "run"] {
        let id = s
            .run(
                &[
                    &[verb],
                    FLAGS,
                    &["--cidfile", path(&id_file)],
                    &["--env-file", path(&env_file)],
                    &["probe-linux", "env"],
                ]
                .concat(),
            )
            .ok();
        let recorded = std::fs::read_to_string(&id_file).unwrap();
        if verb == "create" {
            assert_eq!(id.trim(), recorded);
        } else {
            assert!(id.contains("FROM_FILE=1\n"), "{id}");
        }
        assert_eq!(value(&s, "one", "/Id"), recorded);
        let host = value(&s, "one", "/HostConfig");
        assert_eq!(host["Annotations"], json!({ "org.a": "b" }));
        assert_eq!(host["MemorySwap"], 96 << 20);
        assert_eq!(host["ShmSize"], 1 << 20);
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(value(&s, "one", "/Config/StopSignal"), "USR1");
        assert_eq!(value(&s, "one", "/Config/StopTimeout"), 3);
        s.run(&["rm", "one"]).ok();
        std::fs::remove_file(&id_file).unwrap();
    }
    std::fs::remove_file(&env_file).unwrap();
    assert_ne!(
        s.run(&[
            "run",
            "--rm",
            "--read-only",
            "probe-linux",
            "write",
            "/x",
            "y"
        ])
        .code,
        0
    );
    assert_eq!(
        s.run(&[
            "run",
            "--rm",
            "--sig-proxy=false",
            "probe-linux",
            "exit",
            "4"
        ])
        .code,
        4
    );
    for verb in ["run", "create"] {
        assert!(s.run(&[verb, "--help"]).ok().contains("Usage: "));
    }
}

#[test]
fn commands_on_containers() {
    let s = Sandbox::ready();
    s.run(&["create", "-i", "--name", "in", "probe-linux", "stdin"])
        .ok();
    let echoed = s.run_with_input(&["start", "-i", "in"], b"typed\n").ok();
    assert_eq!(echoed, "typed\n");
    s.run(&[
        "update",
        "--cpu-period",
        "50000",
        "--cpuset-mems",
        "0",
        "in",
    ])
    .ok();
    s.run(&["update", "-m", "64m", "--memory-swap", "-1", "in"])
        .ok();
    let host = value(&s, "in", "/HostConfig");
    assert_eq!(
        (&host["CpuPeriod"], &host["CpusetMems"]),
        (&json!(50000), &json!("0"))
    );
    assert_eq!(host["MemorySwap"], -1);
    s.run(&["rm", "in"]).ok();

    s.run(&[
        "run",
        "-d",
        "--name",
        "up",
        "-v",
        "/anonymous",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    let sized = s
        .run(&[
            "inspect",
            "-s",
            "-f",
            "{{.SizeRw}} {{gt .SizeRootFs 1000}}",
            "up",
        ])
        .ok();
    assert!(sized.ends_with(" true\n"), "{sized}");
    let sized = s
        .run(&[
            "container",
            "inspect",
            "--size",
            "--format",
            "{{len .Id}} {{gt .SizeRootFs 0}}",
            "up",
        ])
        .ok();
    assert_eq!(sized, "64 true\n");
    assert!(s.run(&["ps", "--size"]).ok().contains("(virtual "));
    let before = value(&s, "up", "/State/Pid");
    s.run(&["restart", "--signal", "KILL", "--timeout", "5", "up"])
        .ok();
    assert_ne!(value(&s, "up", "/State/Pid"), before);
    s.run(&["stop", "--signal", "KILL", "--timeout", "30", "up"])
        .ok();
    assert_eq!(value(&s, "up", "/State/ExitCode"), 137);
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok().lines().count(), 1);
    s.run(&["rm", "--force", "--volumes", "up"]).ok();
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn commands_on_images_and_volumes() {
    let s = Sandbox::ready();
    let id = s
        .run(&["image", "inspect", "--format", "{{.Id}}", "probe-linux"])
        .ok();
    let whole = s
        .run(&[
            "images",
            "--all",
            "--no-trunc",
            "--format",
            "{{.ID}}",
            "probe-linux",
        ])
        .ok();
    assert_eq!(whole, id);
    s.run(&["tag", "probe-linux", "again"]).ok();
    s.run(&["rmi", id.trim()]).fails(1, "must be forced");
    s.run(&["rmi", "--force", "again"]).ok();
    s.run(&["rmi", "--force", "ghost"]).ok();
    s.run(&[
        "pull",
        "--platform",
        "what/ever/is/this",
        "localhost:1/none",
    ])
    .fails(1, "platform");
    let json = s.run(&[
        "history",
        "--no-trunc",
        "--human=false",
        "--format",
        "json",
        "probe-linux",
    ]);
    assert!(
        json.code == 0 && json.stdout.lines().all(|l| l.starts_with('{')),
        "{json:?}"
    );

    let name = s
        .run(&[
            "volume", "create", "--driver", "local", "--label", "k=v", "vol",
        ])
        .ok();
    assert_eq!(name, "vol\n");
    let labels = s
        .run(&[
            "volume",
            "inspect",
            "--format",
            "{{.Labels}} {{.Driver}}",
            "vol",
        ])
        .ok();
    assert_eq!(labels, "map[k:v] local\n");
    s.run(&["volume", "rm", "ghost"]).fails(1, "ghost");
    s.run(&["volume", "rm", "--force", "ghost", "vol"]).ok();
}
