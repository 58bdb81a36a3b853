//! Values of flags: sizes, CPUs, environment files, labels.

use std::collections::BTreeMap;

pub(crate) use amphora_spec::duration::parse as duration;

use crate::errors::{Failure, Outcome};

/// Parses a byte size: a number with an optional unit `b k m g t` (binary), as Docker's `-m`.
pub(crate) fn size(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..)? {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.checked_mul(1 << shift).filter(|v| *v >= 0);
    }
    let value: f64 = digits.parse().ok()?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a fraction of a unit"
    )]
    (value.is_finite() && value >= 0.0).then(|| (value * (1i64 << shift) as f64) as i64)
}

/// Docker's words for a value that a flag does not take.
pub(crate) fn bad_flag(flag: &str, value: &str, why: &str) -> Failure {
    Failure::Usage(format!(
        "invalid argument \"{value}\" for \"{flag}\" flag: {why}"
    ))
}

/// Parses the value of a flag that takes a size.
pub(crate) fn size_flag(flag: &str, value: Option<&str>) -> Outcome<Option<i64>> {
    let parsed =
        |v: &str| size(v).ok_or_else(|| bad_flag(flag, v, &format!("invalid size: '{v}'")));
    value.map(parsed).transpose()
}

/// The same for a size that may be -1.
pub(crate) fn swap_flag(flag: &str, value: Option<&str>) -> Outcome<Option<i64>> {
    match value {
        Some("-1") => Ok(Some(-1)),
        other => size_flag(flag, other),
    }
}

/// Parses `--cpus` into billionths.
pub(crate) fn cpus(text: &str) -> Option<u64> {
    let value: f64 = text.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked range"
    )]
    (value.is_finite() && value > 0.0 && value < 1e6).then(|| (value * 1e9).round() as u64)
}

/// Parses a point in time, as nanoseconds since 1970: a duration before now (`1h30m`), a date with
/// or without a time (UTC unless it says otherwise), or seconds since 1970.
pub(crate) fn moment(text: &str) -> Option<i128> {
    const NANOS: i128 = 1_000_000_000;
    let now = jiff::Timestamp::now().as_nanosecond();
    if let Some(span) = duration(text) {
        return Some(now - i128::from(span));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_nanosecond());
    }
    if text.contains('-') {
        // Completed to a whole time.
        let whole = "0000-01-01T00:00:00Z";
        let bare = text.trim_end_matches('Z');
        let full = format!("{bare}{}", whole.get(bare.len()..)?);
        return full
            .parse::<jiff::Timestamp>()
            .ok()
            .map(jiff::Timestamp::as_nanosecond);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i128 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(seconds.parse::<i128>().ok()? * NANOS + nanos)
}

/// Completes `-e` values: `KEY` alone takes the caller's value and is dropped when there is none.
pub(crate) fn environment(values: Vec<String>, files: &[String]) -> Outcome<Vec<String>> {
    let mut out = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::Usage(format!("open {path}: {}", os_text(&e))))?;
        for raw in text.lines() {
            let line = raw.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.split('=').next().unwrap_or_default();
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(Failure::Usage(format!(
                    "invalid env file ({path}): variable '{key}' contains whitespaces"
                )));
            }
            out.extend(complete(line));
        }
    }
    for value in values {
        if value.starts_with('=') || value.is_empty() {
            return Err(Failure::Usage(format!(
                "invalid argument \"{value}\" for \"-e, --env\" flag: invalid environment variable: {value}"
            )));
        }
        out.extend(complete(&value));
    }
    Ok(out)
}

fn complete(line: &str) -> Option<String> {
    if line.contains('=') {
        return Some(line.to_owned());
    }
    std::env::var_os(line).map(|v| format!("{line}={}", v.to_string_lossy()))
}

/// Parses `key=value` pairs.
pub(crate) fn pairs(values: &[String]) -> BTreeMap<String, String> {
    values
        .iter()
        .map(|v| {
            v.split_once('=')
                .map_or((v.clone(), String::new()), |(k, v)| {
                    (k.to_owned(), v.to_owned())
                })
        })
        .collect()
}

/// Parses `--ulimit name=soft[:hard]`; the reason when it cannot.
pub(crate) fn ulimit(text: &str) -> Result<amphora_spec::runtime::Rlimit, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    if !amphora_spec::runtime::RLIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let limit = |v: &str| match v {
        "-1" | "unlimited" => Ok(u64::MAX),
        v => v
            .parse()
            .map_err(|_| format!("strconv.ParseInt: parsing \"{v}\": invalid syntax")),
    };
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    if soft > hard {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(amphora_spec::runtime::Rlimit {
        kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
        hard,
        soft,
    })
}

/// The system's words for an error, without Rust's "(os error 2)".
pub(crate) fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    plain.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("64m"), Some(64 << 20));
        assert_eq!(size("1.5g"), Some(3 << 29));
        assert_eq!(size("100"), Some(100));
        assert_eq!(size("1x"), None);
        assert_eq!(size("-1"), None);
        assert_eq!(size("9999999999t"), None);
    }

    #[test]
    fn cpu_counts_and_limits() {
        assert_eq!(cpus("0.5"), Some(500_000_000));
        assert_eq!(cpus("0"), None);
        assert_eq!(cpus("x"), None);
        assert_eq!(
            ulimit("nofile=1024:2048").ok().map(|u| (u.soft, u.hard)),
            Some((1024, 2048))
        );
        assert!(ulimit("nofile=9:1").is_err() && ulimit("bogus=1").is_err());
    }
}
