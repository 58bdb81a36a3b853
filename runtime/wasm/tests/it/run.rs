//! What a guest sees and how it ends.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::guests::{Outcome, Run, Wasi, feed, finish, guest};

const BOTH: [Wasi; 2] = [Wasi::P1, Wasi::P2];

#[track_caller]
fn succeeds(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn args_and_environment_arrive_exactly_as_given() {
    for wasi in BOTH {
        let mut run = Run::new(wasi, "hello", &["one", "two words"]);
        run.config.env = vec!["A=1".to_owned(), "EMPTY=".to_owned(), "EQ=a=b".to_owned()];
        let outcome = run.run();
        succeeds(&outcome);
        assert_eq!(
            outcome.stdout,
            "Hello from Wasm!\nargs: app.wasm one two words\n\
             env: A=1\nenv: EMPTY=\nenv: EQ=a=b\ncwd: /\n",
            "{wasi:?}"
        );
    }
}

#[test]
fn the_exit_code_is_the_guests() {
    for wasi in BOTH {
        assert_eq!(Run::new(wasi, "probe", &["exit", "0"]).run().code, Some(0));
        assert_eq!(
            Run::new(wasi, "probe", &["exit", "1"]).run().code,
            Some(1),
            "{wasi:?}"
        );
    }
    assert_eq!(
        Run::new(Wasi::P1, "probe", &["exit", "42"]).run().code,
        Some(42)
    );
}

#[test]
fn files_are_read_and_written_beneath_the_root() {
    for wasi in BOTH {
        let run = Run::new(wasi, "files", &["write", "/new.txt", "text"]);
        let path = run.root().join("new.txt");
        let mut run = run;
        let child = run.spawn();
        succeeds(&finish(child));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text\n");

        let run = Run::new(wasi, "files", &["list", "/"]);
        for name in ["b", "a", "c"] {
            std::fs::write(run.root().join(name), name).unwrap();
        }
        let listed = run.run();
        succeeds(&listed);
        assert_eq!(listed.stdout, "a\nb\nc\n");

        let run = Run::new(wasi, "files", &["rename", "/dir/a", "/b"]);
        std::fs::create_dir(run.root().join("dir")).unwrap();
        std::fs::write(run.root().join("dir/a"), "x").unwrap();
        succeeds(&run.run());
    }
}

#[test]
fn times_can_be_set_without_proc() {
    for wasi in BOTH {
        let mut run = Run::new(wasi, "files", &["touch", "/t"]);
        let path = run.root().join("t");
        let child = run.spawn();
        succeeds(&finish(child));
        let modified = std::fs::metadata(path).unwrap().modified().unwrap();
        let seconds = modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert_eq!(seconds, 86_400);
    }
}

#[test]
fn nothing_outside_the_root_is_reached() {
    for wasi in BOTH {
        for path in ["/../secret", "../secret", "/link", "/abs"] {
            let run = Run::new(wasi, "files", &["read", path]);
            std::fs::write(run.temp.join("secret"), "leak").unwrap();
            std::os::unix::fs::symlink("../secret", run.root().join("link")).unwrap();
            std::os::unix::fs::symlink(run.temp.join("secret"), run.root().join("abs")).unwrap();
            let outcome = run.run();
            assert_eq!(outcome.code, Some(1), "{path} {outcome:?}");
            assert_eq!(outcome.stdout, "");
        }
    }
}

#[test]
fn a_read_only_root_refuses_every_change() {
    for wasi in BOTH {
        for args in [
            &["write", "/new", "x"][..],
            &["append", "/old", "x"],
            &["mkdir", "/dir"],
            &["remove", "/old"],
            &["rename", "/old", "/new"],
        ] {
            let mut run = Run::new(wasi, "files", args);
            run.config.root_readonly = true;
            let root = run.root();
            std::fs::write(root.join("old"), "old").unwrap();
            let child = run.spawn();
            let outcome = finish(child);
            assert_eq!(outcome.code, Some(1), "{wasi:?} {args:?} {outcome:?}");
            assert_eq!(std::fs::read_to_string(root.join("old")).unwrap(), "old");
            assert_eq!(std::fs::read_dir(root).unwrap().count(), 1);
        }
        let mut run = Run::new(wasi, "files", &["read", "/old"]);
        run.config.root_readonly = true;
        std::fs::write(run.root().join("old"), "old").unwrap();
        assert_eq!(run.run().stdout, "old");
    }
}

#[test]
fn relative_paths_start_at_the_working_directory_and_absolute_ones_at_the_root() {
    for wasi in BOTH {
        let cases = [
            ("name", "in work"),
            ("./name", "in work"),
            ("/srv/name", "in work"),
            ("/etc/name", "in etc"),
            ("/short/name", "in etc"),
        ];
        for (path, text) in cases {
            let mut run = Run::new(wasi, "files", &["read", path]);
            run.config.cwd = "/srv".to_owned();
            for (dir, text) in [("srv", "in work"), ("etc", "in etc"), (".", "in root")] {
                let dir = run.root().join(dir);
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join("name"), text).unwrap();
            }
            std::os::unix::fs::symlink("etc", run.root().join("short")).unwrap();
            // Files do not use the places of directories up.
            for n in 0..300 {
                std::fs::write(run.root().join(format!("file{n}")), "").unwrap();
            }
            assert_eq!(run.run().stdout, text, "{wasi:?} {path}");
        }
    }
}

