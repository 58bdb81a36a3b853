//! Log drivers and their options; reading back across rotations.

use std::process::Stdio;
use std::time::Duration;

use crate::fixtures::busybox_image;
use crate::sandbox::{Sandbox, path, wait_until};

const SLOW: Duration = Duration::from_secs(20);

fn load_busybox(s: &mut Sandbox) {
    let archive = s.dir.join("busybox.tar");
    busybox_image("busybox").write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
    s.run(&["run", "--rm", "busybox", "true"]).ok();
    s.settle();
    s.mark();
}

fn world() -> Sandbox {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    s
}

fn log_dir(s: &Sandbox, name: &str) -> std::path::PathBuf {
    let id = s.inspect(name)["Id"].as_str().unwrap().to_owned();
    s.root().join("containers").join(id).join("logs")
}

#[test]
fn labels_variables_and_tag_go_with_every_line() {
    let s = world();
    for (image, args) in [
        ("busybox", ["echo", "hi"].as_slice()),
        ("probe-wasm", [].as_slice()),
    ] {
        let mut command = vec![
            "run",
            "--name",
            "cl",
            "--label",
            "team=a b",
            "-e",
            "STAGE=one",
            "--log-opt",
            "labels=team,absent",
            "--log-opt",
            "env=STAGE",
            "--log-opt",
            "tag={{.Name}}/{{.ImageName}}",
            image,
        ];
        command.extend(args);
        s.run(&command).ok();
        let text = std::fs::read_to_string(log_dir(&s, "cl").join("json.log")).unwrap();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let want = serde_json::json!({
                "STAGE": "one", "tag": format!("cl/{image}"), "team": "a b"
            });
            assert_eq!(line["attrs"], want);
        }
        let first = s.run(&["logs", "--details", "-t", "-n", "1", "cl"]).ok();
        let (time, rest) = first.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-01-02T03:04:05.000000000Z".len());
        let tag = format!("STAGE=one,tag=cl%2F{image},team=a+b ");
        assert!(rest.starts_with(&tag), "{rest}");
        let inspected = s.inspect("cl");
        assert_eq!(inspected["HostConfig"]["LogConfig"]["Type"], "json-file");
        assert_eq!(
            inspected["HostConfig"]["LogConfig"]["Config"]["env"],
            "STAGE"
        );
        s.run(&["rm", "cl"]).ok();
    }
}

#[test]
fn rotated_and_compressed_files_are_read_as_one() {
    let s = world();
    for driver in ["json-file", "local"] {
        s.run(&[
            "run",
            "--name",
            "cr",
            "--log-driver",
            driver,
            "--log-opt",
            "max-size=64k",
            "--log-opt",
            "max-file=5",
            "--log-opt",
            "compress=true",
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3; do seq 1 500; sleep 0.3; done",
        ])
        .ok();
        let name = if driver == "local" {
            "local.log"
        } else {
            "json.log"
        };
        let dir = log_dir(&s, "cr");
        wait_until("a compressed file", SLOW, || {
            dir.join(format!("{name}.1.gz")).exists() && !dir.join(format!("{name}.1")).exists()
        });
        let want: String = (0..3)
            .flat_map(|_| (1..=500).map(|n| format!("{n}\n")))
            .collect();
        let got = s.run(&["logs", "cr"]).ok();
        assert_eq!(got.lines().count(), 1500);
        assert!(got == want);
        assert_eq!(s.run(&["logs", "-n", "2", "cr"]).ok(), "499\n500\n");
        s.run(&["rm", "cr"]).ok();
    }
}

#[test]
fn followers_go_on_across_rotations() {
    let s = world();
    let options = ["--log-opt", "max-size=32k", "--log-opt", "max-file=60"];
    let script = "for i in $(seq 1 20); do seq 1 100; sleep 0.05; done";
    let mut args = vec!["run", "-d", "--name", "cf"];
    args.extend(options);
    args.extend(["busybox", "sh", "-c", script]);
    s.run(&args).ok();
    let followed = s.run(&["logs", "-f", "cf"]).ok();
    let want: String = (0..20)
        .flat_map(|_| (1..=100).map(|n| format!("{n}\n")))
        .collect();
    assert_eq!(followed.lines().count(), 2000);
    assert!(followed == want);
    assert!(log_dir(&s, "cf").join("json.log.3").exists());
    s.run(&["rm", "cf"]).ok();
}

