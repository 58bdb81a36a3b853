//! Docker's description of a healthcheck, as it stands in images and containers.

use serde::{Deserialize, Serialize};

use crate::null::null_default;

const SECOND: i64 = 1_000_000_000;
/// Shortest time that may be asked for.
const SHORTEST_NS: i64 = 1_000_000;
const RETRIES: u32 = 3;

/// How the health of a container is found out. Times are nanoseconds; 0 stands for Docker's
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `CMD` and arguments, `CMD-SHELL` and a line for a shell, `NONE`; empty: as the image says.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub test: Vec<String>,
    /// Time between two checks.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    pub interval: i64,
    /// Longest that a check may take.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    pub timeout: i64,
    /// Time after the start in which failures do not count.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    pub start_period: i64,
    /// Time between two checks while the container starts.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    pub start_interval: i64,
    /// Failures in a row that make a container unhealthy.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    pub retries: i64,
}

/// What a check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthTest<'a> {
    /// A program and its arguments.
    Command(&'a [String]),
    /// A line for a shell.
    Shell(&'a str),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn or(value: i64, default: i64) -> u64 {
    u64::try_from(if value == 0 { default } else { value }).unwrap_or(0)
}

impl Healthcheck {
    /// Returns what is run; `None` when nothing is checked.
    #[must_use]
    pub fn command(&self) -> Option<HealthTest<'_>> {
        let (kind, rest) = self.test.split_first()?;
        match (kind.as_str(), rest) {
            ("CMD", [_, ..]) => Some(HealthTest::Command(rest)),
            ("CMD-SHELL", [line, ..]) => Some(HealthTest::Shell(line)),
            _ => None,
        }
    }

    /// Returns the time between two checks, nanoseconds.
    #[must_use]
    pub fn interval_ns(&self) -> u64 {
        or(self.interval, 30 * SECOND)
    }

    /// Returns the longest that a check may take, nanoseconds.
    #[must_use]
    pub fn timeout_ns(&self) -> u64 {
        or(self.timeout, 30 * SECOND)
    }

    /// Returns the time after the start in which failures do not count, nanoseconds.
    #[must_use]
    pub fn start_period_ns(&self) -> u64 {
        or(self.start_period, 0)
    }

    /// Returns the time between two checks while the container starts, nanoseconds.
    #[must_use]
    pub fn start_interval_ns(&self) -> u64 {
        or(self.start_interval, 5 * SECOND)
    }

    /// Returns how many failures in a row make a container unhealthy.
    #[must_use]
    pub fn retries_wanted(&self) -> u32 {
        u32::try_from(self.retries)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(RETRIES)
    }

    /// Takes over from an image what is not said here.
    #[must_use]
    pub fn over(mut self, image: &Self) -> Self {
        if self.test.is_empty() {
            self.test.clone_from(&image.test);
        }
        for (own, theirs) in [
            (&mut self.interval, image.interval),
            (&mut self.timeout, image.timeout),
            (&mut self.start_period, image.start_period),
            (&mut self.start_interval, image.start_interval),
            (&mut self.retries, image.retries),
        ] {
            if *own == 0 {
                *own = theirs;
            }
        }
        self
    }

    /// Brings an image's numbers within bounds, so that the image runs all the same.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for time in [
            &mut self.interval,
            &mut self.timeout,
            &mut self.start_period,
            &mut self.start_interval,
        ] {
            *time = match *time {
                ..=0 => 0,
                short => short.max(SHORTEST_NS),
            };
        }
        self.retries = self.retries.max(0);
        self
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Docker's words for the first that is out of bounds.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("Interval", self.interval),
            ("Timeout", self.timeout),
            ("StartPeriod", self.start_period),
            ("StartInterval", self.start_interval),
        ] {
            if value != 0 && value < SHORTEST_NS {
                return Err(format!("{name} in Healthcheck cannot be less than 1ms"));
            }
        }
        if self.retries < 0 {
            return Err("Retries in Healthcheck cannot be negative".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Healthcheck {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn forms_and_defaults_are_docker_s() {
        let check = of(r#"{"Test":["CMD","a","b"],"Interval":0}"#);
        let words = ["a".to_owned(), "b".to_owned()];
        assert_eq!(check.command(), Some(HealthTest::Command(&words)));
        assert_eq!(check.interval_ns(), 30_000_000_000);
        assert_eq!(check.timeout_ns(), 30_000_000_000);
        assert_eq!(check.start_period_ns(), 0);
        assert_eq!(check.start_interval_ns(), 5_000_000_000);
        assert_eq!(check.retries_wanted(), 3);
        let shell = of(r#"{"Test":["CMD-SHELL","a b"],"Timeout":5,"Retries":7}"#);
        assert_eq!(shell.command(), Some(HealthTest::Shell("a b")));
        assert_eq!((shell.timeout_ns(), shell.retries_wanted()), (5, 7));
        for none in [r#"{"Test":["NONE"]}"#, r#"{"Test":null}"#, "{}"] {
            assert_eq!(of(none).command(), None, "{none}");
        }
        let text = serde_json::to_string(&of(r#"{"Test":["NONE"]}"#)).unwrap();
        assert_eq!(text, r#"{"Test":["NONE"]}"#);
    }

    #[test]
    fn an_image_fills_what_is_not_said() {
        let image = of(r#"{"Test":["CMD","a"],"Interval":7000000,"Retries":2}"#);
        let own = of(r#"{"Interval":5000000}"#).over(&image);
        assert_eq!(own.test, ["CMD", "a"]);
        assert_eq!((own.interval, own.retries), (5_000_000, 2));
        assert!(own.check().is_ok());
        let short = of(r#"{"StartPeriod":999999}"#).check().unwrap_err();
        assert_eq!(short, "StartPeriod in Healthcheck cannot be less than 1ms");
        assert!(of(r#"{"Retries":-1}"#).check().is_err());
    }

    #[test]
    fn an_image_s_numbers_are_brought_within_bounds() {
        let image = of(r#"{"Interval":null,"Timeout":1,"StartPeriod":-5,"Retries":-1}"#);
        assert!(image.check().is_err());
        let bounded = image.bounded();
        assert!(bounded.check().is_ok());
        assert_eq!((bounded.interval, bounded.timeout), (0, 1_000_000));
        assert_eq!((bounded.start_period, bounded.retries), (0, 0));
        assert_eq!(of(r#"{"Retries":null,"StartInterval":null}"#), of("{}"));
    }
}
