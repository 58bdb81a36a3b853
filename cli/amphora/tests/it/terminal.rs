//! Terminals, and clients that attach and leave.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::sandbox::{Sandbox, path, wait_for, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

/// A terminal of the test's own with the command line sitting at it.
pub(crate) struct Seat {
    main: OwnedFd,
    /// Held so that the terminal outlives the command, to be looked at.
    line: OwnedFd,
    before: Termios,
    pub(crate) child: Child,
    seen: Vec<u8>,
}

impl Seat {
    pub(crate) fn new(s: &Sandbox, args: &[&str]) -> Self {
        Self::sit(&s.command(args))
    }

    /// The same with a variable in the command's environment.
    pub(crate) fn with_env(s: &Sandbox, args: &[&str], key: &str, value: &Path) -> Self {
        let mut command = s.command(args);
        command.env(key, value);
        Self::sit(&command)
    }

    fn sit(own: &Command) -> Self {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&main).expect("a terminal");
        unlockpt(&main).expect("a terminal");
        let name = ptsname(&main, Vec::new()).expect("a terminal");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(&name, flags, Mode::empty()).expect("a terminal");
        let before = tcgetattr(&line).expect("a terminal");
        size(&line, 31, 97);
        let stdio = || Stdio::from(line.try_clone().expect("a terminal"));
        let mut command = Command::new("setsid");
        command
            .arg("-c")
            .arg(own.get_program())
            .args(own.get_args())
            .env_clear()
            .envs(own.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        let child = command.spawn().expect("setsid is installed");
        Self {
            main,
            line,
            before,
            child,
            seen: Vec::new(),
        }
    }

    pub(crate) fn type_in(&self, keys: &str) {
        let mut file = std::fs::File::from(self.main.try_clone().expect("a terminal"));
        file.write_all(keys.as_bytes()).expect("type");
    }

    /// Reads until some text has come, and returns everything up to and with it.
    #[track_caller]
    pub(crate) fn hear(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let all = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = all.find(text) {
                let head = all[..at + text.len()].to_owned();
                self.seen.drain(..head.len().min(self.seen.len()));
                return head;
            }
            assert!(Instant::now() < deadline, "waited for {text:?} in {all:?}");
            self.read();
        }
    }

    fn read(&mut self) {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        let mut fds = [PollFd::new(&self.main, PollFlags::IN)];
        if poll(&mut fds, Some(&pause)).expect("poll") > 0 {
            let mut buffer = [0; 4096];
            let n = rustix::io::read(&self.main, &mut buffer).unwrap_or(0);
            self.seen.extend(&buffer[..n]);
        }
    }

    /// Waits for the end; the terminal must be as it was found.
    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        let code = wait_for(&mut self.child);
        let after = tcgetattr(&self.line).expect("a terminal");
        assert_eq!(self.before.local_modes, after.local_modes);
        assert_eq!(self.before.input_modes, after.input_modes);
        assert_eq!(self.before.output_modes, after.output_modes);
        code
    }

    pub(crate) fn is_raw(&self) -> bool {
        let now = tcgetattr(&self.line).expect("a terminal");
        !now.local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        size(&self.main, rows, cols);
    }

    fn kill(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("kill");
    }
}

fn size(fd: &OwnedFd, rows: u16, cols: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(fd.as_fd(), size).expect("a terminal");
}

/// Loads busybox as `bb`.
pub(crate) fn load_busybox(s: &mut Sandbox) {
    let archive = s.dir.join("bb.tar");
    crate::fixtures::busybox_image("bb").write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).expect("archive");
    s.run(&["run", "--rm", "bb", "true"]).ok();
    s.settle();
    s.mark();
}

both!(
    a_terminal_is_a_terminal_inside,
    lines_are_typed_detached_from_and_come_back_to,
    several_clients_see_the_same,
    input_ends_and_output_goes_on,
);

fn a_terminal_is_a_terminal_inside(image: &str) {
    let s = Sandbox::ready();
    let mut seat = Seat::new(&s, &["run", "--rm", "-it", image, "tty"]);
    seat.hear("terminal: true true\r\n");
    assert_eq!(seat.end(), 0);
    // Output alone may go anywhere.
    let out = s.run(&["run", "--rm", "-t", image, "tty"]).ok();
    assert!(out.ends_with("terminal: true true\r\n"), "{out:?}");
    assert_eq!(
        s.run(&["run", "--rm", "-i", image, "tty"]).ok(),
        "terminal: false false\n"
    );
    let refused = s.run(&["run", "--rm", "-it", image, "tty"]);
    assert_eq!(refused.stderr, "the input device is not a TTY\n");
    assert_eq!(refused.code, 1);
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
}

