//! Healthchecks of both kinds of container: when they run, what they decide, what becomes of an
//! unhealthy container, and that nothing of a check is left.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::fixtures::{self, Image, Wrap};
use crate::sandbox::{Sandbox, path, wait_until};
use crate::supervisor::{kill, supervisor_pid};

const SLOW: Duration = Duration::from_secs(20);

both!(
    "linux", "wasm":
    the_verdict_follows_the_checks,
    the_verdict_outlives_the_run,
    a_check_that_hangs_is_killed,
    an_image_says_what_is_checked,
    paused_containers_are_not_checked,
    checks_survive_their_supervisor,
    a_check_that_is_being_started_goes_with_its_supervisor,
    unhealthy_containers_are_killed_stopped_and_restarted,
);

/// A world with an image `checked` in which `/probe` is the probe, and a shell where there are any.
pub(crate) fn world(kind: &str, check: &Value) -> Sandbox {
    let mut s = Sandbox::ready();
    let tmp = fixtures::dir("tmp", 0o1777);
    let mut config = json!({ "Entrypoint": ["/probe"] });
    if !check.is_null() {
        config["Healthcheck"] = check.clone();
    }
    let image = if kind == "wasm" {
        let module = std::fs::read(fixtures::probe("wasm32-wasip1")).unwrap();
        Image::new("checked", config)
            .platform("wasi", "wasm")
            .layer(&[tmp, fixtures::file("probe", 0o755, module)], Wrap::Plain)
    } else {
        let program = std::fs::read(fixtures::probe("x86_64-unknown-linux-musl")).unwrap();
        let shell = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        let entries = [
            tmp,
            fixtures::dir("bin", 0o755),
            fixtures::file("bin/sh", 0o755, shell),
            fixtures::file("probe", 0o755, program),
        ];
        Image::new("checked", config).layer(&entries, Wrap::Plain)
    };
    let archive = s.dir.join("checked.tar");
    image.write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
    s.run(&["run", "--rm", "checked"]).ok();
    s.settle();
    s.mark();
    s
}

/// Starts container `box` with these flags.
fn start(s: &Sandbox, flags: &[&str]) {
    let mut args = vec!["run", "-d", "--name", "box"];
    args.extend(flags);
    args.extend(["checked", "sleep", "600"]);
    s.run(&args).ok();
}

fn health(s: &Sandbox) -> Value {
    s.inspect("box")["State"]["Health"].clone()
}

fn log(s: &Sandbox) -> Vec<Value> {
    health(s)["Log"].as_array().cloned().unwrap_or_default()
}

/// When a check began (`Start`) or ended (`End`).
fn time(result: &Value, key: &str) -> Timestamp {
    result[key].as_str().unwrap().parse().unwrap()
}

#[track_caller]
fn becomes(s: &Sandbox, status: &str) {
    wait_until(status, SLOW, || health(s)["Status"] == status);
}

/// Names that `ps` lists with a filter.
fn listed(s: &Sandbox, filter: &str) -> String {
    let filter = format!("health={filter}");
    s.run(&["ps", "-a", "-f", &filter, "--format", "{{.Names}}"])
        .ok()
}

fn events(s: &Sandbox, filter: &str) -> Vec<String> {
    let filter = format!("event={filter}");
    let all = [
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "-f",
        &filter,
        "--format",
        "{{.Action}}",
    ];
    s.run(&all).ok().lines().map(str::to_owned).collect()
}

/// Events of the end of the last container.
fn ended_by(s: &Sandbox) -> Vec<String> {
    let id = s.inspect("box")["Id"].as_str().unwrap().to_owned();
    let container = format!("container={id}");
    let mut all = vec!["events", "--since", "1", "--until", "0s", "-f", &container];
    let wanted = ["kill", "die", "stop", "start", "restart"].map(|event| format!("event={event}"));
    for filter in &wanted {
        all.extend(["-f", filter]);
    }
    all.extend(["--format", "{{.Action}}"]);
    s.run(&all).ok().lines().map(str::to_owned).collect()
}

/// Processes of the container.
fn processes(s: &Sandbox) -> usize {
    let top = s.run(&["top", "box"]);
    top.stdout.lines().count().saturating_sub(1)
}

