//! Wall-clock time as nanoseconds since 1970, and its text form.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970-01-01 UTC, 0 when the clock stands before that.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NANOS)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Nanoseconds of a clock that is never set.
pub(crate) fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NANOS)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

pub(crate) const NANOS: u64 = 1_000_000_000;

/// Room for the longest text of [`rfc3339`].
pub(crate) const TEXT_LEN: usize = 30;

/// Writes `2026-01-02T03:04:05.678901234Z`, trailing zeroes of the fraction left out, as Go's
/// `RFC3339Nano` does; returns the length.
pub(crate) fn rfc3339(nanos: u64, out: &mut [u8; TEXT_LEN]) -> usize {
    let seconds = nanos / NANOS;
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    *out = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut out[0..4], year);
    digits(&mut out[5..7], month);
    digits(&mut out[8..10], day);
    digits(&mut out[11..13], of_day / 3600);
    digits(&mut out[14..16], of_day / 60 % 60);
    digits(&mut out[17..19], of_day % 60);
    digits(&mut out[20..29], nanos % NANOS);
    let mut end = 29;
    while end > 20 && out[end - 1] == b'0' {
        end -= 1;
    }
    if end == 20 {
        end = 19;
    }
    out[end] = b'Z';
    end + 1
}

/// [`rfc3339`] as a string.
pub(crate) fn text(nanos: u64) -> String {
    let mut out = [0; TEXT_LEN];
    let len = rfc3339(nanos, &mut out);
    String::from_utf8_lossy(&out[..len]).into_owned()
}

fn digits(out: &mut [u8], mut value: u64) {
    for place in out.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// The proleptic Gregorian date of a day since 1970-01-01 (years counted from March, in eras of
/// 400 years).
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(
            text(951_782_400 * NANOS + 120),
            "2000-02-29T00:00:00.00000012Z"
        );
        assert_eq!(
            text(1_767_225_599 * NANOS + 999_999_999),
            "2025-12-31T23:59:59.999999999Z"
        );
        assert_eq!(
            text(1_767_225_600 * NANOS + 500_000_000),
            "2026-01-01T00:00:00.5Z"
        );
    }
}
