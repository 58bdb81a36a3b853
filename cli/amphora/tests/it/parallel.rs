//! Many command lines at once: exactly the right ones win, the others fail in Docker's words and
//! leave nothing.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::numbers::Numbers;
use crate::sandbox::{Output, Sandbox, accept_within, finish_within, path, wait_for, wait_until};

both!(
    one_creation_and_one_removal_wins_a_name,
    one_start_wins_a_port,
    one_run_wins_a_name_and_a_port,
    starts_stops_and_removals_cross,
    lists_beside_changes_hide_nothing_afterwards,
);

/// Commands at once.
const CROWD: usize = 64;
/// Longest any of them may take: on a busy machine each waits for the kernel, which makes and
/// removes network namespaces and mounts one after the other.
const PATIENCE: Duration = Duration::from_secs(300);
/// Names and ports they fight for.
const PRIZES: usize = 8;

/// Runs all command lines at once, each to its end.
fn at_once(s: &Sandbox, commands: &[Vec<String>]) -> Vec<Output> {
    std::thread::scope(|scope| {
        let running: Vec<_> = commands
            .iter()
            .map(|words| {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let command = s.command(&words);
                scope.spawn(move || finish_within(command, PATIENCE))
            })
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// All containers: name, id, state.
fn listed(s: &Sandbox) -> BTreeMap<String, (String, String)> {
    let format = "{{.Names}} {{.ID}} {{.State}}";
    let out = s.run(&["ps", "-a", "--no-trunc", "--format", format]).ok();
    out.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[0].into(), (fields[1].into(), fields[2].into()))
        })
        .collect()
}

fn conflict(name: &str, id: &str) -> String {
    format!(
        "Error response from daemon: Conflict. The container name \"/{name}\" is already in use \
         by container \"{id}\". You have to remove (or rename) that container to be able to reuse \
         that name."
    )
}

fn one_creation_and_one_removal_wins_a_name(image: &str) {
    let s = Sandbox::ready();
    let name = |n: usize| format!("n{}", n % PRIZES);
    let commands: Vec<_> = (0..CROWD)
        .map(|n| {
            words(&format!(
                "create --name {} -v v{n}:/v -v /anon {image}",
                name(n)
            ))
        })
        .collect();
    let outputs = at_once(&s, &commands);
    let there = listed(&s);
    assert_eq!(there.len(), PRIZES, "{there:?}");
    let mut won = [0; PRIZES];
    for (n, out) in outputs.iter().enumerate() {
        let (id, state) = &there[&name(n)];
        assert_eq!(state, "created");
        if out.code == 0 {
            won[n % PRIZES] += 1;
            assert_eq!(out.stdout.trim(), id);
        } else {
            let out = out.clone().fails(1, &conflict(&name(n), id));
            assert_eq!(
                out.trim().lines().count(),
                1 + usize::from(out.contains("--help")),
                "{out}"
            );
        }
    }
    assert_eq!(won, [1; PRIZES]);

    let removals: Vec<_> = (0..CROWD)
        .map(|n| words(&format!("rm -v {}", name(n))))
        .collect();
    let mut won = [0; PRIZES];
    for (n, out) in at_once(&s, &removals).into_iter().enumerate() {
        if out.code == 0 {
            won[n % PRIZES] += 1;
            assert_eq!(out.stdout, format!("{}\n", name(n)));
        } else {
            out.fails(1, "Error response from daemon: No such container: ");
        }
    }
    assert_eq!(won, [1; PRIZES]);
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
    // Only the winners' named volumes are there, and they are wanted.
    let volumes = s.run(&["volume", "ls", "-q"]).ok();
    assert_eq!(volumes.lines().count(), PRIZES, "{volumes}");
    let mut remove = vec!["volume", "rm"];
    remove.extend(volumes.lines());
    s.run(&remove).ok();
}