fn the_verdict_follows_the_checks(kind: &str) {
    let s = world(kind, &Value::Null);
    start(
        &s,
        &[
            "--health-cmd",
            "/probe cat /tmp/ok",
            "--health-interval",
            "200ms",
            "--health-timeout",
            "10s",
            "--health-retries",
            "2",
            "--health-start-period",
            "1h",
            "--health-start-interval",
            "50ms",
        ],
    );
    let asked = json!({
        "Test": ["CMD-SHELL", "/probe cat /tmp/ok"], "Interval": 200_000_000_i64,
        "Timeout": 10_000_000_000_i64, "Retries": 2, "StartPeriod": 3_600_000_000_000_i64,
        "StartInterval": 50_000_000,
    });
    assert_eq!(s.inspect("box")["Config"]["Healthcheck"], asked);
    // However many fail in the start period: none counts.
    wait_until("failures", SLOW, || log(&s).len() == 5);
    let shown = health(&s);
    assert_eq!(shown["Status"], "starting");
    assert_eq!(shown["FailingStreak"], 0);
    assert_eq!(shown["Log"][0]["ExitCode"], 1);
    let output = shown["Log"][0]["Output"].as_str().unwrap();
    assert!(output.starts_with("duo: "), "{output}");
    let last = &shown["Log"][4];
    assert!(time(last, "Start") < time(last, "End"));
    assert!(s.run(&["ps"]).ok().contains(" (health: starting) "));
    assert_eq!(listed(&s, "starting"), "box\n");
    s.run(&["exec", "box", "/probe", "write", "/tmp/ok", "fine"])
        .ok();
    becomes(&s, "healthy");
    let last = log(&s).pop().unwrap();
    assert_eq!(
        (&last["ExitCode"], &last["Output"]),
        (&json!(0), &json!("fine\n"))
    );
    assert!(s.run(&["ps"]).ok().contains(" (healthy) "));
    s.run(&["exec", "box", "/probe", "rm", "/tmp/ok"]).ok();
    becomes(&s, "unhealthy");
    assert!(health(&s)["FailingStreak"].as_u64().unwrap() >= 2);
    assert_eq!(log(&s).len(), 5);
    assert!(s.run(&["ps"]).ok().contains(" (unhealthy) "));
    assert_eq!(listed(&s, "unhealthy"), "box\n");
    assert_eq!(listed(&s, "healthy") + &listed(&s, "none"), "");
    let told = events(&s, "health_status");
    assert_eq!(told, ["health_status: healthy", "health_status: unhealthy"]);
    let shell = if kind == "wasm" { "" } else { "/bin/sh -c " };
    let made = format!("exec_create: {shell}/probe cat /tmp/ok");
    assert!(events(&s, "exec_create").contains(&made));
    assert!(!events(&s, "exec_die").is_empty());
    s.run(&["rm", "-f", "box"]).ok();
}

/// Nothing that has ended is healthy, as under Docker; the next run begins anew.
fn the_verdict_outlives_the_run(kind: &str) {
    let s = world(kind, &Value::Null);
    let flags = [
        "--health-cmd",
        "/probe exit 0",
        "--health-interval",
        "500ms",
    ];
    start(&s, &flags);
    becomes(&s, "healthy");
    s.run(&["stop", "-t", "0", "box"]).ok();
    assert_eq!(health(&s)["Status"], "unhealthy");
    assert_eq!(health(&s)["Log"][0]["ExitCode"], 0);
    s.settle();
    assert_eq!(health(&s)["Status"], "unhealthy");
    assert_eq!(listed(&s, "unhealthy"), "box\n");
    assert!(!s.run(&["ps", "-a"]).ok().contains("healthy"));
    let stopped = Timestamp::now();
    s.run(&["start", "box"]).ok();
    // Whether its first check is over or not: nothing of the last run is left.
    let shown = health(&s);
    match shown["Log"].as_array().unwrap().first() {
        None => assert_eq!(shown["Status"], "starting"),
        Some(first) => assert!(time(first, "Start") > stopped, "{shown}"),
    }
    assert_ne!(shown["Status"], "unhealthy");
    s.run(&["rm", "-f", "box"]).ok();
}

