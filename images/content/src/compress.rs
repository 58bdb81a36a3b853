//! Decompression of layers and archives, by content, with a bound on what a small input may
//! grow to.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use amphora_spec::media::Compression;

/// What a compressed stream may grow to: nothing is checked below `floor_bytes` of output, above
/// it the output may be `max_ratio` times the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    /// Output that is always allowed.
    pub floor_bytes: u64,
    /// Largest output per input, above the floor.
    pub max_ratio: u64,
}

/// Output that any input may decompress to.
pub const RATIO_FLOOR_BYTES: u64 = 1 << 30;
/// Largest ratio of output to input beyond the floor. Text and zeros in real layers stay far below
/// it on average; gzip can reach 1032, zstd tens of thousands.
pub const MAX_RATIO: u64 = 500;

impl Default for Ratio {
    fn default() -> Self {
        Self {
            floor_bytes: RATIO_FLOOR_BYTES,
            max_ratio: MAX_RATIO,
        }
    }
}

const INPUT_BUFFER_BYTES: usize = 128 << 10;
/// Longest magic number looked at.
pub(crate) const MAGIC_BYTES: usize = 6;

/// A form of compression that is recognised and not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unsupported compression {0}")]
pub struct UnsupportedCompression(&'static str);

/// A stream that decompresses to far more than its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("decompressed data exceeds the limit of {0} times its compressed size")]
pub struct Bomb(u64);

/// Recognises compression by its first bytes. `None` when the first bytes are of no known
/// compression: the data is plain.
///
/// # Errors
/// [`UnsupportedCompression`] for xz and bzip2.
pub fn sniff(start: &[u8]) -> Result<Compression, UnsupportedCompression> {
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // A zstd stream may begin with a skippable frame (pzstd, zstd:chunked).
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(UnsupportedCompression("xz")),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(UnsupportedCompression("bzip2")),
        _ => Ok(Compression::None),
    }
}

/// Decompresses a stream. The label is only a hint: as in Docker, the magic number decides, so a
/// layer that is wrongly labelled works. All members of a gzip stream and all frames of a zstd
/// stream are read.
///
/// # Errors
/// When the first bytes cannot be read or are of an unsupported compression.
pub fn decompress<'a>(
    label: Compression,
    reader: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    decompress_within(label, reader, Ratio::default())
}

/// Like [`decompress`], with a bound of the caller's.
///
/// # Errors
/// When the first bytes cannot be read or are of an unsupported compression.
pub fn decompress_within<'a>(
    _label: Compression,
    mut reader: impl Read + Send + 'a,
    ratio: Ratio,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = [0; MAGIC_BYTES];
    let n = read_full(&mut reader, &mut start)?;
    let start = start.get(..n).unwrap_or_default().to_vec();
    let kind = sniff(&start).map_err(|e| io::Error::new(io::ErrorKind::Unsupported, e))?;
    let whole = io::Cursor::new(start).chain(reader);
    if kind == Compression::None {
        return Ok(Box::new(whole));
    }
    let input = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: whole,
        count: Arc::clone(&input),
    };
    let buffered = BufReader::with_capacity(INPUT_BUFFER_BYTES, counted);
    Ok(match kind {
        Compression::Gzip => {
            let inner = flate2::bufread::MultiGzDecoder::new(buffered);
            Box::new(Guarded {
                inner,
                input,
                output: 0,
                ratio,
            })
        }
        _ => {
            let inner = zstd::stream::read::Decoder::with_buffer(buffered)?;
            Box::new(Guarded {
                inner,
                input,
                output: 0,
                ratio,
            })
        }
    })
}

/// Reads until the buffer is full or the stream ends.
pub(crate) fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

struct Guarded<R> {
    inner: R,
    input: Arc<AtomicU64>,
    output: u64,
    ratio: Ratio,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.output = self.output.saturating_add(n as u64);
        if self.output > self.ratio.floor_bytes {
            let input = self.input.load(Ordering::Relaxed);
            if self.output > input.saturating_mul(self.ratio.max_ratio) {
                let bomb = Bomb(self.ratio.max_ratio);
                return Err(io::Error::new(io::ErrorKind::InvalidData, bomb));
            }
        }
        Ok(n)
    }
}

/// Size and number of the buffers between the two threads of [`read_ahead`].
const AHEAD_BYTES: usize = 256 << 10;
const AHEAD_BUFFERS: usize = 8;

/// Reads a stream in a thread of its own, so that inflating overlaps with what the caller does.
/// The thread ends with the stream, with the first error, or when the reader is dropped.
pub fn read_ahead(reader: impl Read + Send + 'static) -> impl Read + Send {
    let (full_in, full_out) = std::sync::mpsc::sync_channel(AHEAD_BUFFERS);
    let (empty_in, empty_out) = std::sync::mpsc::channel::<Vec<u8>>();
    for _ in 0..AHEAD_BUFFERS {
        // The other end is in this function: it cannot be closed.
        drop(empty_in.send(vec![0; AHEAD_BYTES]));
    }
    let mut reader = reader;
    let work = move || {
        while let Ok(mut buffer) = empty_out.recv() {
            buffer.resize(AHEAD_BYTES, 0);
            let result = read_full(&mut reader, &mut buffer);
            let last = !matches!(result, Ok(n) if n > 0);
            let message = result.map(|n| {
                buffer.truncate(n);
                buffer
            });
            if full_in.send(message).is_err() || last {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("read-ahead".to_owned())
        .spawn(work);
    Ahead {
        failed: thread.err(),
        full: full_out,
        empty: empty_in,
        buffer: Vec::new(),
        at: 0,
    }
}

struct Ahead {
    failed: Option<io::Error>,
    full: std::sync::mpsc::Receiver<io::Result<Vec<u8>>>,
    empty: std::sync::mpsc::Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.at == self.buffer.len() {
            // A closed channel is the end: the thread has sent its last buffer or its error.
            let Ok(next) = self.full.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.buffer, next?);
            self.at = 0;
            drop(self.empty.send(used));
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}
