//! `events`: what is told, in which order, and how it is printed.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::sandbox::{Sandbox, wait_until};

const SOON: Duration = Duration::from_secs(20);

/// Type and action of every event since a moment, of the container `name` and its surroundings.
fn told(s: &Sandbox, flags: &[&str]) -> Vec<String> {
    let mut args = vec![
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "--format",
        "{{.Type}} {{.Action}}",
    ];
    args.extend(flags);
    let text = s.run(&args).ok();
    text.lines().map(str::to_owned).collect()
}

fn actions(s: &Sandbox, name: &str) -> Vec<String> {
    let filter = format!("container={name}");
    told(s, &["-f", &filter])
        .iter()
        .map(|l| l.trim_start_matches("container ").to_owned())
        .collect()
}

#[track_caller]
fn become_s(s: &Sandbox, name: &str, want: &[&str]) {
    let mut last = Vec::new();
    wait_until("the events", SOON, || {
        last = actions(s, name);
        last.len() >= want.len()
    });
    assert_eq!(last, want);
}

#[test]
fn a_container_s_life() {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "--name",
        "one",
        "-v",
        "vol:/v",
        "probe-linux",
        "exit",
        "3",
    ]);
    become_s(&s, "one", &["create", "attach", "start", "die"]);
    s.run(&["run", "-d", "--name", "two", "probe-linux", "sleep", "600"])
        .ok();
    s.run(&["kill", "-s", "CONT", "two"]).ok();
    s.run(&["stop", "-t", "0", "two"]).ok();
    become_s(
        &s,
        "two",
        &["create", "start", "kill", "kill", "kill", "die", "stop"],
    );
    s.run(&["rm", "one", "two"]).ok();
    become_s(&s, "one", &["create", "attach", "start", "die", "destroy"]);
    s.run(&["run", "--rm", "--name", "three", "probe-wasm"])
        .ok();
    become_s(
        &s,
        "three",
        &["create", "attach", "start", "die", "destroy"],
    );
    // Around it: the volume and the network.
    s.settle();
    let around = told(&s, &["-f", "volume=vol"]);
    assert_eq!(around, ["volume create", "volume mount", "volume unmount"]);
    let network = told(&s, &["-f", "type=network", "-f", "event=connect"]);
    assert!(!network.is_empty() && network.iter().all(|l| l == "network connect"));
    s.run(&["volume", "rm", "vol"]).ok();
    assert_eq!(
        told(&s, &["-f", "volume=vol"]).last().unwrap(),
        "volume destroy"
    );
    // A start that fails leaves what came before it.
    s.run(&[
        "run",
        "--name",
        "bad",
        "--entrypoint",
        "/nothing",
        "probe-linux",
    ]);
    assert_eq!(actions(&s, "bad")[0], "create");
    s.run(&["rm", "bad"]).ok();
}

