//! The layers of one pull: downloaded, inflated, unpacked and verified in one pass, several at a
//! time.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

use amphora_content::compress::read_ahead;
use amphora_content::{ContentError, Ingest, Store};
use amphora_snapshot::{BlobLayer, Layers, Limits, SnapshotError, decompress};
use amphora_spec::media::Compression;
use amphora_spec::{Classify, Digest, ErrorKind};
use sha2::{Digest as _, Sha256};

use crate::blob::Download;
use crate::error::Result;
use crate::http::{Http, Repo};
use crate::pipe::{CHUNK_BYTES, PipeReader, PipeWriter, pipe};
use crate::{DistributionError, Progress, PullEvent};

/// Layers in flight, each with its own connection.
pub(crate) const MAX_LAYERS_IN_FLIGHT: usize = 4;
/// Tries for a layer whose earlier, interrupted download left bytes that turn out wrong.
const TRIES_AFTER_RESUME: usize = 2;

/// One layer to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) blob: Digest,
    pub(crate) size: u64,
    /// Digest of the plain tar, for layers that are unpacked.
    pub(crate) diff_id: Option<(Digest, Compression)>,
}

/// Where layers come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) http: &'a Http,
    pub(crate) repo: &'a Repo,
    pub(crate) store: &'a Store,
    pub(crate) layers: &'a Layers,
    pub(crate) progress: &'a dyn Progress,
}

/// What goes on with one layer.
struct Flight<'a> {
    site: Site<'a>,
    job: &'a Job,
    id: String,
    /// Another layer failed.
    stop: &'a AtomicBool,
    /// This layer's unpacking failed.
    spoilt: AtomicBool,
    /// It failed by itself, not because its stream ended badly.
    guilty: AtomicBool,
    /// All bytes are here; what is reported now is the unpacking.
    downloaded: AtomicBool,
}