#[test]
fn stdin_is_copied_from_pipes_and_files() {
    let text = "line\n".repeat(50_000);
    for wasi in BOTH {
        let mut run = Run::new(wasi, "probe", &["echo"]).stdin(Stdio::piped());
        let mut child = run.spawn();
        let input = text.clone();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
        let outcome = finish(child);
        writer.join().unwrap();
        succeeds(&outcome);
        assert!(
            outcome.stdout == text,
            "{wasi:?} {} bytes",
            outcome.stdout.len()
        );

        let run = Run::new(wasi, "probe", &["echo"]);
        std::fs::write(run.temp.join("in"), &text).unwrap();
        let file = std::fs::File::open(run.temp.join("in")).unwrap();
        let outcome = run.stdin(file).run();
        assert!(
            outcome.stdout == text,
            "{wasi:?} {} bytes",
            outcome.stdout.len()
        );
        assert_eq!(Run::new(wasi, "probe", &["echo"]).run().stdout, "");
    }
}

#[test]
fn a_prompt_without_line_break_is_seen_before_the_answer() {
    for wasi in BOTH {
        let mut run = Run::new(wasi, "probe", &["prompt"]).stdin(Stdio::piped());
        let mut child = run.spawn();
        let mut prompt = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut prompt).unwrap();
        assert_eq!(&prompt, b"name? ");
        feed(&mut child, b"amphora\n");
        assert_eq!(finish(child).stdout, "hello amphora\n");
    }
}

#[test]
fn a_trap_shows_its_backtrace_and_exits_134() {
    for wasi in BOTH {
        let outcome = Run::new(wasi, "probe", &["trap"]).run();
        assert_eq!(outcome.code, Some(134), "{outcome:?}");
        for part in ["about to trap\n", "wasm backtrace:", "unreachable"] {
            assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
        }
        let outcome = Run::new(wasi, "probe", &["deep"]).run();
        assert_eq!(outcome.code, Some(134), "{outcome:?}");
    }
}

#[test]
fn the_guest_sees_the_memory_limit() {
    for wasi in BOTH {
        let mut run = Run::new(wasi, "probe", &["grow", "64"]);
        run.config.memory_bytes = Some(16 << 20);
        let outcome = run.run();
        succeeds(&outcome);
        let count = outcome
            .stdout
            .trim()
            .strip_prefix("refused after ")
            .unwrap();
        let count = count.strip_suffix(" MiB").unwrap().parse::<u32>().unwrap();
        assert!((8..16).contains(&count), "{count}");
        assert_eq!(
            Run::new(wasi, "probe", &["grow", "64"]).run().stdout,
            "got 64 MiB\n"
        );
    }
}

