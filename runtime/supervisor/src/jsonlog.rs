//! Docker's json-file log: one JSON object per line of output, rotated by size.
//!
//! A log never stops a container: what cannot be written is dropped and counted, and a line torn
//! by a full disk is cut off again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use amphora_sys::supervise::PageBuf;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, ftruncate, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::compress::Compressor;
use crate::config::LogConfig;
use crate::remote::Remote;
use crate::{SupervisorError, clock};

/// Bytes of output in one log line, as Docker's; a longer line is logged in pieces.
const LINE_MAX: usize = 16 << 10;
/// Room for encoded lines between two writes; holds the longest line (each byte six).
const OUT_LEN: usize = 256 << 10;
/// What a line needs beside its text.
const LINE_EXTRA: usize = 128;

/// One of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Logger {
    enabled: bool,
    carry: [Carry; 2],
    sink: Sink,
}

/// A line whose end has not come yet.
#[derive(Debug)]
struct Carry {
    buf: PageBuf,
    len: usize,
}

#[derive(Debug)]
struct Sink {
    data_dir: PathBuf,
    /// Name of the newest file; `None`: there is none.
    name: Option<&'static str>,
    dir: Option<OwnedFd>,
    file: Option<OwnedFd>,
    size: u64,
    config: LogConfig,
    compressor: Compressor,
    remote: Option<Remote>,
    out: PageBuf,
    len: usize,
    time: [u8; clock::TEXT_LEN],
    time_len: usize,
    dropped: u64,
}

impl Logger {
    /// Opens nothing yet: the file appears with the first line.
    pub(crate) fn new(data_dir: PathBuf, config: LogConfig) -> Result<Self, SupervisorError> {
        let map = |len| PageBuf::new(len).map_err(|e| SupervisorError::Kernel("map a buffer", e));
        let carry = || {
            Ok(Carry {
                buf: map(LINE_MAX)?,
                len: 0,
            })
        };
        Ok(Self {
            enabled: config.driver.file().is_some() || config.remote.is_some(),
            carry: [carry()?, carry()?],
            sink: Sink {
                data_dir,
                name: config.driver.file(),
                dir: None,
                file: None,
                size: 0,
                compressor: Compressor::default(),
                remote: config.remote.as_ref().map(Remote::new),
                config,
                out: map(OUT_LEN)?,
                len: 0,
                time: [0; clock::TEXT_LEN],
                time_len: 0,
                dropped: 0,
            },
        })
    }

    /// Logs a piece of a stream, however it is cut.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.enabled {
            return;
        }
        self.sink.time_len = clock::rfc3339(clock::now(), &mut self.sink.time);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.line(stream, &rest[..end], true);
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            self.line(stream, rest, false);
        }
        self.sink.flush();
    }

    fn line(&mut self, stream: Stream, mut line: &[u8], ended: bool) {
        let carry = &mut self.carry[stream as usize];
        if carry.len == 0 {
            while line.len() > LINE_MAX {
                let (head, tail) = line.split_at(boundary(line, LINE_MAX));
                self.sink.emit(stream, head, false);
                line = tail;
            }
            if ended {
                self.sink.emit(stream, line, true);
                return;
            }
        }
        loop {
            let n = line.len().min(LINE_MAX - carry.len);
            carry.buf[carry.len..carry.len + n].copy_from_slice(&line[..n]);
            carry.len += n;
            line = &line[n..];
            if line.is_empty() {
                break;
            }
            let cut = boundary(&carry.buf[..carry.len], carry.len);
            self.sink.emit(stream, &carry.buf[..cut], false);
            carry.buf.copy_within(cut..carry.len, 0);
            carry.len -= cut;
        }
        if ended {
            self.sink.emit(stream, &carry.buf[..carry.len], true);
            carry.len = 0;
        }
    }

    /// Logs what was begun: the container has ended.
    pub(crate) fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let carry = &mut self.carry[stream as usize];
            if carry.len > 0 {
                self.sink.emit(stream, &carry.buf[..carry.len], false);
                carry.len = 0;
            }
        }
        self.sink.flush();
        self.sink.compressor.finish();
    }

    /// Gives pages back that hold nothing.
    pub(crate) fn release_pages(&mut self) {
        self.sink.out.release();
        for carry in self.carry.iter_mut().filter(|c| c.len == 0) {
            carry.buf.release();
        }
    }

    /// Bytes of encoded lines that could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.sink.dropped + self.sink.remote.as_ref().map_or(0, Remote::dropped)
    }
}