/// Each list writes the index anew, from what it saw at another moment than the others.
fn lists_beside_changes_hide_nothing_afterwards(image: &str) {
    let s = Sandbox::ready();
    let name = |n: usize| format!("n{n}");
    for round in 0..3 {
        let commands: Vec<_> = (0..CROWD)
            .map(|n| match (n % 4, round) {
                (0, _) => words("ps -a"),
                (1, 1) => words(&format!("rename n{n} m{n}")),
                (2, 1) => words(&format!("start n{n}")),
                (3, 2) => words(&format!("rm n{n}")),
                (1, 2) => words(&format!("start m{n}")),
                (_, 0) => words(&format!("create --name n{n} {image} exit {n}")),
                _ => words("ps -a"),
            })
            .collect();
        for out in at_once(&s, &commands) {
            assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:?}");
        }
        s.settle();
        // With the index of whoever was last, and with its own.
        for _ in 0..2 {
            let there = listed(&s);
            for n in (0..CROWD).filter(|n| n % 4 != 0) {
                let (name, state) = match (n % 4, round) {
                    (3, 2) => {
                        assert!(!there.contains_key(&name(n)), "{n}: {there:?}");
                        continue;
                    }
                    (1, 1) => (format!("m{n}"), "created"),
                    (1, 2) => (format!("m{n}"), "exited"),
                    (2, 1 | 2) => (name(n), "exited"),
                    _ => (name(n), "created"),
                };
                assert_eq!(there[&name].1, state, "{name} in round {round}");
            }
        }
    }
    let ids = s.run(&["ps", "-aq"]).ok();
    let mut remove = vec!["rm"];
    remove.extend(ids.lines());
    assert_eq!(remove.len(), 1 + CROWD / 2);
    s.run(&remove).ok();
}

/// Ports below this machine's range of outgoing ones.
fn port(n: usize) -> usize {
    8200 + n % PRIZES
}

/// Whoever has the port may not have it on record yet.
#[track_caller]
fn taken(out: Output, code: i32, n: usize) {
    let address = format!("127.0.0.1:{}", port(n));
    let known = [
        format!("Bind for {address} failed: port is already allocated"),
        format!("failed to bind host port for {address}:172.17.0."),
    ];
    let told = known
        .iter()
        .find(|text| out.stderr.contains(*text))
        .cloned();
    out.fails(code, &told.unwrap_or_else(|| known[0].clone()));
}

fn one_start_wins_a_port(image: &str) {
    let s = Sandbox::ready();
    let creations: Vec<_> = (0..CROWD)
        .map(|n| {
            let port = port(n);
            words(&format!(
                "create --name c{n} -p 127.0.0.1:{port}:80 {image} sleep 600"
            ))
        })
        .collect();
    for out in at_once(&s, &creations) {
        out.ok();
    }
    let starts: Vec<_> = (0..CROWD).map(|n| words(&format!("start c{n}"))).collect();
    let outputs = at_once(&s, &starts);
    let there = listed(&s);
    let mut won = [0; PRIZES];
    for (n, out) in outputs.into_iter().enumerate() {
        let state = &there[&format!("c{n}")].1;
        if out.code == 0 {
            won[n % PRIZES] += 1;
            assert_eq!(state, "running");
            let shown = s.run(&["port", &format!("c{n}"), "80"]).ok();
            assert_eq!(shown, format!("127.0.0.1:{}\n", port(n)));
        } else {
            assert_eq!(state, "created", "{out:?}");
            taken(out, 1, n);
        }
    }
    assert_eq!(won, [1; PRIZES]);
    removed_at_once(&s);
}

fn one_run_wins_a_name_and_a_port(image: &str) {
    let s = Sandbox::ready();
    // Whoever has a name has a port of a group, which others of other names want too.
    let runs: Vec<_> = (0..CROWD)
        .map(|n| {
            let (name, port) = (n / PRIZES, port(n));
            words(&format!(
                "run -d --name r{name} -p 127.0.0.1:{port}:80 {image} sleep 600"
            ))
        })
        .collect();
    let outputs = at_once(&s, &runs);
    let there = listed(&s);
    assert_eq!(there.len(), PRIZES, "{there:?}");
    let (mut of_name, mut of_port) = ([0; PRIZES], [0; PRIZES]);
    let mut wanted = [0; PRIZES];
    for (n, out) in outputs.iter().enumerate() {
        let name = format!("r{}", n / PRIZES);
        let (id, state) = &there[&name];
        if out.code == 0 {
            assert_eq!(
                (out.stdout.trim(), state.as_str()),
                (id.as_str(), "running")
            );
            of_name[n / PRIZES] += 1;
            of_port[n % PRIZES] += 1;
            wanted[n % PRIZES] = 1;
        } else if out.stderr.contains("Conflict") {
            out.clone().fails(125, &conflict(&name, id));
        } else {
            // It had the name: Docker leaves what could not be started as created.
            assert_eq!(state, "created", "{out:?}");
            taken(out.clone(), 125, n);
            of_name[n / PRIZES] += 1;
            wanted[n % PRIZES] = 1;
        }
    }
    assert_eq!(of_name, [1; PRIZES]);
    assert_eq!(of_port, wanted, "a port that was wanted has one owner");
    removed_at_once(&s);
}

