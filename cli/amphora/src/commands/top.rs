//! `top`: the processes of a container, read from `/proc`.

use amphora_engine::Engine;
use clap::Args;
use jiff::{Timestamp, tz::TimeZone};

use crate::errors::{Failure, Outcome};
use crate::ui;

/// Ticks a second in `/proc`, `USER_HZ`.
const TICKS: u64 = 100;
const DAY: i64 = 86_400;

/// Columns of `ps -ef`, which Docker shows.
const FULL: [&str; 8] = ["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
/// Columns of `ps aux`.
const USER: [&str; 11] = [
    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command",
];
/// Columns of plain `-o` lists.
const KNOWN: [&str; 23] = [
    "uid", "user", "pid", "ppid", "c", "stime", "start", "tty", "tt", "time", "cmd", "args",
    "command", "comm", "%cpu", "pcpu", "%mem", "pmem", "vsz", "rss", "stat", "ni", "etime",
];

// Arguments of `top`.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub(crate) struct TopArgs {
    /// Name or id; options of `ps`: -ef, aux, -o LIST
    // One list: flags end with its first word.
    #[arg(required = true, value_name = "CONTAINER")]
    words: Vec<String>,
}

/// Carries out `top`.
pub(crate) fn top(engine: &Engine, args: &TopArgs) -> Outcome {
    let (container, options) = super::split(args.words.clone());
    let columns = columns(&options)?;
    let id = engine.find(&container)?;
    let names = Names::read();
    let machine = Machine::read(engine.machine_memory());
    let mut out = columns
        .iter()
        .map(|c| title(c))
        .collect::<Vec<_>>()
        .join("\t");
    out.push('\n');
    for pid in engine.processes(&id)? {
        // One that ended meanwhile is left out.
        let Some(process) = Process::read(pid) else {
            continue;
        };
        let cells: Vec<String> = columns
            .iter()
            .map(|c| cell(c, &process, &names, &machine))
            .collect();
        out.push_str(&cells.join("\t"));
        out.push('\n');
    }
    ui::raw(&wide(&out));
    Ok(())
}

/// Docker's table of `top`: columns at least 20 wide, one space apart.
fn wide(text: &str) -> String {
    const WIDTH: usize = 20;
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split('\t').collect()).collect();
    let width = |at: usize| {
        lines
            .iter()
            .filter_map(|l| l.get(at))
            .map(|c| c.chars().count() + 1)
            .max()
            .unwrap_or(0)
            .max(WIDTH)
    };
    let mut out = String::new();
    for line in &lines {
        for (at, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if at + 1 < line.len() {
                let fill = width(at).saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n(' ', fill));
            }
        }
        out.push('\n');
    }
    out
}

fn columns(options: &[String]) -> Outcome<Vec<String>> {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let mut words = options.iter().map(String::as_str);
    let mut out: Option<Vec<String>> = None;
    while let Some(word) = words.next() {
        let list = match word {
            "-ef" | "-f" | "ef" | "-e" | "-A" => {
                out.get_or_insert_with(|| owned(&FULL));
                continue;
            }
            "aux" | "-aux" | "u" | "ax" | "-ax" => {
                out.get_or_insert_with(|| owned(&USER));
                continue;
            }
            "-o" | "o" | "-eo" | "-ao" | "-axo" | "axo" => words.next().unwrap_or_default(),
            other => match other.strip_prefix("-o") {
                Some(list) => list,
                None => {
                    return Err(Failure::Daemon(format!(
                        "ps option {other} is not supported"
                    )));
                }
            },
        };
        let mut chosen: Vec<String> = Vec::new();
        for column in list.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            if !KNOWN.contains(&column) {
                return Err(Failure::Daemon(format!(
                    "ps column {column} is not supported"
                )));
            }
            chosen.push(column.to_owned());
        }
        if !chosen.iter().any(|c| c == "pid") {
            return Err(Failure::Engine(amphora_engine::EngineError::Invalid(
                "Couldn't find PID field in ps output".to_owned(),
            )));
        }
        out = Some(chosen);
    }
    Ok(out.unwrap_or_else(|| owned(&FULL)))
}

fn title(column: &str) -> String {
    match column {
        "start" => "START".to_owned(),
        "args" | "command" | "comm" => "COMMAND".to_owned(),
        "pcpu" => "%CPU".to_owned(),
        "pmem" => "%MEM".to_owned(),
        "tt" => "TT".to_owned(),
        "etime" => "ELAPSED".to_owned(),
        other => other.to_uppercase(),
    }
}

/// Names of the host's users, as `ps` on the host shows them.
struct Names(Vec<(u32, String)>);

impl Names {
    fn read() -> Self {
        let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    fn of(&self, uid: u32) -> String {
        let found = self.0.iter().find(|(u, _)| *u == uid);
        match found {
            Some((_, name)) if name.len() <= 8 => name.clone(),
            Some((_, name)) => format!("{}+", name.chars().take(7).collect::<String>()),
            None => uid.to_string(),
        }
    }
}

struct Machine {
    /// Seconds since 1970.
    booted: i64,
    now: i64,
    memory: u64,
}

impl Machine {
    fn read(memory: u64) -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = text
            .lines()
            .find_map(|l| l.strip_prefix("btime "))
            .and_then(|t| t.trim().parse().ok());
        Self {
            booted: booted.unwrap_or(0),
            now: Timestamp::now().as_second(),
            memory,
        }
    }
}

