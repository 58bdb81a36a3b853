//! Blobs: one download, resumed as often as it brings something new.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amphora_content::Ingest;
use amphora_spec::Digest;
use ureq::http::{HeaderMap, StatusCode};

use crate::error::Result;
use crate::http::{self, Ask, Http, Method, Repo};
use crate::pipe::{CHUNK_BYTES, PipeWriter};
use crate::{DistributionError, TransportError};

/// An attempt that brings at least so much counts as progress: patience starts anew.
const MIN_PROGRESS_BYTES: u64 = 256 << 10;
/// Slice of a pause after which a stopped pull is noticed.
const PAUSE_SLICE: Duration = Duration::from_millis(50);

/// One blob of one pull.
pub(crate) struct Download<'a> {
    pub(crate) http: &'a Http,
    pub(crate) repo: &'a Repo,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Another layer failed, or this one's unpacking did.
    pub(crate) stop: &'a [&'a AtomicBool],
    /// Hears of every byte count reached.
    pub(crate) heard: &'a (dyn Fn(u64) + Sync),
}

/// Why one attempt ended.
enum Cut {
    /// Nothing will make it better.
    Fatal(DistributionError),
    /// Another attempt may help, after the pause the registry asked for.
    Retry(DistributionError, Option<Duration>),
    /// The registry answered well and its answer ended too early.
    Short(DistributionError),
}

impl From<DistributionError> for Box<Cut> {
    fn from(error: DistributionError) -> Self {
        Self::new(if http::is_transient(&error) {
            Cut::Retry(error, None)
        } else {
            Cut::Fatal(error)
        })
    }
}