fn lines_are_typed_detached_from_and_come_back_to(image: &str) {
    let s = Sandbox::ready();
    let mut seat = Seat::new(&s, &["run", "-it", "--name", "talk", image, "echo"]);
    seat.hear("ready\r\n");
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.type_in("one\r");
    // Once as the terminal's echo, once from the program.
    seat.hear("one\r\n<one>\r\n");
    seat.type_in("\x10\x11");
    assert_eq!(seat.end(), 0);
    assert_eq!(s.inspect("talk")["State"]["Status"], "running");
    assert_eq!(s.inspect("talk")["Config"]["Tty"], true);

    let mut seat = Seat::new(&s, &["attach", "--detach-keys", "ctrl-x,q", "talk"]);
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.type_in("two\r");
    seat.hear("<two>\r\n");
    seat.type_in("\x18q");
    seat.hear("read escape sequence");
    assert_eq!(seat.end(), 1);

    let mut seat = Seat::new(&s, &["attach", "talk"]);
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.type_in("bye\r");
    seat.hear("<bye>\r\ndone\r\n");
    assert_eq!(seat.end(), 0);
    assert!(s.run(&["logs", "talk"]).ok().contains("<two>\r\n"));

    // And once more from the beginning.
    let mut seat = Seat::new(&s, &["start", "-ai", "talk"]);
    seat.hear("ready\r\n");
    seat.type_in("bye\r");
    seat.hear("done\r\n");
    assert_eq!(seat.end(), 0);
    s.run(&["attach", "talk"]).fails(
        1,
        "You cannot attach to a stopped container, start it first",
    );
    s.run(&["rm", "talk"]).ok();
}

