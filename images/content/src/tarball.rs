//! A bounded reader of tar streams (ustar, GNU, PAX).
//!
//! The `tar` crate decodes the header blocks; the sequence of blocks is read here, because the
//! crate keeps extended headers of any size in memory and splits PAX records at newlines, which
//! breaks binary values such as `security.capability`. Where readers differ, this one does what
//! Go's `archive/tar` does, because Docker's layers are made and read with it.

mod pax;
mod write;

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use amphora_spec::error::io_kind;
use amphora_spec::{Classify, ErrorKind};
use tar::{EntryType, Header};

use crate::compress::read_full;

pub use write::TarWriter;

const BLOCK: u64 = 512;
/// Places of the numbers in a header.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Bounds of a tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarLimits {
    /// Bytes of the whole stream.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of a path or of a link target.
    pub path_bytes: usize,
    /// Bytes of one extended header (PAX record set, GNU long name).
    pub header_bytes: u64,
}

/// Largest tar stream.
pub const MAX_TAR_BYTES: u64 = 256 << 30;
/// Most entries in a tar stream.
pub const MAX_TAR_ENTRIES: u64 = 5_000_000;
/// Longest path or link target, the kernel's `PATH_MAX` without the final zero.
pub const MAX_PATH_BYTES: usize = 4095;
/// Largest extended header; Go's reader has the same bound.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;

impl Default for TarLimits {
    fn default() -> Self {
        Self {
            bytes: MAX_TAR_BYTES,
            entries: MAX_TAR_ENTRIES,
            path_bytes: MAX_PATH_BYTES,
            header_bytes: MAX_HEADER_BYTES,
        }
    }
}

/// Says why a tar stream is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream could not be read.
    #[error("failed to read tar stream")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("tar stream ends inside \"{0}\"")]
    Truncated(String),
    /// A header is malformed.
    #[error("malformed tar header after \"{after}\": {why}")]
    Header {
        /// Path of the last good entry.
        after: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A bound was exceeded.
    #[error("tar stream exceeds the limit of {limit} {what}")]
    Limit {
        /// What grew too large.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// An entry is of a kind that is not supported.
    #[error("unsupported tar entry \"{path}\": {what}")]
    Unsupported {
        /// Path of the entry.
        path: String,
        /// The kind.
        what: &'static str,
    },
}

impl Classify for TarError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(source) => stream_kind(source),
            Self::Truncated(_) => ErrorKind::DataLoss,
            Self::Header { .. } | Self::Limit { .. } => ErrorKind::InvalidArgument,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }
}

/// Gives the class of a failure to read a stream; decompressors report damage as they like.
pub(crate) fn stream_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::InvalidInput => ErrorKind::DataLoss,
        _ => match io_kind(error) {
            ErrorKind::Internal => ErrorKind::DataLoss,
            other => other,
        },
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file; its data follows.
    File,
    /// Directory.
    Directory,
    /// Symbolic link to `link`.
    Symlink,
    /// Hard link to the entry `link`.
    HardLink,
    /// Named pipe.
    Fifo,
    /// Character device `major:minor`.
    Char,
    /// Block device `major:minor`.
    Block,
}

