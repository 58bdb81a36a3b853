//! Times as Docker's flags take them and as Go prints them.

use jiff::{Timestamp, Zoned, tz::TimeZone};

/// Parses a time; `None` when it is none of the forms.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    Timestamp::from_nanosecond(crate::parse::moment(text.trim())?).ok()
}

/// Writes a time as Go's `time.Time` prints itself in the caller's zone:
/// `2024-01-02 15:04:05 +0000 UTC`.
pub(crate) fn go_text(time: Timestamp) -> String {
    let zoned: Zoned = time.to_zoned(TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// Writes a time as Go's RFC3339Nano with nine digits in the caller's zone.
pub(crate) fn nano_text(time: Timestamp) -> String {
    let zoned: Zoned = time.to_zoned(TimeZone::system());
    let offset = zoned.offset();
    if offset.seconds() == 0 {
        return zoned.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
    }
    zoned.strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(
            parse("1700000000").map(|t| t.as_second()),
            Some(1_700_000_000)
        );
        assert_eq!(
            parse("1700000000.5").map(|t| t.as_nanosecond()),
            Some(1_700_000_000_500_000_000)
        );
        let fixed = parse("2024-01-02T03:04:05Z").map(|t| t.as_second());
        assert_eq!(fixed, Some(1_704_164_645));
        assert!(parse("2024-01-02").is_some() && parse("2024-01-02T03:04").is_some());
        let hour = Timestamp::now().as_second() - parse("1h").map_or(0, |t| t.as_second());
        assert!((3599..=3601).contains(&hour), "{hour}");
        assert!(parse("1h30m").is_some() && parse("soon").is_none() && parse("").is_none());
    }
}
