//! One life of the machine, read from its serial console.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::payload::BEGIN;

/// Longest it may take until the stage begins.
const BOOT: Duration = Duration::from_secs(3 * 60);
/// Times that it is started when it does not come up.
const ATTEMPTS: u32 = 3;
/// No five-level page tables, which only cost. No `cmpxchg16b`: qemu 7.2 leaves garbage in the flags
/// behind it, and the kernel's allocator falls over that; it does without where the CPU has none.
const CPU: &str = "max,la57=off,cx16=off";
/// Two controllers instead of two disks of one: their order is certain.
const KERNEL: &str = "root=/dev/nvme0n1 rw console=ttyS0 loglevel=1 mitigations=off panic=-1 \
                      tsc=reliable systemd.show_status=0";

/// Boots, hands over each line of the console and prints it; ends when the machine is off.
///
/// # Errors
/// When it does not come up, runs longer than `deadline`, or its kernel panics.
pub(crate) fn run(
    place: &Path,
    payload: &Path,
    deadline: Duration,
    mut line: impl FnMut(&str),
) -> Result<()> {
    let start = Instant::now();
    let mut attempt = 1;
    loop {
        let mut life = Life {
            up: false,
            start: Instant::now(),
            deadline: deadline.saturating_sub(start.elapsed()),
        };
        let outcome = life.live(start_machine(place, payload)?, &mut line);
        println!("machine: off after {} s", life.start.elapsed().as_secs());
        // Emulation now and then breaks the kernel while it boots. What happens later is looked at.
        if outcome.is_ok() || life.up || attempt == ATTEMPTS {
            return outcome;
        }
        attempt += 1;
        println!("machine: it did not come up, attempt {attempt}");
    }
}

struct Life {
    /// The stage has begun.
    up: bool,
    start: Instant,
    deadline: Duration,
}

impl Life {
    fn live(&mut self, mut machine: Child, line: &mut impl FnMut(&str)) -> Result<()> {
        let console = machine.stdout.take().context("piped")?;
        let outcome = self.read(&reader(console), line);
        if outcome.is_err() {
            machine.kill().context("failed to stop qemu")?;
        }
        let status = machine.wait().context("failed to wait for qemu")?;
        outcome?;
        ensure!(status.success(), "qemu ended with {status}");
        Ok(())
    }

    fn read(&mut self, lines: &Receiver<String>, line: &mut impl FnMut(&str)) -> Result<()> {
        loop {
            let limit = match self.up {
                true => self.deadline,
                false => self.deadline.min(BOOT),
            };
            match lines.recv_timeout(limit.saturating_sub(self.start.elapsed())) {
                Ok(text) => {
                    println!("{text}");
                    self.up |= text.contains(BEGIN);
                    ensure!(
                        !text.contains("Kernel panic"),
                        "the machine's kernel panicked"
                    );
                    line(&text);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if self.up => {
                    bail!("the machine ran longer than {limit:?}")
                }
                Err(RecvTimeoutError::Timeout) => bail!("the machine was not up after {limit:?}"),
            }
        }
    }
}

fn start_machine(place: &Path, payload: &Path) -> Result<Child> {
    let disk = |file: &Path, more: &str| {
        // What the machine writes is thrown away.
        format!("file={},format=raw,snapshot=on,{more}", file.display())
    };
    // Emulation takes all there is: whatever else runs here goes first. One thread for both
    // processors: with two, a processor runs code that the other one has just changed.
    Command::new("nice")
        // It is not to outlive us, whoever ends us.
        .args(["setpriv", "--pdeathsig", "KILL"])
        .args([
            "qemu-system-x86_64",
            "-M",
            "q35",
            "-accel",
            "tcg,thread=single",
        ])
        .args(["-cpu", CPU, "-smp", "2", "-m", "2048"])
        .arg("-kernel")
        .arg(place.join("vmlinuz"))
        .args(["-append", KERNEL, "-drive"])
        .arg(disk(&place.join("root.ext4"), "if=none,id=root"))
        .args(["-device", "nvme,drive=root,serial=root", "-drive"])
        .arg(disk(payload, "if=virtio"))
        .args(["-nodefaults", "-display", "none", "-nic", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start qemu")
}

/// Lines of the console, without what is only for terminals.
fn reader(console: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(plain(&String::from_utf8_lossy(&line))).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Drops carriage returns and escape sequences.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let (csi, osc) = (chars.next_if_eq(&'['), chars.next_if_eq(&']'));
                while csi.is_some() && chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                while osc.is_some() && chars.next().is_some_and(|c| c != '\u{7}') {}
            }
            '\r' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn escapes_are_dropped() {
        assert_eq!(plain("\u{1b}[!p\u{1b}]104\u{7}\u{1b}[?7hup\r"), "up");
        assert_eq!(
            plain("\u{1b}[0;38;5;245mtest a ... ok\u{1b}[0m"),
            "test a ... ok"
        );
    }
}