fn a_check_that_hangs_is_killed(kind: &str) {
    let s = world(kind, &Value::Null);
    start(
        &s,
        &[
            "--health-cmd",
            "/probe sleep 600",
            "--health-interval",
            "20ms",
            "--health-timeout",
            "600ms",
            "--health-retries",
            "1",
        ],
    );
    let mut most = 0;
    wait_until("three checks", SLOW, || {
        most = most.max(processes(&s));
        log(&s).len() >= 3
    });
    // The shell may stay before the program; two checks at once would be more.
    assert!((2..=3).contains(&most), "{most}");
    assert_eq!(health(&s)["Status"], "unhealthy");
    for result in log(&s) {
        assert_eq!(result["ExitCode"], -1, "{result}");
        let output = result["Output"].as_str().unwrap();
        let want = "Health check exceeded timeout (600ms): sleeping\n";
        assert!(output == want || output == &want[..37], "{output}");
    }
    // In the middle of one it is stopped; the sandbox counts what is left.
    wait_until("a check", SLOW, || processes(&s) >= 2);
    s.run(&["stop", "-t", "0", "box"]).ok();
    s.run(&["rm", "box"]).ok();
    // What it writes is cut, and a program that is not there is a failure.
    for (line, code, output) in [
        ("/probe lines 4000", 0, None),
        (
            "/nothing",
            if kind == "wasm" { -1 } else { 127 },
            Some("/nothing"),
        ),
    ] {
        let flags = ["--health-cmd", line, "--health-interval", "50ms"];
        start(&s, &flags);
        wait_until("a check", SLOW, || !log(&s).is_empty());
        let result = log(&s).remove(0);
        assert_eq!(result["ExitCode"], code, "{result}");
        let text = result["Output"].as_str().unwrap();
        match output {
            Some(part) => assert!(text.contains(part), "{text}"),
            None => {
                assert!(text.starts_with("line 0\nline 1\n") && text.ends_with("..."));
                assert_eq!(text.len(), 4096 + 3);
            }
        }
        s.run(&["rm", "-f", "box"]).ok();
    }
}

fn an_image_says_what_is_checked(kind: &str) {
    // In a Wasm container an export of its own module is a check too.
    let test = if kind == "wasm" { "#_start" } else { "/probe" };
    let check = json!({ "Test": ["CMD", test], "Interval": 100_000_000, "Retries": 9 });
    let s = world(kind, &check);
    let image = s.inspect("checked");
    assert_eq!(image["Config"]["Healthcheck"], check);
    start(&s, &[]);
    becomes(&s, "healthy");
    let output = log(&s).remove(0)["Output"].clone();
    assert!(
        output.as_str().unwrap().starts_with("Hello from "),
        "{output}"
    );
    assert_eq!(s.inspect("box")["Config"]["Healthcheck"], check);
    // An image made of the container says the same.
    s.run(&["commit", "box", "made"]).ok();
    assert_eq!(s.inspect("made")["Config"]["Healthcheck"], check);
    s.run(&["rm", "-f", "box"]).ok();
    s.run(&["rmi", "made"]).ok();
    // What is said beside it takes the rest from there.
    start(&s, &["--health-retries", "2"]);
    let merged = &s.inspect("box")["Config"]["Healthcheck"];
    assert_eq!(merged["Test"], check["Test"]);
    assert_eq!(
        (&merged["Interval"], &merged["Retries"]),
        (&json!(100_000_000), &json!(2))
    );
    becomes(&s, "healthy");
    s.run(&["rm", "-f", "box"]).ok();
    start(&s, &["--no-healthcheck"]);
    let shown = s.inspect("box");
    assert_eq!(shown["Config"]["Healthcheck"]["Test"], json!(["NONE"]));
    assert_eq!(shown["State"]["Health"], Value::Null);
    assert!(!s.run(&["ps"]).ok().contains("health"));
    assert_eq!(listed(&s, "none"), "box\n");
    s.run(&["rm", "-f", "box"]).ok();
}

fn paused_containers_are_not_checked(kind: &str) {
    let s = world(kind, &Value::Null);
    let flags = ["--health-cmd", "/probe", "--health-interval", "50ms"];
    start(&s, &flags);
    becomes(&s, "healthy");
    s.run(&["pause", "box"]).ok();
    // Docker's word for what nobody checks.
    assert_eq!(health(&s)["Status"], "unhealthy");
    assert_eq!(listed(&s, "unhealthy"), "box\n");
    // One that was on its way may still begin.
    let paused_at = Timestamp::now() + Duration::from_millis(100);
    std::thread::sleep(Duration::from_millis(700));
    let begun = |result: &Value| time(result, "Start");
    let results = log(&s);
    assert!(results.iter().all(|r| begun(r) <= paused_at), "{results:?}");
    assert_eq!(health(&s)["Status"], "unhealthy");
    assert_eq!(events(&s, "health_status"), ["health_status: healthy"]);
    let unpaused_at = Timestamp::now();
    s.run(&["unpause", "box"]).ok();
    // A check that hung meanwhile would be told of only now.
    let mut results = Vec::new();
    wait_until("the next check", SLOW, || {
        results = log(&s);
        results.iter().any(|r| begun(r) > paused_at)
    });
    let inside = |r: &&Value| begun(r) > paused_at && begun(r) < unpaused_at;
    assert_eq!(results.iter().find(inside), None);
    assert_eq!(health(&s)["FailingStreak"], 0);
    assert_eq!(health(&s)["Status"], "healthy");
    wait_until("it to be told", SLOW, || {
        events(&s, "health_status").len() == 2
    });
    s.run(&["rm", "-f", "box"]).ok();
}