/// One entry, its extended headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as written.
    pub path: Vec<u8>,
    /// Link target as written.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time: seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Bytes of data; 0 for all but files.
    pub size: u64,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.*`) that an image may bring: `user.*` without those of
    /// overlayfs, and file capabilities.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Returns the path as text for messages.
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads a tar stream entry by entry; the data of the current entry is read through [`BufRead`].
#[derive(Debug)]
pub struct TarReader<R> {
    inner: BufReader<Capped<R>>,
    limits: TarLimits,
    entries: u64,
    /// Data of the current entry that was not read yet, and the padding behind it.
    left: u64,
    padding: u64,
    last: String,
    done: bool,
}

/// Ends with an error when the stream is longer than its bound.
#[derive(Debug)]
struct Capped<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                let error = TarError::Limit {
                    what: "bytes",
                    limit: self.limit,
                };
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(n)
    }
}

/// Gathers what the extended headers before an entry say about it.
#[derive(Debug, Default)]
struct Extended {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: pax::Records,
}

impl<R: Read> TarReader<R> {
    /// Starts reading a stream.
    pub fn new(inner: R, limits: TarLimits) -> Self {
        let capped = Capped {
            inner,
            left: limits.bytes,
            limit: limits.bytes,
        };
        Self {
            inner: BufReader::with_capacity(READ_BUFFER_BYTES, capped),
            limits,
            entries: 0,
            left: 0,
            padding: 0,
            last: String::new(),
            done: false,
        }
    }

    /// Returns how many entries were read.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns how many bytes were taken from the stream beneath.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        let capped = self.inner.get_ref();
        capped.limit - capped.left
    }

    /// Returns the stream beneath.
    pub fn into_inner(self) -> R {
        self.inner.into_inner().inner
    }

    /// Goes to the next entry, skipping what is left of this one.
    ///
    /// # Errors
    /// [`TarError`] when the stream is malformed, truncated or exceeds its limits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the data"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        let mut pending = false;
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return if pending {
                    Err(self.bad("extended header without entry"))
                } else {
                    Ok(None)
                };
            };
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(TarError::Limit {
                    what: "entries",
                    limit: self.limits.entries,
                });
            }
            let kind = header.entry_type();
            let size = self.number(&header, SIZE, header.entry_size(), "size")?;
            match kind {
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    extended.pax = pax::parse(&records).map_err(|why| self.bad(why))?;
                }
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extended.long_path = Some(self.long(size)?),
                EntryType::GNULongLink => extended.long_link = Some(self.long(size)?),
                _ => return self.entry(&header, extended).map(Some),
            }
            pending = kind != EntryType::XGlobalHeader || pending;
        }
    }

    /// Reads the stream to its end, for whoever sums it up.
    ///
    /// # Errors
    /// [`TarError`] when the stream cannot be read or exceeds its limits.
    pub fn drain(&mut self) -> Result<(), TarError> {
        self.left = 0;
        self.padding = 0;
        loop {
            let n = self.inner.fill_buf().map_err(io_error)?.len();
            if n == 0 {
                return Ok(());
            }
            self.inner.consume(n);
        }
    }

    fn bad(&self, why: &'static str) -> TarError {
        TarError::Header {
            after: self.last.clone(),
            why,
        }
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut left = self.left.saturating_add(self.padding);
        self.left = 0;
        self.padding = 0;
        while left > 0 {
            let n = self.inner.fill_buf().map_err(io_error)?.len() as u64;
            if n == 0 {
                return Err(TarError::Truncated(self.last.clone()));
            }
            let n = n.min(left);
            self.inner.consume(usize::try_from(n).unwrap_or(usize::MAX));
            left -= n;
        }
        Ok(())
    }

    /// Reads a header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.done {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if !self.block(block)? {
            self.done = true;
            return Ok(None);
        }
        if block.iter().all(|b| *b == 0) {
            // The end is two zero blocks, or one and the end of the stream.
            let mut second = [0; BLOCK as usize];
            if self.block(&mut second)? && second.iter().any(|b| *b != 0) {
                return Err(self.bad("lone zero block"));
            }
            self.done = true;
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
        let stored: u32 = bytes.iter().skip(148).take(8).map(|b| u32::from(*b)).sum();
        let expected = header.cksum().map_err(|_| self.bad("checksum"))?;
        if sum - stored + 8 * u32::from(b' ') != expected {
            return Err(self.bad("checksum"));
        }
        Ok(Some(header))
    }

    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, TarError> {
        match read_full(&mut self.inner, block).map_err(io_error)? {
            0 => Ok(false),
            n if n == block.len() => Ok(true),
            _ => Err(TarError::Truncated(self.last.clone())),
        }
    }

    /// Reads the data of an extended header whole.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let limit = self.limits.header_bytes;
        if size > limit {
            return Err(TarError::Limit {
                what: "bytes in an extended header",
                limit,
            });
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.by_ref()
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        Ok(bytes)
    }

    fn long(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.extension(size)?;
        if let Some(end) = bytes.iter().position(|b| *b == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry, TarError> {
        let pax = extended.pax;
        let path = pax
            .path
            .or(extended.long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(extended.long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        self.last = String::from_utf8_lossy(path.get(..200).unwrap_or(&path)).into_owned();
        let limit = self.limits.path_bytes;
        if path.len() > limit || link.len() > limit {
            return Err(TarError::Limit {
                what: "bytes in a path",
                limit: limit as u64,
            });
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(self.bad("zero byte in a path"));
        }
        if pax.sparse {
            return Err(self.unsupported("sparse file"));
        }
        let kind = self.kind(header, &path)?;
        let size = match kind {
            // Only files have data; the size of the others is noise of old archivers.
            EntryKind::File => match pax.size {
                Some(size) => size,
                None => self.number(header, SIZE, header.entry_size(), "size")?,
            },
            _ => 0,
        };
        if size > self.limits.bytes {
            return Err(TarError::Limit {
                what: "bytes",
                limit: self.limits.bytes,
            });
        }
        self.begin(size);
        let device = match kind {
            EntryKind::Char | EntryKind::Block => (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            _ => (0, 0),
        };
        let seconds = || i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        Ok(Entry {
            uid: match pax.uid {
                Some(uid) => uid,
                None => self.number(header, UID, header.uid(), "uid")?,
            },
            gid: match pax.gid {
                Some(gid) => gid,
                None => self.number(header, GID, header.gid(), "gid")?,
            },
            mode: self.number(header, MODE, header.mode(), "mode")? & 0o7777,
            mtime: pax.mtime.unwrap_or_else(|| (seconds(), 0)),
            path,
            link,
            kind,
            size,
            device,
            xattrs: pax.xattrs,
        })
    }

    /// Returns a number of the header; a blank field is 0, as in Go.
    fn number<T: Default>(
        &self,
        header: &Header,
        field: Range<usize>,
        value: io::Result<T>,
        why: &'static str,
    ) -> Result<T, TarError> {
        let blank = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, 0 | b' '));
        match value {
            Err(_) if header.as_bytes().get(field).is_some_and(blank) => Ok(T::default()),
            other => other.map_err(|_| self.bad(why)),
        }
    }

    fn kind(&self, header: &Header, path: &[u8]) -> Result<EntryKind, TarError> {
        Ok(match header.entry_type() {
            EntryType::Regular
                if header.as_bytes().get(156) == Some(&0) && path.ends_with(b"/") =>
            {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => EntryKind::Char,
            EntryType::Block => EntryKind::Block,
            EntryType::GNUSparse => return Err(self.unsupported("sparse file")),
            _ => return Err(self.unsupported("unknown type")),
        })
    }

    fn unsupported(&self, what: &'static str) -> TarError {
        TarError::Unsupported {
            path: self.last.clone(),
            what,
        }
    }
}

/// Unwraps an error that had to travel through `std::io`.
fn io_error(error: io::Error) -> TarError {
    match error.downcast::<TarError>() {
        Ok(inner) => inner,
        Err(error) => TarError::Read(error),
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), available.get(..n)) {
            to.copy_from_slice(from);
        }
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for TarReader<R> {
    /// Returns more of the current entry's data; empty at its end.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let available = self.inner.fill_buf()?;
        if available.is_empty() {
            let error = TarError::Truncated(self.last.clone());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
        }
        Ok(available.get(..left).unwrap_or(available))
    }

    fn consume(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n as u64);
        self.inner.consume(n);
    }
}