impl Download<'_> {
    /// Downloads what is missing into `ingest` and copies it to `pipe`.
    pub(crate) fn run(&self, ingest: &mut Ingest, pipe: Option<&PipeWriter>) -> Result<()> {
        let policy = &self.http.config.retry;
        let (mut failures, mut short) = (0, 0);
        while ingest.offset() < self.size {
            let before = ingest.offset();
            let outcome = self.attempt(ingest, pipe).map_err(|cut| *cut);
            let gained = ingest.offset().saturating_sub(before);
            short = if gained == 0 && matches!(outcome, Err(Cut::Short(_))) {
                short + 1
            } else {
                0
            };
            let (error, asked) = match outcome {
                Ok(()) => continue,
                Err(Cut::Fatal(error)) => return Err(error),
                Err(Cut::Short(error)) => (error, None),
                Err(Cut::Retry(error, asked)) => (error, asked),
            };
            if gained >= MIN_PROGRESS_BYTES {
                failures = 0;
            }
            failures += 1;
            if failures >= policy.attempts {
                // Nothing but ends at the same byte: the registry has no more of this blob.
                let truncated = short > 0 && short + 1 >= policy.attempts;
                return Err(if truncated {
                    self.wrong_size(ingest.offset())
                } else {
                    error
                });
            }
            self.pause(policy.pause(failures, asked))?;
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return Err(DistributionError::Stopped(self.digest));
        }
        Ok(())
    }

    fn pause(&self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        loop {
            self.check_stop()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(PAUSE_SLICE));
        }
    }

    fn wrong_size(&self, found: u64) -> DistributionError {
        let (digest, expected) = (self.digest, self.size);
        DistributionError::WrongSize {
            what: "layer",
            digest,
            expected,
            found,
        }
    }

    /// Sends one request and reads its answer as far as it goes.
    fn attempt(&self, ingest: &mut Ingest, pipe: Option<&PipeWriter>) -> Result<(), Box<Cut>> {
        let from = ingest.offset();
        let url = self.repo.url("blobs", &self.digest.to_string());
        let ask = Ask {
            method: Method::Get,
            url: &url,
            accept: "*/*",
            from,
        };
        let response = self.http.send(self.repo, ask)?;
        let (status, headers) = (response.status(), response.headers());
        let length = http::header_text(headers, "content-length").and_then(|l| l.parse().ok());
        let skip = match status.as_u16() {
            // A server that cannot resume sends everything again.
            200 => match length {
                Some(length) if length != self.size => {
                    return Err(Cut::Fatal(self.wrong_size(length)).into());
                }
                _ => from,
            },
            206 => {
                self.check_range(ask, headers, from)?;
                0
            }
            416 => return Err(self.beyond_the_end(ask, headers, from).into()),
            _ => return Err(self.refused(ask, response).into()),
        };
        let mut body = response.into_body().into_reader();
        self.copy(ask, &mut body, ingest, pipe, skip)
    }

    fn check_range(&self, ask: Ask<'_>, headers: &HeaderMap, from: u64) -> Result<(), Box<Cut>> {
        let text = http::header_text(headers, "content-range").unwrap_or("");
        let (start, total) = content_range(text);
        if let Some(total) = total.filter(|total| *total != self.size) {
            return Err(Cut::Fatal(self.wrong_size(total)).into());
        }
        if start != Some(from) {
            let text = format!("asked for bytes from {from}, got \"{}\"", http::quote(text));
            return Err(Cut::Retry(self.broken(ask, text), None).into());
        }
        Ok(())
    }

    fn beyond_the_end(&self, ask: Ask<'_>, headers: &HeaderMap, from: u64) -> Cut {
        let text = http::header_text(headers, "content-range").unwrap_or("");
        match content_range(text).1 {
            Some(total) if total == self.size => {
                Cut::Retry(self.broken(ask, format!("range from {from} refused")), None)
            }
            total => Cut::Fatal(self.wrong_size(total.unwrap_or(from))),
        }
    }

    fn broken(&self, ask: Ask<'_>, text: String) -> DistributionError {
        let url = ask.url.to_owned();
        DistributionError::Request {
            method: "Get",
            url,
            source: TransportError::Broken(text),
        }
    }

    fn refused(&self, ask: Ask<'_>, response: ureq::http::Response<ureq::Body>) -> Cut {
        let status = response.status();
        if http::is_overload(status) {
            let asked = http::retry_after(response.headers());
            return Cut::Retry(http::unexpected(ask, response), asked);
        }
        Cut::Fatal(match status {
            StatusCode::NOT_FOUND => DistributionError::BlobUnknown {
                digest: self.digest,
                repository: self.repo.familiar.clone(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let logged_in = self.http.knows_credentials(self.repo);
                self.repo
                    .denied(http::denial(http::problem(response), logged_in))
            }
            _ => http::unexpected(ask, response),
        })
    }

    fn copy(
        &self,
        ask: Ask<'_>,
        body: &mut dyn Read,
        ingest: &mut Ingest,
        pipe: Option<&PipeWriter>,
        mut skip: u64,
    ) -> Result<(), Box<Cut>> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            self.check_stop()?;
            let n = match body.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => 0,
                Err(e) => return Err(Cut::Retry(http::broken(ask, &e), None).into()),
            };
            if n == 0 {
                break;
            }
            let skipped = usize::try_from(skip).map_or(n, |skip| skip.min(n));
            skip -= skipped as u64;
            let bytes = buffer.get(skipped..n).unwrap_or_default();
            let reached = ingest.offset() + bytes.len() as u64;
            if reached > self.size {
                return Err(Cut::Fatal(self.wrong_size(reached)).into());
            }
            ingest.put(bytes).map_err(|e| Cut::Fatal(e.into()))?;
            if let Some(pipe) = pipe {
                pipe.send(bytes);
            }
            (self.heard)(ingest.offset());
        }
        if ingest.offset() < self.size {
            let text = "unexpected end of answer".to_owned();
            return Err(Cut::Short(self.broken(ask, text)).into());
        }
        Ok(())
    }
}

/// Reads start and total of `bytes <start>-<end>/<total>` or `bytes */<total>`.
fn content_range(text: &str) -> (Option<u64>, Option<u64>) {
    let Some((range, total)) = text
        .trim()
        .strip_prefix("bytes")
        .and_then(|t| t.split_once('/'))
    else {
        return (None, None);
    };
    let start = range
        .split_once('-')
        .and_then(|(start, _)| start.trim().parse().ok());
    (start, total.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), (Some(5), Some(10)));
        assert_eq!(content_range("bytes 5-9/*"), (Some(5), None));
        assert_eq!(content_range("bytes */10"), (None, Some(10)));
        assert_eq!(content_range("lines 1-2/3"), (None, None));
        assert_eq!(content_range(""), (None, None));
    }
}