#[test]
fn since_and_until_cut_the_log() {
    let s = world();
    s.run(&[
        "run",
        "--name",
        "ct",
        "busybox",
        "sh",
        "-c",
        "echo one; sleep 1; echo two; sleep 1; echo three",
    ])
    .ok();
    let stamps = s.run(&["logs", "-t", "ct"]).ok();
    let times: Vec<&str> = stamps
        .lines()
        .map(|l| l.split_once(' ').unwrap().0)
        .collect();
    let [_, second, _] = times[..] else {
        panic!("{stamps}")
    };
    assert_eq!(
        s.run(&["logs", "--since", second, "ct"]).ok(),
        "two\nthree\n"
    );
    assert_eq!(s.run(&["logs", "--until", second, "ct"]).ok(), "one\ntwo\n");
    assert_eq!(
        s.run(&["logs", "--since", second, "--until", second, "-f", "ct"])
            .ok(),
        "two\n"
    );
    assert_eq!(s.run(&["logs", "--since", "0s", "ct"]).ok(), "");
    assert_eq!(
        s.run(&["logs", "--since", "1h", "-n", "1", "ct"]).ok(),
        "three\n"
    );
    s.run(&["logs", "--since", "soon", "ct"])
        .fails(1, "failed to parse value as time or duration");
    s.run(&["rm", "ct"]).ok();
}

#[test]
fn lines_reach_syslog_and_a_copy_is_kept() {
    let s = world();
    let socket = s.dir.join("syslog.sock");
    let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(SLOW)).unwrap();
    let address = format!("syslog-address=unixgram://{}", path(&socket));
    let with = |extra: &[&str]| {
        let mut args = vec!["run", "--name", "cy", "--log-driver", "syslog"];
        args.extend(["--log-opt", &address, "--log-opt", "tag={{.Name}}"]);
        args.extend(extra);
        args.extend(["busybox", "sh", "-c", "echo out; echo err >&2"]);
        s.run(&args)
    };
    with(&["--log-opt", "syslog-facility=local1"]).ok();
    let mut got = Vec::new();
    for _ in 0..2 {
        let mut buffer = [0; 1024];
        let n = listener.recv(&mut buffer).unwrap();
        got.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
    }
    got.sort();
    // local1 is 17: 17 * 8 + 3 and 17 * 8 + 6.
    assert!(
        got[0].starts_with("<139>") && got[0].ends_with(": err"),
        "{got:?}"
    );
    assert!(
        got[1].starts_with("<142>") && got[1].contains(" cy["),
        "{got:?}"
    );
    let mut read = s.run(&["logs", "cy"]);
    read.stdout.push_str(&read.stderr);
    assert_eq!(read.stdout, "out\nerr\n");
    s.run(&["rm", "cy"]).ok();
    with(&["--log-opt", "cache-disabled=true"]).ok();
    s.run(&["logs", "cy"])
        .fails(1, "configured logging driver does not support reading");
    s.run(&["rm", "cy"]).ok();
    // With nobody there it is refused at start; a full socket never blocks.
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    with(&[]).fails(
        125,
        "failed to initialize logging driver: no syslog socket at",
    );
    s.run(&["rm", "cy"]).ok();
    let full = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    s.run(&[
        "run",
        "--name",
        "cy",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
        "busybox",
        "seq",
        "1",
        "20000",
    ])
    .ok();
    let record = log_dir(&s, "cy").join("../exit");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert!(record["log_bytes_dropped"].as_u64().unwrap() > 0);
    assert_eq!(s.run(&["logs", "cy"]).ok().lines().count(), 20000);
    drop(full);
    std::fs::remove_file(&socket).unwrap();
    s.run(&["rm", "cy"]).ok();
}

#[test]
fn drivers_and_options_are_refused_by_name() {
    let s = world();
    let refused = |args: &[&str], text: &str| {
        let mut all = vec!["run", "--rm"];
        all.extend(args);
        all.extend(["busybox", "true"]);
        s.run(&all).fails(125, text);
    };
    refused(
        &["--log-driver", "gelf"],
        "log driver \"gelf\" is not supported",
    );
    refused(
        &["--log-driver", "what"],
        "logger: no log driver named 'what' is registered",
    );
    refused(
        &["--log-opt", "nonsense=1"],
        "unknown log opt 'nonsense' for json-file log driver",
    );
    refused(
        &["--log-driver", "none", "--log-opt", "a=b"],
        "invalid logging opts for driver none",
    );
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        refused(
            &["--log-driver", "journald"],
            "journald is not enabled on this host",
        );
    }
    s.run(&[
        "run",
        "--name",
        "cn",
        "--log-driver",
        "none",
        "busybox",
        "echo",
        "x",
    ])
    .ok();
    s.run(&["logs", "cn"])
        .fails(1, "configured logging driver does not support reading");
    s.run(&["rm", "cn"]).ok();
}

#[test]
fn a_follower_that_stops_reading_blocks_nobody() {
    let s = world();
    s.run(&[
        "run",
        "-d",
        "--name",
        "cb",
        "busybox",
        "sh",
        "-c",
        "yes | head -n 300000",
    ])
    .ok();
    let mut child = s
        .command(&["logs", "-f", "cb"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(s.run(&["wait", "cb"]).ok(), "0\n");
    child.kill().unwrap();
    child.wait().unwrap();
    s.run(&["rm", "cb"]).ok();
}