/// The last place at or before `at` that does not split a UTF-8 character; `at` itself when the
/// bytes there are no UTF-8 anyway.
fn boundary(bytes: &[u8], at: usize) -> usize {
    for back in 0..4.min(at) {
        let place = at - back;
        let start = match bytes.get(place) {
            Some(byte) => byte & 0xc0 != 0x80,
            None => complete(bytes),
        };
        if start && place > 0 {
            return place;
        }
    }
    at
}

/// Whether the last character is whole.
fn complete(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    !tail.iter().enumerate().any(|(i, b)| {
        let needs = match b {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        needs > tail.len() - i
    })
}

impl Sink {
    fn emit(&mut self, stream: Stream, text: &[u8], ended: bool) {
        if let Some(remote) = &mut self.remote {
            remote.send(stream, text, ended);
        }
        if self.name.is_none() {
            return;
        }
        let attrs = std::mem::take(&mut self.config.attrs);
        self.encode(stream, text, ended, attrs.as_bytes());
        self.config.attrs = attrs;
    }

    fn encode(&mut self, stream: Stream, text: &[u8], ended: bool, attrs: &[u8]) {
        if self.len + text.len() * 6 + attrs.len() + LINE_EXTRA > OUT_LEN {
            self.flush();
        }
        let begin = self.len;
        self.put(b"{\"log\":\"");
        self.len += escape(text, &mut self.out[self.len..]);
        if ended {
            self.put(b"\\n");
        }
        self.put(match stream {
            Stream::Stdout => b"\",\"stream\":\"stdout\",",
            Stream::Stderr => b"\",\"stream\":\"stderr\",",
        });
        if !attrs.is_empty() {
            self.put(b"\"attrs\":");
            self.put(attrs);
            self.put(b",");
        }
        self.put(b"\"time\":\"");
        let (time, len) = (self.time, self.time_len);
        self.put(&time[..len]);
        self.put(b"\"}\n");
        let before = self.size + begin as u64;
        let line = (self.len - begin) as u64;
        if self.config.max_size > 0 && before > 0 && before + line > self.config.max_size {
            self.rotate(begin);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Writes the lines before `keep` to the old file and moves the rest to a new one.
    fn rotate(&mut self, keep: usize) {
        if self.compressor.busy() {
            // Its file must keep its name until it is done; the current one grows meanwhile.
            return;
        }
        let end = self.len;
        self.len = keep;
        self.flush();
        self.out.copy_within(keep..end, 0);
        self.len = end - keep;
        if self.file.is_none() && self.open().is_err() {
            return;
        }
        let Some(dir) = self.dir.as_ref() else { return };
        let Some(name) = self.name else { return };
        if self.config.max_files <= 1 {
            let _ = self.file.as_ref().map(|f| ftruncate(f, 0));
        } else {
            shift(dir.as_fd(), name, self.config.max_files);
            if self.config.compress {
                self.compressor.start(dir.as_fd(), &format!("{name}.1"));
            }
            self.file = None;
        }
        self.size = 0;
    }

    fn flush(&mut self) {
        let mut start = 0;
        if self.len > 0
            && (self.file.is_some() || self.open().is_ok())
            && let Some(file) = &self.file
        {
            start = write_lines(file.as_fd(), &self.out[..self.len], self.size);
        }
        self.size += start as u64;
        self.dropped += (self.len - start) as u64;
        self.len = 0;
    }

    fn open(&mut self) -> Result<(), Errno> {
        if self.dir.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let data = rustix::fs::open(&self.data_dir, flags, Mode::empty())?;
            match mkdirat(&data, "logs", Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            self.dir = Some(openat(
                &data,
                "logs",
                flags | OFlags::NOFOLLOW,
                Mode::empty(),
            )?);
        }
        let Some(dir) = &self.dir else {
            return Err(Errno::NOENT);
        };
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = self.name.ok_or(Errno::NOENT)?;
        let file = openat(dir, name, flags, Mode::from_raw_mode(0o640))?;
        self.size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if self.size > 0 {
            self.size = mend(file.as_fd(), self.size)?;
        }
        self.file = Some(file);
        Ok(())
    }
}

/// Moves every file one number up; the last one goes.
fn shift(dir: BorrowedFd<'_>, name: &str, max_files: u32) {
    let old = |n: u32| format!("{name}.{n}");
    let packed = |n: u32| format!("{name}.{n}.gz");
    for last in [old(max_files - 1), packed(max_files - 1)] {
        let _ = unlinkat(dir, last, AtFlags::empty());
    }
    for n in (2..max_files).rev() {
        let _ = renameat(dir, old(n - 1), dir, old(n));
        let _ = renameat(dir, packed(n - 1), dir, packed(n));
    }
    let _ = renameat(dir, name, dir, old(1));
}

/// Writes whole lines and returns how many bytes of them the file holds now; a line that only
/// fitted in part is cut off.
fn write_lines(file: BorrowedFd<'_>, lines: &[u8], size: u64) -> usize {
    let mut written = 0;
    while written < lines.len() {
        match rustix::io::write(file, &lines[written..]) {
            Ok(0) => break,
            Ok(n) => written += n,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if written == lines.len() {
        return written;
    }
    let whole = lines[..written]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    let _ = ftruncate(file, size + whole as u64);
    whole
}

/// Cuts off a line that an earlier supervisor was killed in; returns the size.
fn mend(file: BorrowedFd<'_>, size: u64) -> Result<u64, Errno> {
    let mut last = [0];
    rustix::io::pread(file, &mut last, size - 1)?;
    if last == *b"\n" {
        return Ok(size);
    }
    let from = size.saturating_sub(OUT_LEN as u64);
    let mut tail = vec![0; usize::try_from(size - from).unwrap_or(0)];
    let n = rustix::io::pread(file, &mut tail[..], from)?;
    let whole = tail[..n]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    ftruncate(file, from + whole as u64)?;
    Ok(from + whole as u64)
}

/// Writes text as the inside of a JSON string, as Docker does: HTML's special characters and the
/// line separators escaped, each byte that is no UTF-8 as U+FFFD. `out` has room for six bytes
/// per byte. Returns the length.
fn escape(text: &[u8], out: &mut [u8]) -> usize {
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        out[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        while let Some(at) = rest.iter().position(|b| SPECIAL[usize::from(*b)]) {
            put(&rest[..at]);
            let byte = rest[at];
            let mut used = 1;
            match byte {
                b'"' => put(b"\\\""),
                b'\\' => put(b"\\\\"),
                b'\n' => put(b"\\n"),
                b'\r' => put(b"\\r"),
                0xe2 => match rest.get(at..at + 3) {
                    Some([_, 0x80, last @ (0xa8 | 0xa9)]) => {
                        put(if *last == 0xa8 {
                            b"\\u2028"
                        } else {
                            b"\\u2029"
                        });
                        used = 3;
                    }
                    _ => put(&[byte]),
                },
                _ => {
                    let hex = b"0123456789abcdef";
                    let [high, low] = [byte >> 4, byte & 15].map(|d| hex[usize::from(d)]);
                    put(&[b'\\', b'u', b'0', b'0', high, low]);
                }
            }
            rest = &rest[at + used..];
        }
        put(rest);
        for _ in chunk.invalid() {
            put(b"\\ufffd");
        }
    }
    len
}

const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 32 {
        table[i] = true;
        i += 1;
    }
    let others = [b'"', b'\\', b'<', b'>', b'&', 0xe2];
    i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests;