fn several_clients_see_the_same(image: &str) {
    let s = Sandbox::ready();
    s.run(&["run", "-di", "--name", "many", image, "echo"]).ok();
    let mut clients: Vec<Child> = (0..3)
        .map(|n| {
            s.command(&["attach", "many"])
                .stdin(if n == 0 {
                    Stdio::piped()
                } else {
                    Stdio::null()
                })
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut input = clients[0].stdin.take().unwrap();
    // Each is there when it has heard something.
    let mut outs: Vec<std::io::BufReader<_>> = clients
        .iter_mut()
        .map(|c| std::io::BufReader::new(c.stdout.take().unwrap()))
        .collect();
    let deadline = Instant::now() + LIMIT;
    let mut ready = [false; 3];
    while ready != [true; 3] {
        assert!(Instant::now() < deadline, "{ready:?}");
        input.write_all(b"ping\n").unwrap();
        for (n, out) in outs.iter_mut().enumerate() {
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            let mut fds = [PollFd::new(out.get_ref(), PollFlags::IN)];
            ready[n] |= poll(&mut fds, Some(&pause)).unwrap() > 0;
        }
    }
    input.write_all(b"bye\n").unwrap();
    for (client, out) in clients.iter_mut().zip(outs) {
        assert_eq!(wait_for(client), 0);
        let text = std::io::read_to_string(out).unwrap();
        assert!(text.ends_with("<bye>\ndone\n"), "{text:?}");
    }
    s.run(&["rm", "many"]).ok();
}

fn input_ends_and_output_goes_on(image: &str) {
    let s = Sandbox::ready();
    let out = s.run_with_input(&["run", "--rm", "-i", image, "echo"], b"a\nb\n");
    assert_eq!(out.ok(), "ready\n<a>\n<b>\ndone\n");
    // Only what was asked for is attached.
    let some = s.run(&["run", "--rm", "-a", "stderr", image, "both", "out", "err"]);
    assert_eq!((some.stdout.as_str(), some.stderr.as_str()), ("", "err\n"));
    let fed = s.run_with_input(
        &["run", "-i", "-a", "stdin", "--name", "fed", image, "echo"],
        b"x\n",
    );
    assert_eq!(fed.ok().trim(), s.inspect("fed")["Id"].as_str().unwrap());
    assert_eq!(s.run(&["wait", "fed"]).ok(), "0\n");
    assert_eq!(s.run(&["logs", "fed"]).ok(), "ready\n<x>\ndone\n");
    s.run(&["rm", "fed"]).ok();
    s.run(&["run", "-d", "-a", "stdout", image])
        .fails(1, "cannot specify both --attach and --detach");
    s.run(&["run", "-a", "stdfoo", image])
        .fails(125, "valid streams are STDIN, STDOUT and STDERR");
    s.run(&["run", "--detach-keys", "shift-a", image])
        .fails(125, "invalid detach keys (shift-a)");
}

#[test]
fn size_job_control_and_environment_are_those_of_a_terminal() {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    let script = "busybox stty size; echo TERM=$TERM; busybox tty; ls -l /dev/console; \
                  trap 'echo winch; busybox stty size' WINCH; echo ready; \
                  sleep 600; echo interrupted; exec busybox stty size";
    let mut seat = Seat::new(&s, &["run", "--rm", "-it", "bb", "sh", "-c", script]);
    let head = seat.hear("ready\r\n");
    assert!(head.starts_with("31 97\r\nTERM=xterm\r\n/dev/"), "{head:?}");
    assert!(head.contains("crw"), "the console is a device: {head:?}");
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.resize(44, 121);
    // The shell gets to its trap when its child is gone: ctrl-c ends that, not the shell alone.
    seat.type_in("\x03");
    let rest = seat.hear("^C");
    assert_eq!(rest, "^C");
    let code = seat.end();
    assert_eq!(code, 130);

    // A shell with jobs: ctrl-z stops the child, the shell goes on.
    let mut seat = Seat::new(&s, &["run", "--rm", "-it", "bb", "sh"]);
    seat.hear("# ");
    seat.type_in("cat\r");
    seat.hear("cat\r\n");
    // The first line may still find the shell's line editor, which does not echo.
    seat.type_in("mew\r");
    seat.hear("mew\r\n");
    seat.type_in("moo\r");
    // What is typed and what is written may come in any order.
    seat.hear("moo\r\n");
    seat.hear("moo\r\n");
    seat.type_in("\x1a");
    seat.hear("# ");
    seat.type_in("jobs; busybox stty size\r");
    seat.hear("Stopped");
    seat.hear("31 97");
    // In the foreground again it gets what is typed, and ctrl-c ends it alone.
    seat.type_in("fg\r");
    seat.hear("cat\r\n");
    seat.type_in("back\r");
    seat.hear("back\r\n");
    seat.type_in("again\r");
    seat.hear("again\r\n");
    seat.hear("again\r\n");
    seat.type_in("\x03");
    seat.hear("# ");
    seat.type_in("exit 7\r");
    assert_eq!(seat.end(), 7);
}

#[test]
fn resize_reaches_the_foreground() {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    let script = "trap 'busybox stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut seat = Seat::new(
        &s,
        &["run", "-it", "--name", "size", "bb", "sh", "-c", script],
    );
    seat.hear("ready\r\n");
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.resize(44, 121);
    seat.hear("44 121\r\n");
    s.run(&["kill", "size"]).ok();
    assert_eq!(seat.end(), 137);
    s.run(&["rm", "size"]).ok();
}

#[test]
fn the_terminal_is_put_right_however_it_ends() {
    let s = Sandbox::ready();
    let start = |options: &[&str]| {
        let mut args = vec!["run", "-it", "--name", "end"];
        args.extend(options);
        args.extend(["probe-linux", "sleep", "600"]);
        let mut seat = Seat::new(&s, &args);
        seat.hear("sleeping");
        wait_until("raw mode", LIMIT, || seat.is_raw());
        seat
    };
    // The command line is told to go.
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut seat = start(&["--sig-proxy=false"]);
        seat.kill(signal);
        assert_eq!(seat.end(), code);
        assert_eq!(s.inspect("end")["State"]["Status"], "running");
        s.run(&["rm", "-f", "end"]).ok();
    }
    // The container is, through it.
    let mut seat = start(&[]);
    seat.kill(Signal::TERM);
    assert_eq!(s.inspect("end")["State"]["Status"], "running");
    s.run(&["kill", "end"]).ok();
    assert_eq!(seat.end(), 137);
    s.run(&["rm", "-f", "end"]).ok();
    // The supervisor is killed: its terminal hangs up, and the container ends.
    let mut seat = start(&[]);
    crate::supervisor::kill(crate::supervisor::supervisor_pid(&s, "end"));
    let _code = seat.end();
    wait_until("the container to end", LIMIT, || {
        s.run(&["ps", "-q"]).ok().is_empty()
    });
    s.run(&["rm", "-f", "end"]).ok();
}

#[test]
fn a_stopped_reader_stops_nobody_else() {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    let script = "read go; seq 1 600000; echo over";
    s.run(&["run", "-di", "--name", "flood", "bb", "sh", "-c", script])
        .ok();
    let mut stuck = s
        .command(&["attach", "--no-stdin", "flood"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the reader to be attached", LIMIT, || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", stuck.id())).unwrap();
        fds.flatten()
            .filter_map(|f| std::fs::read_link(f.path()).ok())
            .any(|l| l.to_string_lossy().starts_with("socket:"))
    });
    kill_process(Pid::from_child(&stuck), Signal::STOP).unwrap();
    // Ends with its input: then there is no second client to slow anything.
    let fed = s.run_with_input(&["attach", "flood"], b"go\n");
    assert_eq!(fed.code, 0);
    assert!(
        s.run(&["logs", "--tail", "1", "flood"])
            .ok()
            .contains("over")
    );
    kill_process(Pid::from_child(&stuck), Signal::CONT).unwrap();
    drop(stuck.stdout.take());
    let _code = wait_for(&mut stuck);
    s.run(&["rm", "flood"]).ok();
}