impl Site<'_> {
    /// Returns the layers that are not here as blob and, if they are to be unpacked, unpacked.
    pub(crate) fn missing<'j>(&self, jobs: &'j [Job]) -> Result<Vec<&'j Job>> {
        let mut missing = Vec::new();
        for job in jobs {
            let unpacked = job
                .diff_id
                .is_none_or(|(diff_id, _)| self.layers.has(&diff_id));
            if !unpacked || self.store.has(&job.blob)? != Some(job.size) {
                missing.push(job);
            }
        }
        Ok(missing)
    }

    /// Gets all missing layers. The first failure stops the others.
    pub(crate) fn fetch(&self, missing: &[&Job]) -> Result<()> {
        for job in missing.iter().skip(MAX_LAYERS_IN_FLIGHT) {
            self.progress.event(&job.blob.short(), PullEvent::Waiting);
        }
        let queue = Mutex::new(missing.iter().copied().collect::<VecDeque<_>>());
        let failure = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let fail = |error: DistributionError| {
            let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
            stop.store(true, Ordering::Relaxed);
            first.get_or_insert(error);
        };
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(job) = next else { break };
                if let Err(error) = self.fetch_one(job, &stop) {
                    fail(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..missing.len().min(MAX_LAYERS_IN_FLIGHT) {
                if let Err(error) = spawn(scope, "download", work) {
                    fail(error);
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn fetch_one(&self, job: &Job, stop: &AtomicBool) -> Result<()> {
        for attempt in 1.. {
            let flight = Flight::new(*self, job, stop);
            let ingest = self.store.ingest(&job.blob, job.size)?;
            if ingest.is_present() {
                let Err(error) = flight.unpack_stored() else {
                    break;
                };
                // One that rotted in the store goes, and comes anew.
                if !is_bad_data(&error) || !self.store.remove_damaged(&job.blob)? {
                    return Err(error);
                }
                continue;
            }
            let resumed = ingest.offset() > 0;
            match flight.transfer(ingest) {
                // The bytes of the earlier download were bad: they are gone now.
                Err(error) if resumed && attempt < TRIES_AFTER_RESUME && is_bad_data(&error) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        self.progress
            .event(&job.blob.short(), PullEvent::PullComplete);
        Ok(())
    }
}

/// Says whether the bytes of a layer are to blame.
fn is_bad_data(error: &DistributionError) -> bool {
    match error {
        DistributionError::WrongDigest { .. } => true,
        DistributionError::Unpack { .. } | DistributionError::ReadLayer { .. } => {
            error.kind() != ErrorKind::ResourceExhausted
        }
        _ => false,
    }
}

impl<'a> Flight<'a> {
    fn new(site: Site<'a>, job: &'a Job, stop: &'a AtomicBool) -> Self {
        Self {
            site,
            job,
            id: job.blob.short(),
            stop,
            spoilt: AtomicBool::new(false),
            guilty: AtomicBool::new(false),
            downloaded: AtomicBool::new(false),
        }
    }

    fn report(&self, event: PullEvent) {
        self.site.progress.event(&self.id, event);
    }

    /// Unpacks a blob that the store holds already.
    fn unpack_stored(&self) -> Result<()> {
        self.report(PullEvent::DownloadComplete);
        let Some((diff_id, label)) = &self.job.diff_id else {
            return Ok(());
        };
        self.report(PullEvent::Extracting {
            current: 0,
            total: self.job.size,
        });
        let layer = BlobLayer {
            blob: &self.job.blob,
            label: *label,
            diff_id,
        };
        self.site
            .layers
            .unpack_blob(self.site.store, layer, &Limits::default())
            .map(drop)
            .map_err(|e| self.unpack_error(e))
    }

    /// Downloads the blob and, beside it, unpacks it. Neither becomes visible before both digests
    /// are right: the blob's is checked before the unpacker sees the end of its stream, the
    /// tar's before the blob is committed.
    fn transfer(&self, mut ingest: Ingest) -> Result<()> {
        let (fed, unpacked) = thread::scope(|scope| {
            let Some((diff_id, label)) = self.job.diff_id else {
                return (self.feed(&mut ingest, None), Ok(()));
            };
            let (writer, reader) = pipe();
            let unpacker = spawn(scope, "unpack", move || {
                let result = self.unpack(&diff_id, label, reader);
                if result.is_err() {
                    self.spoilt.store(true, Ordering::Relaxed);
                }
                result
            });
            let unpacker = match unpacker {
                Ok(unpacker) => unpacker,
                Err(error) => return (Err(error), Ok(())),
            };
            let fed = self.feed(&mut ingest, Some(writer));
            let unpacked = unpacker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (fed, unpacked)
        });
        let guilty = self.guilty.load(Ordering::Relaxed);
        match (fed, unpacked) {
            (Ok(()), Ok(())) => Ok(ingest.commit()?),
            (Ok(()), Err(error)) => {
                ingest.discard();
                Err(error)
            }
            (Err(DistributionError::Stopped(_)), Err(error)) if guilty => {
                ingest.discard();
                Err(error)
            }
            (Err(error), _) => {
                // What is cut stays for the next pull; what is wrong or empty does not.
                if ingest.offset() == 0 || matches!(error, DistributionError::WrongSize { .. }) {
                    ingest.discard();
                }
                Err(error)
            }
        }
    }

    /// Writes the bytes to the ingest and the pipe, and verifies them.
    fn feed(&self, ingest: &mut Ingest, writer: Option<PipeWriter>) -> Result<()> {
        let total = self.job.size;
        if let Some(writer) = &writer {
            self.replay(ingest, writer)?;
        }
        let heard = |current| self.report(PullEvent::Downloading { current, total });
        heard(ingest.offset());
        let download = Download {
            http: self.site.http,
            repo: self.site.repo,
            digest: self.job.blob,
            size: total,
            stop: &[self.stop, &self.spoilt],
            heard: &heard,
        };
        if let Err(error) = download.run(ingest, writer.as_ref()) {
            // The writer still lives: the unpacker cannot have failed because of us.
            self.guilty
                .store(self.spoilt.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(error);
        }
        self.report(PullEvent::VerifyingChecksum);
        ingest.verify().map_err(|error| match error {
            ContentError::DigestMismatch { expected, actual } => DistributionError::WrongDigest {
                what: "layer",
                digest: expected,
                found: actual,
            },
            other => other.into(),
        })?;
        self.report(PullEvent::DownloadComplete);
        self.downloaded.store(true, Ordering::Relaxed);
        if let Some(writer) = writer {
            writer.verified();
        }
        Ok(())
    }

    /// Feeds the unpacker what an earlier pull has downloaded.
    fn replay(&self, ingest: &Ingest, writer: &PipeWriter) -> Result<()> {
        if ingest.offset() == 0 {
            return Ok(());
        }
        let mut partial = ingest.partial()?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let failed = |source| DistributionError::ReadLayer {
                digest: self.job.blob,
                source,
            };
            let n = partial.read(&mut buffer).map_err(failed)?;
            if n == 0 || self.spoilt.load(Ordering::Relaxed) {
                return Ok(());
            }
            writer.send(buffer.get(..n).unwrap_or_default());
        }
    }

    fn unpack(&self, diff_id: &Digest, label: Compression, reader: PipeReader) -> Result<()> {
        let key = reader.key();
        let seen = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: reader,
            seen: Arc::clone(&seen),
        };
        let plain = decompress(label, counted).map_err(|source| DistributionError::ReadLayer {
            digest: self.job.blob,
            source,
        })?;
        let gate = key.gate(read_ahead(plain));
        let mut watched = Watched {
            inner: gate,
            seen,
            told: 0,
            flight: self,
        };
        if self.site.layers.has(diff_id) {
            return self.verify_plain(diff_id, &mut watched);
        }
        let unpacked = self
            .site
            .layers
            .unpack(diff_id, watched, &Limits::default());
        unpacked.map(drop).map_err(|e| self.unpack_error(e))
    }

    /// The layer is unpacked already, only its blob is missing: it must be the same layer.
    fn verify_plain(&self, diff_id: &Digest, plain: &mut dyn Read) -> Result<()> {
        let failed = |source| DistributionError::ReadLayer {
            digest: self.job.blob,
            source,
        };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match plain.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hash.update(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let actual = Digest::from_sha256(hash.finalize().into());
        if actual != *diff_id {
            let expected = *diff_id;
            return Err(self.unpack_error(SnapshotError::DiffId { expected, actual }));
        }
        Ok(())
    }

    fn unpack_error(&self, source: SnapshotError) -> DistributionError {
        DistributionError::Unpack {
            digest: self.job.blob,
            source,
        }
    }
}

/// Counts the compressed bytes that the unpacker has taken.
struct Counted<R> {
    inner: R,
    seen: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.seen.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Reports the unpacking once the download is over.
struct Watched<'a, R> {
    inner: R,
    seen: Arc<AtomicU64>,
    told: u64,
    flight: &'a Flight<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let current = self.seen.load(Ordering::Relaxed);
        if current != self.told && self.flight.downloaded.load(Ordering::Relaxed) {
            self.told = current;
            self.flight.report(PullEvent::Extracting {
                current,
                total: self.flight.job.size,
            });
        }
        self.inner.read(out)
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder
        .spawn_scoped(scope, work)
        .map_err(DistributionError::Thread)
}