struct Process {
    pid: i32,
    ppid: i64,
    uid: u32,
    state: String,
    nice: i64,
    tty: i64,
    session: i64,
    threads: i64,
    foreground: i64,
    group: i64,
    ticks: u64,
    start: u64,
    vsz: u64,
    rss: u64,
    name: String,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let name = stat.get(open + 1..close)?.to_owned();
        let fields: Vec<&str> = stat.get(close + 1..)?.split_whitespace().collect();
        // Numbered as in proc(5), where the state is field 3.
        let number = |n: usize| fields.get(n - 3)?.parse::<i64>().ok();
        let positive = |n: usize| u64::try_from(number(n)?).ok();
        let uid = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command)
            .trim_end_matches('\0')
            .replace(['\0', '\n', '\t'], " ");
        Some(Self {
            pid,
            ppid: number(4)?,
            uid,
            state: (*fields.first()?).to_owned(),
            nice: number(19)?,
            tty: number(7)?,
            session: number(6)?,
            threads: number(20)?,
            foreground: number(8)?,
            group: number(5)?,
            ticks: positive(14)? + positive(15)?,
            start: positive(22)?,
            vsz: positive(23)? / 1024,
            rss: positive(24)? * 4,
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command
            },
            name,
        })
    }

    fn started(&self, machine: &Machine) -> i64 {
        machine.booted + i64::try_from(self.start / TICKS).unwrap_or(0)
    }

    fn age(&self, machine: &Machine) -> i64 {
        (machine.now - self.started(machine)).max(0)
    }

    fn cpu_percent(&self, machine: &Machine) -> f64 {
        let age = self.age(machine).max(1);
        #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
        let share = (self.ticks as f64 / TICKS as f64) / age as f64;
        share * 100.0
    }
}

fn cell(column: &str, p: &Process, names: &Names, machine: &Machine) -> String {
    let clock = |format: &str| {
        Timestamp::from_second(p.started(machine)).map_or_else(
            |_| "?".to_owned(),
            |t| t.to_zoned(TimeZone::system()).strftime(format).to_string(),
        )
    };
    let seconds = p.ticks / TICKS;
    match column {
        "uid" | "user" => names.of(p.uid),
        "pid" => p.pid.to_string(),
        "ppid" => p.ppid.to_string(),
        "c" => format!("{:.0}", p.cpu_percent(machine).trunc()),
        "stime" | "start" if p.age(machine) < DAY => clock("%H:%M"),
        "stime" | "start" => clock("%b%d"),
        "tty" | "tt" => tty(p.tty),
        "time" if column == "time" => format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        "cmd" | "args" | "command" => p.command.clone(),
        "comm" => p.name.clone(),
        "%cpu" | "pcpu" => format!("{:.1}", p.cpu_percent(machine)),
        "%mem" | "pmem" => {
            let kib = (machine.memory / 1024).max(1);
            #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
            let share = p.rss as f64 / kib as f64;
            format!("{:.1}", share * 100.0)
        }
        "vsz" => p.vsz.to_string(),
        "rss" => p.rss.to_string(),
        "ni" => p.nice.to_string(),
        "etime" => {
            let age = p.age(machine);
            match age / 3600 {
                0 => format!("{:02}:{:02}", age / 60, age % 60),
                hours => format!("{hours:02}:{:02}:{:02}", age / 60 % 60, age % 60),
            }
        }
        _ => stat_text(p),
    }
}

fn stat_text(p: &Process) -> String {
    let mut text = p.state.clone();
    for (mark, holds) in [
        ("<", p.nice < 0),
        ("N", p.nice > 0),
        ("s", p.session == i64::from(p.pid)),
        ("l", p.threads > 1),
        ("+", p.foreground == p.group),
    ] {
        if holds {
            text.push_str(mark);
        }
    }
    text
}

/// Name of a controlling terminal: pseudo-terminals have the majors 136 to 143.
fn tty(device: i64) -> String {
    let (major, minor) = (
        device >> 8 & 0xfff,
        (device & 0xff) | (device >> 12 & 0xfff00),
    );
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_and_options() {
        let me = Process::read(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!me.command.is_empty() && me.rss > 0);
        let list = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            columns(&words).ok()
        };
        assert_eq!(list(&[]).unwrap().len(), 8);
        assert_eq!(list(&["aux"]).unwrap().len(), 11);
        assert_eq!(list(&["-o", "pid,cmd"]).unwrap(), ["pid", "cmd"]);
        assert_eq!(list(&["-eopid,comm"]), None);
        assert_eq!(list(&["-opid,comm"]).unwrap(), ["pid", "comm"]);
        assert!(list(&["-o", "cmd"]).is_none() && list(&["--forest"]).is_none());
        assert_eq!(tty(136 << 8 | 3), "pts/3");
        assert_eq!(tty(0), "?");
    }
}