#[test]
fn images_and_formats() {
    let s = Sandbox::ready();
    s.run(&["tag", "probe-linux", "other:1"]).ok();
    s.run(&["rmi", "other:1"]).ok();
    let images = told(&s, &["-f", "type=image"]);
    assert_eq!(images.last().unwrap(), "image untag");
    assert_eq!(images[images.len() - 2], "image tag");
    assert!(images.contains(&"image load".to_owned()), "{images:?}");

    s.run(&[
        "run",
        "--name",
        "one",
        "-l",
        "k=v",
        "probe-linux",
        "exit",
        "3",
    ]);
    become_s(&s, "one", &["create", "attach", "start", "die"]);
    let die = ["events", "--since", "1", "--until", "0s", "-f", "event=die"];
    let line = s.run(&die).ok();
    let line = line.lines().last().unwrap().to_owned();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
    assert!(rest.starts_with("container die "), "{line}");
    assert!(
        rest.ends_with(" (execDuration=0, exitCode=3, image=probe-linux, k=v, name=one)"),
        "{line}"
    );
    let mut json = die.to_vec();
    json.extend(["--format", "json"]);
    let text = s.run(&json).ok();
    let event: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(event["status"], "die");
    assert_eq!(event["Type"], "container");
    assert_eq!(event["Actor"]["Attributes"]["exitCode"], "3");
    assert_eq!(event["id"], event["Actor"]["ID"]);
    assert_eq!(
        event["timeNano"].as_i64().unwrap() / 1_000_000_000,
        event["time"].as_i64().unwrap()
    );
    let attribute = s
        .run(&[
            "events",
            "--since",
            "1",
            "--until",
            "0s",
            "-f",
            "label=k=v",
            "-f",
            "event=die",
            "--format",
            "{{.Actor.Attributes.name}} {{.Actor.Attributes.nope}}",
        ])
        .ok();
    assert_eq!(attribute, "one <no value>\n");
    s.run(&["events", "--format", "{{.Nope"])
        .fails(64, "template: :1: unclosed action");
    s.run(&["events", "--since", "yesterday"])
        .fails(1, "failed to parse value as time or duration");
    s.run(&["events", "-f", "bogus=1"])
        .fails(1, "invalid filter 'bogus'");
    assert_eq!(told(&s, &["-f", "container=nobody"]), [""; 0]);
    s.run(&["rm", "one"]).ok();
}

/// What a policy does is told as what a user does, and by the name a container has by then.
#[test]
fn restarts_and_renames_are_told() {
    let s = Sandbox::ready();
    for image in ["probe-linux", "probe-wasm"] {
        let vol = format!("vol-{image}");
        let mount = format!("{vol}:/v");
        s.run(&[
            "run",
            "-d",
            "--name",
            image,
            "--restart",
            "on-failure:2",
            "-v",
            &mount,
            image,
            "exit",
            "3",
        ])
        .ok();
        let life = ["create", "start", "die", "start", "die", "start", "die"];
        become_s(&s, image, &life);
        s.settle();
        let volume = format!("volume={vol}");
        let once = ["volume mount", "volume unmount"];
        let around = [&["volume create"][..], &once, &once, &once].concat();
        assert_eq!(told(&s, &["-f", &volume]), around);
        s.run(&["rm", image]).ok();
        s.run(&["volume", "rm", &vol]).ok();
        s.run(&["run", "-d", "--name", "old", image, "sleep", "600"])
            .ok();
        s.run(&["rename", "old", "new"]).ok();
        s.run(&["kill", "new"]).ok();
        let names = || {
            let flags = ["events", "--since", "1", "--until", "0s", "-f", "event=die"];
            let shown = ["--format", "{{.Actor.Attributes.name}}"];
            s.run(&[&flags[..], &shown].concat()).ok()
        };
        wait_until("the end", SOON, || {
            names().lines().last().is_some_and(|n| n != image)
        });
        assert_eq!(names().lines().last(), Some("new"));
        s.settle();
        s.run(&["rm", "new"]).ok();
    }
}

/// A follower sees what happens after it came, and nothing from before.
#[test]
fn a_follower_sees_what_comes() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "before", "probe-linux"]).ok();
    let out = s.dir.join("followed");
    let mut follower = s
        .command(&[
            "events",
            "-f",
            "type=container",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ])
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It follows once it holds its watch: the first event it shows says so.
    let read = || std::fs::read_to_string(&out).unwrap();
    let mut tries = 0;
    wait_until("the follower", SOON, || {
        tries += 1;
        let name = format!("probe{tries}");
        s.run(&["create", "--name", &name, "probe-linux"]).ok();
        s.run(&["rm", &name]).ok();
        read().contains("destroy ")
    });
    s.run(&["rm", "before"]).ok();
    wait_until("the event", SOON, || read().contains("destroy before\n"));
    assert!(!read().contains("create before"), "{}", read());
    follower.kill().unwrap();
    follower.wait().unwrap();
    std::fs::remove_file(&out).unwrap();
}
