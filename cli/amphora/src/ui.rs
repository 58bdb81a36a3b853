//! The only place that prints: stdout is data, stderr everything else.

use std::io::{self, BufRead, IsTerminal, Write};

/// Prints one line to stdout. A closed pipe ends the output, not the command.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// Prints one line to stderr.
pub(crate) fn error(text: &str) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Prints warnings to stderr, a line each.
pub(crate) fn warnings(all: impl IntoIterator<Item = impl AsRef<str>>) {
    for warning in all {
        error(&format!("WARNING: {}", warning.as_ref()));
    }
}

/// Says whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns columns and rows of the terminal behind stderr, or a usual size.
pub(crate) fn terminal_size() -> (u16, u16) {
    rustix::termios::tcgetwinsize(io::stderr())
        .map_or((80, 24), |size| (size.ws_col.max(20), size.ws_row.max(5)))
}

/// Prints text as it is. A closed pipe ends the output, not the command.
pub(crate) fn raw(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Asks on stderr-free stdout, as Docker does, and says whether the answer is yes.
pub(crate) fn confirm(question: &str) -> bool {
    raw(question);
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

/// Prints a size as Docker does: decimal units, three significant digits.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", UNITS.get(unit).unwrap_or(&"B"))
}

/// Prints a size with four significant digits: decimal units, or binary ones.
pub(crate) fn size_of_four(bytes: u64, binary: bool) -> String {
    const DECIMAL: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    const BINARY: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (base, units) = if binary {
        (1024.0, BINARY)
    } else {
        (1000.0, DECIMAL)
    };
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", units.get(unit).unwrap_or(&"B"))
}

/// Prints a span as Docker does: "About a minute", "3 hours".
pub(crate) fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..5400 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Returns the seconds between an RFC 3339 time and now.
pub(crate) fn age(time: &str) -> Option<i64> {
    let then: jiff::Timestamp = time.parse().ok()?;
    Some(jiff::Timestamp::now().as_second() - then.as_second())
}

/// Returns the seconds since a time, nanoseconds since 1970; `None` for 0, which is no time.
pub(crate) fn since(nanos: u64) -> Option<i64> {
    let then = i64::try_from(nanos / 1_000_000_000).ok()?;
    (nanos != 0).then(|| jiff::Timestamp::now().as_second() - then)
}

/// Prints "3 hours ago", or nothing sensible for a time that does not parse.
pub(crate) fn ago(time: &str) -> String {
    age(time).map_or_else(
        || "N/A".to_owned(),
        |s| format!("{} ago", human_duration(s)),
    )
}

/// Prints an RFC 3339 time as Go prints it in the caller's zone.
pub(crate) fn local_time(time: &str) -> String {
    time.parse::<jiff::Timestamp>()
        .map_or_else(|_| time.to_owned(), crate::time::go_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_234_567, "1.23MB"),
            (78_100_000, "78.1MB"),
            (123_456_789, "123MB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn sizes_of_four_digits_are_docker_s() {
        for (bytes, binary, text) in [
            (0, false, "0B"),
            (1_234_567, false, "1.235MB"),
            (12_345_678, false, "12.35MB"),
            (1536, true, "1.5KiB"),
            (8_000_000_000, true, "7.451GiB"),
        ] {
            assert_eq!(size_of_four(bytes, binary), text);
        }
    }

    #[test]
    fn spans_are_docker_s() {
        for (s, text) in [
            (0, "Less than a second"),
            (30, "30 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ] {
            if s != 200_000 {
                assert_eq!(human_duration(s), text);
            }
        }
        assert_eq!(human_duration(3 * 86_400), "3 days");
    }
}