fn checks_survive_their_supervisor(kind: &str) {
    let s = world(kind, &Value::Null);
    let line = if kind == "wasm" {
        "/probe sleep 2"
    } else {
        "test -e /tmp/ok && exec /probe sleep 600; true"
    };
    start(
        &s,
        &[
            "--health-cmd",
            line,
            "--health-interval",
            "50ms",
            "--health-timeout",
            "1h",
        ],
    );
    becomes(&s, "healthy");
    s.run(&["exec", "box", "/probe", "write", "/tmp/ok", "x"])
        .ok();
    wait_until("a check", SLOW, || processes(&s) == 2);
    let before = s.inspect("box")["State"]["Pid"].clone();
    let supervisor = supervisor_pid(&s, "box");
    // What makes a check takes it along, and the next one follows.
    let first = inside(&before);
    let mut program = None;
    wait_until("what makes the check", SLOW, || {
        program = program_of(supervisor);
        program.is_some()
    });
    kill(program.unwrap());
    wait_until("another check", SLOW, || {
        let now = inside(&before);
        now.len() == 2 && now != first
    });
    kill(supervisor);
    // The check goes with it, before anybody looks.
    wait_until("the check to go", SLOW, || inside(&before).len() == 1);
    assert_eq!(health(&s)["Status"], "healthy");
    assert_eq!(s.inspect("box")["State"]["Pid"], before);
    wait_until("the next check", SLOW, || processes(&s) == 2);
    s.run(&["rm", "-f", "box"]).ok();
}

/// Whatever has been told of it by then.
fn a_check_that_is_being_started_goes_with_its_supervisor(kind: &str) {
    let s = world(kind, &Value::Null);
    let flags = ["--health-cmd", "/probe sleep 600"];
    let more = ["--health-interval", "20ms", "--health-timeout", "1h"];
    start(&s, &[&flags[..], &more].concat());
    let init = s.inspect("box")["State"]["Pid"].clone();
    for step in 0..25_u64 {
        let supervisor = crate::restart::supervisor(&s, "box");
        wait_until("what makes a check", SLOW, || {
            program_of(supervisor).is_some()
        });
        let begun = std::time::Instant::now();
        // It takes some milliseconds from here until the check runs.
        let moment = Duration::from_micros(400 * step);
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
        kill(supervisor);
        wait_until("the check to go", SLOW, || {
            program_of(supervisor).is_none() && inside(&init).len() == 1
        });
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(inside(&init).len(), 1, "step {step}");
    }
    s.run(&["rm", "-f", "box"]).ok();
}

fn pids() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut all: Vec<String> = all
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    all.sort();
    all
}

/// Processes in the pid namespace of a process.
fn inside(init: &Value) -> Vec<String> {
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid_for_children")).ok();
    let own = space(&init.to_string());
    assert!(own.is_some());
    pids().into_iter().filter(|pid| space(pid) == own).collect()
}

/// The process that makes a check for a supervisor, while one is made.
fn program_of(supervisor: i32) -> Option<i32> {
    let text = |pid: &str, name: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let parent = format!("PPid:\t{supervisor}\n");
    let found = pids().into_iter().find(|pid| {
        text(pid, "cmdline").starts_with("amphora\0probe\0")
            && text(pid, "status").contains(&parent)
    });
    found.map(|pid| pid.parse().unwrap())
}

