//! What a start runs through lies together in the program: `cli/amphora/hot.txt` lists the functions,
//! and the build script of `amphora` has the linker put them side by side. A start then touches half
//! the pages. `cargo xtask hot COMMAND...` steps through a run of the program and adds the functions
//! that are not on the list yet; how the list is made from nothing stands in docs/benchmarks.md.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Adds what `command` runs through.
pub(crate) fn run(root: &Path, command: &[String]) -> Result<()> {
    let program = command.first().context("which command?")?;
    let symbols = Symbols::of(Path::new(program))?;
    let passed = step_through(command, &symbols)?;
    let list = root.join("cli/amphora/hot.txt");
    let old = std::fs::read_to_string(&list).unwrap_or_default();
    let mut there: HashSet<String> = old.lines().map(str::to_owned).collect();
    let patterns = symbols.patterns(&passed);
    let more: Vec<String> = patterns
        .into_iter()
        .filter(|pattern| there.insert(pattern.clone()))
        .collect();
    println!("{} functions, {} of them new", passed.len(), more.len());
    // An empty line parts what was added at once: the linker keeps that together.
    let parts = [old.trim_end(), &more.join("\n")].map(str::to_owned);
    let text = parts.join("\n\n");
    Ok(std::fs::write(list, format!("{}\n", text.trim()))?)
}

struct Symbol {
    address: u64,
    size: u64,
    name: String,
}

/// The functions of a program, by address.
struct Symbols(Vec<Symbol>);

/// A function's name without what changes with each change of its crate.
fn pattern(name: &str) -> String {
    let hash = name.len().checked_sub("17h0123456789abcdefE".len());
    match hash.and_then(|at| name.split_at_checked(at)) {
        Some((stem, hash)) if hash.starts_with("17h") && hash.ends_with('E') => {
            format!("{stem}17h*E")
        }
        _ => name.to_owned(),
    }
}

impl Symbols {
    fn of(program: &Path) -> Result<Self> {
        let said = Command::new("nm").arg("-S").arg(program).output()?;
        ensure!(said.status.success(), "nm of {program:?} failed");
        let text = String::from_utf8(said.stdout)?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut all: Vec<Symbol> = text
            .lines()
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let (address, size, kind, name) = match *words {
                    [address, size, kind, name] => (address, number(size)?, kind, name),
                    [address, kind, name] => (address, 0, kind, name),
                    _ => return None,
                };
                let function = kind.eq_ignore_ascii_case("t") || kind.eq_ignore_ascii_case("w");
                function.then_some(Symbol {
                    address: number(address)?,
                    size,
                    name: name.to_owned(),
                })
            })
            .collect();
        all.sort_by_key(|symbol| symbol.address);
        ensure!(!all.is_empty(), "{program:?} has no symbols");
        Ok(Self(all))
    }

    /// Which function an address is in, by its place.
    fn at(&self, address: u64) -> Option<usize> {
        let after = self.0.partition_point(|symbol| symbol.address <= address);
        let symbol = self.0.get(after.checked_sub(1)?)?;
        (address < symbol.address + symbol.size.max(1)).then_some(after - 1)
    }

    /// The names of functions, without their hashes where that takes few others along.
    fn patterns(&self, passed: &[usize]) -> Vec<String> {
        /// Bytes that may come along.
        const COMPANY: u64 = 2000;
        let mut all: HashMap<String, u64> = HashMap::new();
        let mut wanted: HashMap<String, u64> = HashMap::new();
        for symbol in &self.0 {
            *all.entry(pattern(&symbol.name)).or_default() += symbol.size;
        }
        let passed = || passed.iter().filter_map(|at| self.0.get(*at));
        for symbol in passed() {
            *wanted.entry(pattern(&symbol.name)).or_default() += symbol.size;
        }
        let short = |symbol: &Symbol| {
            let pattern = pattern(&symbol.name);
            let bytes = |of: &HashMap<String, u64>| of.get(&pattern).copied().unwrap_or(0);
            if bytes(&all) > 2 * bytes(&wanted) + COMPANY {
                symbol.name.clone()
            } else {
                pattern
            }
        };
        passed().map(short).collect()
    }
}

/// Runs a command step by step, with all that it starts, and returns the functions it ran through in
/// the order of their first step.
fn step_through(command: &[String], symbols: &Symbols) -> Result<Vec<usize>> {
    let mut shell = Command::new("sh")
        .args(["-c", "read -r go; exec \"$@\"", "sh"])
        .args(command)
        .stdin(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(shell.id())?);
    let follow = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::seize(pid, follow)?;
    ptrace::interrupt(pid)?;
    shell.stdin.take().context("stdin")?.write_all(b"go\n")?;
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
        let (stopped, signal) = match status {
            WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, _, _) if ended == pid => {
                return Ok(order);
            }
            // An event's number stands for a stop that no signal caused.
            WaitStatus::PtraceEvent(stopped, _, _) => (stopped, None),
            WaitStatus::Stopped(stopped, nix::sys::signal::Signal::SIGTRAP) => (stopped, None),
            WaitStatus::Stopped(stopped, signal) => (stopped, Some(signal)),
            _ => continue,
        };
        if let Ok(address) = instruction(stopped)
            && let Some(at) = symbols.at(address)
            && seen.insert(at)
        {
            order.push(at);
        }
        // Whoever has been killed meanwhile tells so itself.
        let _gone = ptrace::step(stopped, signal);
    }
}

/// Where a process that is stopped goes on.
#[cfg(target_arch = "x86_64")]
fn instruction(pid: Pid) -> nix::Result<u64> {
    Ok(ptrace::getregs(pid)?.rip)
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction(_: Pid) -> nix::Result<u64> {
    Err(nix::errno::Errno::ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_left_out() {
        assert_eq!(
            pattern("_ZN4core3fmt5write17h0123456789abcdefE"),
            "_ZN4core3fmt5write17h*E"
        );
        assert_eq!(pattern("memcpy"), "memcpy");
        assert_eq!(pattern("main"), "main");
    }

    #[test]
    fn popular_names_keep_their_hashes() {
        let one = |address, size, name: &str| Symbol {
            address,
            size,
            name: name.to_owned(),
        };
        let symbols = Symbols(vec![
            one(0, 10, "few17h0123456789abcdefE"),
            one(10, 10, "few17h1123456789abcdefE"),
            one(20, 10, "many17h0123456789abcdefE"),
            one(30, 9000, "many17h1123456789abcdefE"),
        ]);
        assert_eq!(
            [9, 10, 29, 9030].map(|at| symbols.at(at)),
            [Some(0), Some(1), Some(2), None]
        );
        assert_eq!(
            symbols.patterns(&[0, 2]),
            ["few17h*E", "many17h0123456789abcdefE"]
        );
    }
}
