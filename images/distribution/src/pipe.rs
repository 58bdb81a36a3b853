//! A bounded pipe in memory between the thread that downloads a layer and the one that unpacks
//! it. The reader sees the end only when the writer has verified the content.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of one chunk.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Chunks in flight; with the chunk size this bounds the memory of one layer.
pub(crate) const MAX_CHUNKS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Verified,
    Failed,
}

#[derive(Debug)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    end: End,
    /// The reader wants no more bytes; it may still wait for the end.
    sated: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end. Dropped without [`PipeWriter::verified`], the reader fails.
#[derive(Debug)]
pub(crate) struct PipeWriter(Arc<Shared>);

/// The reading end.
#[derive(Debug)]
pub(crate) struct PipeReader {
    shared: Arc<Shared>,
    current: Vec<u8>,
    at: usize,
}

/// Wraps what is read out of the pipe in the end (a decompressor): its end of data counts only
/// when the writer has verified the content.
pub(crate) struct Gate<R> {
    inner: R,
    shared: Arc<Shared>,
}

/// Makes a pipe.
pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let state = State {
        chunks: VecDeque::new(),
        spare: Vec::new(),
        end: End::Open,
        sated: false,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        changed: Condvar::new(),
    });
    (
        PipeWriter(Arc::clone(&shared)),
        PipeReader {
            shared,
            current: Vec::new(),
            at: 0,
        },
    )
}

impl PipeWriter {
    /// Appends bytes; waits while the pipe is full. A reader that wants no more is fine.
    pub(crate) fn send(&self, bytes: &[u8]) {
        for part in bytes.chunks(CHUNK_BYTES) {
            let mut state = self.0.lock();
            while state.chunks.len() >= MAX_CHUNKS && !state.sated {
                state = self.0.wait(state);
            }
            if state.sated {
                return;
            }
            let mut chunk = state
                .spare
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
            drop(state);
            chunk.clear();
            chunk.extend_from_slice(part);
            self.0.lock().chunks.push_back(chunk);
            self.0.changed.notify_all();
        }
    }

    /// Ends the content well: its digest is right.
    pub(crate) fn verified(self) {
        self.0.lock().end = End::Verified;
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.end == End::Open {
            state.end = End::Failed;
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

impl PipeReader {
    /// Returns the key to make a gate with, once this reader is given away.
    pub(crate) fn key(&self) -> GateKey {
        GateKey(Arc::clone(&self.shared))
    }

    /// Takes the next chunk; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        let mut state = self.shared.lock();
        let old = std::mem::take(&mut self.current);
        if old.capacity() > 0 {
            state.spare.push(old);
        }
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                self.current = chunk;
                self.at = 0;
                drop(state);
                self.shared.changed.notify_all();
                return Ok(true);
            }
            match state.end {
                End::Verified => return Ok(false),
                End::Failed => return Err(failed()),
                End::Open => state = self.shared.wait(state),
            }
        }
    }
}

/// Makes gates for one pipe.
#[derive(Debug)]
pub(crate) struct GateKey(Arc<Shared>);

impl GateKey {
    /// Makes the gate for a reader that is built on the pipe's.
    pub(crate) fn gate<R>(self, inner: R) -> Gate<R> {
        Gate {
            inner,
            shared: self.0,
        }
    }
}

impl Read for PipeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while self.at >= self.current.len() {
            if !self.advance()? {
                return Ok(0);
            }
        }
        let n = self.current.get(self.at..).unwrap_or_default().read(out)?;
        self.at += n;
        Ok(n)
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        sate(&self.shared);
    }
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        if n > 0 || out.is_empty() {
            return Ok(n);
        }
        sate(&self.shared);
        let mut state = self.shared.lock();
        loop {
            match state.end {
                End::Verified => return Ok(0),
                End::Failed => return Err(failed()),
                End::Open => state = self.shared.wait(state),
            }
        }
    }
}

fn sate(shared: &Shared) {
    let mut state = shared.lock();
    state.sated = true;
    state.chunks.clear();
    drop(state);
    shared.changed.notify_all();
}

fn failed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "download failed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn bytes_pass_in_order_through_a_bounded_pipe() {
        let (writer, mut reader) = pipe();
        let data: Vec<u8> = (0..CHUNK_BYTES * MAX_CHUNKS * 2 + 77)
            .map(|i| (i % 251) as u8)
            .collect();
        let copy = data.clone();
        let sender = thread::spawn(move || {
            writer.send(&copy);
            writer.verified();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got == data);
    }

    #[test]
    fn a_failed_writer_fails_the_reader() {
        let (writer, mut reader) = pipe();
        writer.send(b"half");
        drop(writer);
        let mut got = [0; 16];
        assert_eq!(reader.read(&mut got).unwrap(), 4);
        assert!(reader.read(&mut got).is_err());
    }

    #[test]
    fn a_gate_waits_for_the_verdict_and_frees_the_writer() {
        let (writer, reader) = pipe();
        let key = reader.key();
        let mut gate = key.gate(reader.take(3));
        let consumer = thread::spawn(move || {
            let mut got = Vec::new();
            gate.read_to_end(&mut got).map(|_| got)
        });
        // Far more than the pipe holds: the sated reader must not block it.
        writer.send(&vec![7; CHUNK_BYTES * MAX_CHUNKS * 3]);
        writer.verified();
        assert_eq!(consumer.join().unwrap().unwrap(), [7, 7, 7]);
    }

    #[test]
    fn a_gate_turns_a_failed_download_into_an_error() {
        let (writer, reader) = pipe();
        let key = reader.key();
        let mut gate = key.gate(reader.take(1));
        let mut got = [0; 4];
        writer.send(b"x");
        assert_eq!(gate.read(&mut got).unwrap(), 1);
        drop(writer);
        assert!(gate.read(&mut got).is_err());
    }

    #[test]
    fn a_dropped_reader_does_not_block_the_writer() {
        let (writer, reader) = pipe();
        drop(reader);
        writer.send(&vec![0; CHUNK_BYTES * MAX_CHUNKS * 2]);
        writer.verified();
    }
}
