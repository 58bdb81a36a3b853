use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::LogDriver;

#[derive(serde::Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphora-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn logger(&self, max_size: u64, max_files: u32) -> Logger {
        let config = LogConfig {
            driver: LogDriver::JsonFile,
            max_size,
            max_files,
            ..LogConfig::default()
        };
        Logger::new(self.0.clone(), config).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.0.join("logs/json.log")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lines(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn lines_are_joined_across_reads_and_streams_kept_apart() {
    let dir = Dir::new("join");
    let mut log = dir.logger(0, 1);
    log.append(Stream::Stdout, b"one\ntw");
    log.append(Stream::Stderr, b"err");
    log.append(Stream::Stdout, b"o\n\nlast");
    log.finish();
    let lines = lines(&dir.file());
    let got: Vec<_> = lines
        .iter()
        .map(|l| (l.stream.as_str(), l.log.as_str()))
        .collect();
    let want = [
        ("stdout", "one\n"),
        ("stdout", "two\n"),
        ("stdout", "\n"),
        ("stdout", "last"),
        ("stderr", "err"),
    ];
    assert_eq!(got, want);
    assert!(
        lines
            .iter()
            .all(|l| l.time.ends_with('Z') && l.time.len() >= 20)
    );
}

#[test]
fn text_is_escaped_as_docker_does() {
    let mut out = [0; 256];
    let mut of = |text: &[u8]| {
        let n = escape(text, &mut out);
        String::from_utf8(out[..n].to_vec()).unwrap()
    };
    assert_eq!(
        of(b"a\"b\\c\t\r<&>"),
        "a\\\"b\\\\c\\u0009\\r\\u003c\\u0026\\u003e"
    );
    assert_eq!(of("é€\u{2028}\u{2029}𝄞".as_bytes()), "é€\\u2028\\u2029𝄞");
    assert_eq!(of(b"\xff\xe2\x80x\x00"), "\\ufffd\\ufffd\\ufffdx\\u0000");
}

#[test]
fn long_lines_are_cut_between_characters_and_lose_nothing() {
    let dir = Dir::new("long");
    let text = "aé€𝄞".repeat(9000);
    for step in [1_usize, 7, 4096, 50_000, 1 << 20] {
        let mut log = dir.logger(0, 1);
        for piece in text.as_bytes().chunks(step) {
            log.append(Stream::Stdout, piece);
        }
        log.append(Stream::Stdout, b"\n");
        let all: String = lines(&dir.file()).into_iter().map(|l| l.log).collect();
        assert!(all == format!("{text}\n"), "in steps of {step}");
        fs::remove_file(dir.file()).unwrap();
    }
}

#[test]
fn files_rotate_before_they_exceed_the_limit() {
    let dir = Dir::new("rotate");
    let mut log = dir.logger(4096, 3);
    for n in 0..300 {
        log.append(Stream::Stdout, format!("line {n}\n").as_bytes());
    }
    let names = ["json.log.2", "json.log.1", "json.log"];
    let mut kept = Vec::new();
    for name in names {
        let path = dir.0.join("logs").join(name);
        assert!(fs::metadata(&path).unwrap().len() <= 4096);
        kept.extend(lines(&path).into_iter().map(|l| l.log));
    }
    assert_eq!(fs::read_dir(dir.0.join("logs")).unwrap().count(), 3);
    let first = 300 - kept.len();
    assert!(first > 0);
    let want: Vec<_> = (first..300).map(|n| format!("line {n}\n")).collect();
    assert_eq!(kept, want);
}

#[test]
fn a_single_file_is_truncated_and_no_limit_never_rotates() {
    let dir = Dir::new("single");
    let mut log = dir.logger(1024, 1);
    for n in 0..100 {
        log.append(Stream::Stderr, format!("{n}\n").as_bytes());
    }
    assert_eq!(fs::read_dir(dir.0.join("logs")).unwrap().count(), 1);
    assert_eq!(lines(&dir.file()).last().unwrap().log, "99\n");
}

#[test]
fn a_torn_line_is_cut_off_by_the_next_supervisor() {
    let dir = Dir::new("torn");
    let mut log = dir.logger(0, 1);
    log.append(Stream::Stdout, b"whole\n");
    drop(log);
    let mut text = fs::read(dir.file()).unwrap();
    text.extend(b"{\"log\":\"to");
    fs::write(dir.file(), text).unwrap();
    let mut log = dir.logger(0, 1);
    log.append(Stream::Stdout, b"next\n");
    let got: Vec<_> = lines(&dir.file()).into_iter().map(|l| l.log).collect();
    assert_eq!(got, ["whole\n", "next\n"]);
}

#[test]
fn an_unwritable_log_counts_what_it_drops() {
    let dir = Dir::new("gone");
    let config = LogConfig::default();
    let mut log = Logger::new(dir.0.join("missing"), config).unwrap();
    log.append(Stream::Stdout, b"lost\n");
    assert!(log.dropped() > 5);
}