/// Removes everything by one command line a container, all at once, and counts what is left.
fn removed_at_once(s: &Sandbox) {
    let removals: Vec<_> = listed(s)
        .keys()
        .map(|name| words(&format!("rm -f -v {name}")))
        .collect();
    for out in at_once(s, &removals) {
        out.ok();
    }
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
    s.check();
}

/// Everything that changes a container, on few of them at once.
fn starts_stops_and_removals_cross(image: &str) {
    const NAMES: usize = 6;
    const SEEDS: u64 = 3;
    let s = Sandbox::ready();
    for seed in 0..SEEDS {
        crossed(&s, image, NAMES, seed);
    }
}

fn crossed(s: &Sandbox, image: &str, names: usize, seed: u64) {
    let mut numbers = Numbers(seed);
    for n in 0..names {
        s.run(&[
            "create",
            "--name",
            &format!("x{n}"),
            "-v",
            "/anon",
            image,
            "sleep",
            "600",
        ])
        .ok();
    }
    let commands: Vec<_> = (0..CROWD)
        .map(|_| {
            let (one, two) = (numbers.below(names), numbers.below(names));
            let port = port(one);
            words(&match numbers.below(14) {
                0..=3 => format!("start x{one}"),
                4 => format!("stop -t 0 x{one}"),
                5 => format!("kill x{one}"),
                6 => format!("rm -f -v x{one}"),
                7 => format!("rm -v x{one}"),
                8 => format!("rename x{one} x{two}"),
                9 => format!("restart -t 0 x{one}"),
                10 => format!("pause x{one}"),
                11 => format!("unpause x{one}"),
                12 => format!("run -d --rm --name x{one} -p 127.0.0.1:{port}:80 {image} sleep 600"),
                _ => format!(
                    "create --name x{one} -p 127.0.0.1:{port}:80 -v /anon {image} sleep 600"
                ),
            })
        })
        .collect();
    for (words, out) in commands.iter().zip(at_once(s, &commands)) {
        let known = [
            "is not running",
            "No such container",
            "is already in use",
            "is already paused",
            "is not paused",
            "is running: stop the container",
            "is paused and must be unpaused",
            "is paused, unpause",
            "cannot start a paused container",
            "address already in use",
            "port is already allocated",
            "same name as its current name",
        ];
        assert!(
            out.code == 0 || known.iter().any(|k| out.stderr.contains(k)),
            "{words:?}: {out:?}"
        );
    }
    legal(s);
    let _ = at_once(
        s,
        &listed(s)
            .keys()
            .map(|n| words(&format!("rm -f -v {n}")))
            .collect::<Vec<_>>(),
    );
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
    s.check();
}

/// Each container is in one state with all that belongs to it, and under one name.
fn legal(s: &Sandbox) {
    for (name, (id, state)) in listed(s) {
        let shown = s.inspect(&name);
        assert_eq!(shown["Id"], id.as_str());
        assert_eq!(shown["Name"], format!("/{name}"));
        assert_eq!(shown["State"]["Status"], state.as_str());
        let pid = shown["State"]["Pid"].as_i64().unwrap();
        match state.as_str() {
            "running" | "paused" => {
                assert!(std::path::Path::new(&format!("/proc/{pid}")).is_dir());
            }
            "created" | "exited" => {
                assert_eq!(pid, 0);
                wait_until("its run directory to go", Duration::from_secs(20), || {
                    !s.run_root().join("containers").join(&id).exists()
                });
            }
            other => panic!("{name} is {other}"),
        }
    }
    let names = std::fs::read_dir(s.root().join("names")).unwrap();
    let mut claims: Vec<String> = names
        .map(|n| n.unwrap().file_name().into_string().unwrap())
        .collect();
    claims.sort();
    assert_eq!(claims, listed(s).into_keys().collect::<Vec<_>>());
}