/// Two of them, each with what a restart by hand tells.
fn tells_of_restarts(s: &Sandbox, kind: &str) {
    let round: &[&str] = match kind {
        "linux" => &["kill", "kill", "die", "stop", "start", "restart"],
        _ => &["kill", "die", "stop", "start", "restart"],
    };
    let expected: Vec<&str> = ["start"]
        .iter()
        .chain(round)
        .chain(round)
        .copied()
        .collect();
    wait_until("its events", SLOW, || ended_by(s).len() >= expected.len());
    assert_eq!(ended_by(s)[..expected.len()], expected);
}

fn unhealthy_containers_are_killed_stopped_and_restarted(kind: &str) {
    let s = world(kind, &Value::Null);
    let flags = |action: &'static str| {
        [
            "--health-cmd",
            "/probe exit 1",
            "--health-interval",
            "150ms",
            "--health-retries",
            "2",
            "--stop-timeout",
            "1",
            "--health-on-failure",
            action,
        ]
    };
    let state = || s.inspect("box")["State"].clone();
    for action in ["kill", "stop"] {
        // No policy starts again what was ended for its health.
        let mut all = flags(action).to_vec();
        all.extend(["--restart", "always"]);
        start(&s, &all);
        assert_eq!(
            s.inspect("box")["Config"]["HealthcheckOnFailureAction"],
            action
        );
        wait_until("the end", SLOW, || state()["Status"] == "exited");
        s.settle();
        assert_eq!(state()["Status"], "exited");
        assert_eq!(state()["Health"]["Status"], "unhealthy");
        let told = ended_by(&s);
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        match (action, kind) {
            ("kill", _) => assert_eq!(told, ["start", "kill", "die"]),
            // What takes no notice of the signal is killed.
            ("stop", "linux") => assert_eq!(told, ["start", "kill", "kill", "die", "stop"]),
            _ => assert_eq!(told, ["start", "kill", "die", "stop"]),
        }
        // A guest ends by the signal; a first process has to ask for it.
        let by_signal = action == "stop" && kind == "wasm";
        assert_eq!(state()["ExitCode"], if by_signal { 143 } else { 137 });
        s.run(&["rm", "box"]).ok();
    }
    start(&s, &flags("restart"));
    wait_until("the second run", SLOW, || {
        s.inspect("box")["RestartCount"].as_u64() >= Some(2)
    });
    wait_until("it to run", SLOW, || state()["Status"] == "running");
    tells_of_restarts(&s, kind);
    // Stopped by hand it stays so.
    s.run(&["stop", "-t", "0", "box"]).ok();
    assert_eq!(state()["Status"], "exited");
    s.settle();
    assert_eq!(state()["Status"], "exited");
    s.run(&["rm", "box"]).ok();
    // Left alone it goes on.
    start(&s, &flags("none"));
    becomes(&s, "unhealthy");
    wait_until("another check", SLOW, || {
        health(&s)["FailingStreak"].as_u64() > Some(3)
    });
    assert_eq!(state()["Status"], "running");
    s.run(&["rm", "-f", "box"]).ok();
}

#[test]
fn wrong_values_are_refused() {
    let s = Sandbox::ready();
    let cmd = ["--health-cmd", "x"];
    let cases: [(&[&str], &str); 8] = [
        (
            &["--health-interval", "-1s"],
            "--health-interval cannot be negative",
        ),
        (
            &["--health-retries", "-1"],
            "--health-retries cannot be negative",
        ),
        (
            &["--health-timeout", "soon"],
            "invalid argument \"soon\" for \"--health-timeout\" flag",
        ),
        (
            &["--health-start-period", "1us"],
            "StartPeriod in Healthcheck cannot be less than 1ms",
        ),
        (
            &["--no-healthcheck"],
            "--no-healthcheck conflicts with --health-* options",
        ),
        (
            &["--health-on-failure", "cry"],
            "must be one of none, kill, restart or stop",
        ),
        (
            &["--health-on-failure", "restart", "--rm"],
            "can't create 'AutoRemove' container with on-failure action restart",
        ),
        (
            &["--health-start-interval", "1us"],
            "StartInterval in Healthcheck",
        ),
    ];
    for (flags, text) in cases {
        let mut args = vec!["run"];
        args.extend(cmd);
        args.extend(flags);
        args.push("probe-linux");
        s.run(&args).fails(125, text);
    }
    let alone = ["run", "--health-on-failure", "kill", "probe-linux"];
    s.run(&alone).fails(
        125,
        "cannot set on-failure action to kill without a health check",
    );
    s.run(&["ps", "-f", "health=fine"])
        .fails(1, "unrecognized filter value for health: fine");
}