#[test]
fn a_limit_below_the_first_pages_is_told() {
    let mut run = Run::new(Wasi::P1, "probe", &["exit", "0"]);
    run.config.memory_bytes = Some(65_536);
    let outcome = run.run();
    assert_eq!(outcome.code, Some(126));
    assert!(
        outcome.stderr.contains("exceeds memory limits"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_endless_loop_ends_on_a_signal_with_its_code() {
    for (signal, code) in [
        (rustix::process::Signal::TERM, 143),
        (rustix::process::Signal::INT, 130),
    ] {
        let mut run = Run::new(Wasi::P1, "probe", &["spin"]);
        let mut child = run.spawn();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "spinning\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(finish(child).code, Some(code));
    }
}

#[test]
fn clocks_and_randomness_work() {
    for wasi in BOTH {
        assert_eq!(
            Run::new(wasi, "probe", &["sleep", "20"]).run().stdout,
            "slept true\nclock true\n"
        );
        let first = Run::new(wasi, "probe", &["random"]).run().stdout;
        assert_ne!(first, Run::new(wasi, "probe", &["random"]).run().stdout);
    }
}

#[test]
fn components_listen_and_connect() {
    let mut server = Run::new(Wasi::P2, "net", &["serve", "127.0.0.1:0", "1"]);
    let mut child = server.spawn();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    let outcome = Run::new(Wasi::P2, "net", &["ask", &address, "hello"]).run();
    succeeds(&outcome);
    assert_eq!(outcome.stdout, "you said hello\n");
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "served hello\n");
    assert_eq!(finish(child).code, Some(0));
}

#[test]
fn names_are_resolved_from_inside() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = address.local_addr().unwrap().port();
    let answer = std::thread::spawn(move || {
        let (stream, _) = address.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(b"resolved\n").unwrap();
    });
    // The runner's own root is still the host's here; the guest's is an empty directory.
    let mut run = Run::new(Wasi::P2, "net", &["ask", &format!("localhost:{port}"), "x"]);
    run.config.root = "/".to_owned();
    let outcome = run.run();
    assert_eq!(outcome.stdout, "resolved\n", "{outcome:?}");
    answer.join().unwrap();
}

#[test]
fn an_export_can_be_called_in_place_of_the_default() {
    let bytes = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (func (export "_initialize") (global.set $ready (i32.const 7)))
            (global $ready (mut i32) (i32.const 0))
            (memory (export "memory") 1)
            (func (export "go") (call $exit (global.get $ready)))
            (func (export "takes") (param i32)))"#,
    )
    .unwrap();
    let mut run = Run::of(&bytes, &[]);
    run.config.function = Some("go".to_owned());
    assert_eq!(run.run().code, Some(7));
    for (name, part) in [
        ("nope", "exports no function \"nope\""),
        ("takes", "takes parameters"),
    ] {
        let mut run = Run::of(&bytes, &[]);
        run.config.function = Some(name.to_owned());
        let outcome = run.run();
        assert_eq!(outcome.code, Some(126));
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
}

#[test]
fn the_older_snapshot_runs() {
    let bytes = wat::parse_str(
        r#"(module
            (import "wasi_unstable" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const 9))))"#,
    )
    .unwrap();
    assert_eq!(Run::of(&bytes, &[]).run().code, Some(9));
}

#[test]
fn an_artefact_of_something_else_is_refused_by_the_runner() {
    let mut run = Run::new(Wasi::P1, "hello", &[]);
    run.config.kind = amphora_artifact::ModuleKind::Component;
    let outcome = run.run();
    assert_eq!(outcome.code, Some(126), "{outcome:?}");
    let _ = guest(Wasi::P1, "hello");
}
