//! Durations as Go writes them: `1h30m`, `1.5s`, `100ms`.

/// Parses a duration into nanoseconds.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    let (mut rest, mut total) = (text, 0.0);
    if text == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        rest = next;
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked range")]
    (!text.is_empty() && total < 9e18).then_some(total as i64)
}

/// Writes nanoseconds as Go prints a duration.
#[must_use]
pub fn text(nanos: u64) -> String {
    let fraction = |value: u64, unit: u64| {
        let digits = unit.to_string().len().saturating_sub(1);
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (nanos, written) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (200_000_000, "200ms"),
            (1_000_000_000, "1s"),
            (1_050_000_000, "1.05s"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(text(nanos), written);
            assert_eq!(parse(written), i64::try_from(nanos).ok(), "{written}");
        }
        for none in ["", "1", "s", "1x", "1s2", "-1s"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