/// Commands on other things, each of them done before the slow one is.
fn others_go_on(s: &Sandbox, image: &str, what: &str, slow: &mut Child) {
    // Far below what the slow one takes, far above what these do.
    const PATIENCE: Duration = Duration::from_secs(15);
    let began = Instant::now();
    for words in [
        &[
            "create", "--name", "other", "-v", "/anon", image, "sleep", "600",
        ][..],
        &["start", "other"],
        &["ps", "-a"],
        &["inspect", "other"],
        &["images"],
        &["rename", "other", "another"],
        &["stop", "-t", "0", "another"],
        &["rm", "-v", "another"],
        &["run", "--rm", image, "exit", "0"],
        &["ps", "-a"],
        &["tag", image, "renamed"],
        &["rmi", "renamed"],
    ] {
        s.run(words).ok();
        assert!(began.elapsed() < PATIENCE, "{words:?} waits for {what}");
    }
    let ended = slow.try_wait().unwrap();
    assert!(ended.is_none(), "{what} was not slow: {ended:?}");
}

/// Begins a command whose standard input and output stand still.
fn slow(s: &Sandbox, words: &[&str]) -> Child {
    s.command(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn slow_work_holds_nobody_up() {
    use std::io::Write;

    let s = Sandbox::ready();
    let image = "probe-linux";
    s.run(&["run", "-d", "--name", "stubborn", image, "sleep", "600"])
        .ok();
    s.run(&["create", "--name", "big", image]).ok();
    let tree = s.dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut file = std::fs::File::create(tree.join("file")).unwrap();
    for _ in 0..64 {
        file.write_all(&[7; 1 << 20]).unwrap();
    }
    s.run(&["cp", path(&tree), "big:/tree"]).ok();

    // What ignores its signal, and who waits for it.
    let mut waiting = slow(&s, &["wait", "stubborn"]);
    let mut stopping = slow(&s, &["stop", "-t", "60", "-s", "WINCH", "stubborn"]);
    others_go_on(&s, image, "wait", &mut waiting);
    others_go_on(&s, image, "stop", &mut stopping);
    s.run(&["kill", "stubborn"]).ok();
    assert_eq!((wait_for(&mut waiting), wait_for(&mut stopping)), (0, 0));

    // Output that nobody reads.
    for words in [
        &["cp", "big:/tree", "-"][..],
        &["export", "big"],
        &["save", image],
    ] {
        let mut child = slow(&s, words);
        others_go_on(&s, image, words[0], &mut child);
        drop(child.stdout.take());
        wait_for(&mut child);
    }
    // Input that does not come.
    for words in [&["cp", "-", "big:/tmp"][..], &["load"], &["import", "-"]] {
        let mut child = slow(&s, words);
        child.stdin.as_mut().unwrap().write_all(&[0; 100]).unwrap();
        others_go_on(&s, image, words[0], &mut child);
        drop(child.stdin.take());
        wait_for(&mut child);
    }
    // A registry that does not answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:5000").unwrap();
    let mut pull = slow(&s, &["pull", "127.0.0.1:5000/never"]);
    let connection = accept_within(&silent, Duration::from_secs(20));
    others_go_on(&s, image, "pull", &mut pull);
    drop((connection, silent));
    assert_ne!(wait_for(&mut pull), 0);
    // One that is stopped in the middle of its work.
    let mut commit = slow(&s, &["commit", "big", "committed"]);
    let ingest = s.root().join("ingest");
    wait_until("the layer to grow", Duration::from_secs(20), || {
        let files = std::fs::read_dir(&ingest).map(|d| d.flatten().collect::<Vec<_>>());
        files.is_ok_and(|f| f.iter().any(|f| f.metadata().is_ok_and(|m| m.len() > 0)))
    });
    let pid = rustix::process::Pid::from_child(&commit);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    others_go_on(&s, image, "commit", &mut commit);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(wait_for(&mut commit), 0);
    s.run(&["rmi", "committed"]).ok();
    s.run(&["rm", "-f", "big", "stubborn"]).ok();
    std::fs::remove_dir_all(&tree).unwrap();
}
