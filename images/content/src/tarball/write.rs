//! A writer of tar streams: ustar headers, and PAX records for what does not fit into them.

use std::io::{self, Read, Write};

use super::{Entry, EntryKind};

const BLOCK: usize = 512;
/// Longest name and link target of a ustar header.
const NAME_BYTES: usize = 100;
/// Largest number that seven octal digits hold.
const MAX_ID: u64 = 0o7_777_777;
/// Largest number that eleven octal digits hold.
const MAX_SIZE: u64 = 0o77_777_777_777;
const ZEROES: [u8; BLOCK] = [0; BLOCK];

/// Writes entries one after the other.
#[derive(Debug)]
pub struct TarWriter<W> {
    inner: W,
}

impl<W: Write> TarWriter<W> {
    /// Starts a stream.
    pub const fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Writes an entry; `data` holds the bytes of a file, and is cut or filled up with zeroes
    /// where it does not have the size that the entry says. Times are written in whole seconds.
    ///
    /// # Errors
    /// What reading or writing answers.
    pub fn append(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let head = Entry {
                path: b"././@PaxHeader".to_vec(),
                link: Vec::new(),
                size: records.len() as u64,
                ..entry.clone()
            };
            self.inner.write_all(&header(&head, b'x'))?;
            self.inner.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.inner.write_all(&header(entry, flag(entry.kind)))?;
        if entry.kind != EntryKind::File {
            return Ok(());
        }
        let mut left = entry.size - io::copy(&mut data.take(entry.size), &mut self.inner)?;
        while left > 0 {
            let part = left.min(BLOCK as u64);
            let zeroes = ZEROES.get(..usize::try_from(part).unwrap_or(BLOCK));
            self.inner.write_all(zeroes.unwrap_or(&ZEROES))?;
            left -= part;
        }
        self.pad(entry.size)
    }

    /// Ends the stream and returns what it was written to.
    ///
    /// # Errors
    /// What writing answers.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&ZEROES)?;
        self.inner.write_all(&ZEROES)?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let padding = ZEROES.get(over..).filter(|_| over != 0);
        self.inner.write_all(padding.unwrap_or_default())
    }
}

const fn flag(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::Char => b'3',
        EntryKind::Block => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(field) = block.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

/// Octal digits in a field of `width` bytes, the last of them a zero byte; as many nines, so to
/// say, as there is room for when the number is larger (a PAX record has it then).
fn octal(block: &mut [u8; BLOCK], at: usize, width: usize, value: u64) {
    let digits = width - 1;
    let most = (1u64 << (3 * digits)) - 1;
    put(
        block,
        at,
        format!("{:0digits$o}", value.min(most)).as_bytes(),
    );
}

fn header(entry: &Entry, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let cut = |bytes: &[u8]| bytes.get(..NAME_BYTES).unwrap_or(bytes).to_vec();
    put(&mut block, 0, &cut(&entry.path));
    octal(&mut block, 100, 8, u64::from(entry.mode & 0o7777));
    octal(&mut block, 108, 8, entry.uid);
    octal(&mut block, 116, 8, entry.gid);
    octal(&mut block, 124, 12, entry.size);
    let seconds = u64::try_from(entry.mtime.0).unwrap_or(0);
    octal(&mut block, 136, 12, seconds);
    put(&mut block, 156, &[kind]);
    put(&mut block, 157, &cut(&entry.link));
    put(&mut block, 257, b"ustar\x0000");
    octal(&mut block, 329, 8, u64::from(entry.device.0));
    octal(&mut block, 337, 8, u64::from(entry.device.1));
    put(&mut block, 148, b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block, 148, 7, sum);
    put(&mut block, 155, b" ");
    block
}

fn records(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    let plain = |bytes: &[u8]| bytes.len() <= NAME_BYTES && bytes.is_ascii();
    if !plain(&entry.path) {
        record(&mut out, b"path", &entry.path);
    }
    if !plain(&entry.link) {
        record(&mut out, b"linkpath", &entry.link);
    }
    let numbers: [(&[u8], u64, u64); 3] = [
        (b"size", entry.size, MAX_SIZE),
        (b"uid", entry.uid, MAX_ID),
        (b"gid", entry.gid, MAX_ID),
    ];
    for (key, value, most) in numbers {
        if value > most {
            record(&mut out, key, value.to_string().as_bytes());
        }
    }
    let seconds = entry.mtime.0;
    if u64::try_from(seconds).map_or(true, |s| s > MAX_SIZE) {
        record(&mut out, b"mtime", seconds.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(
            &mut out,
            &[b"SCHILY.xattr.", name.as_slice()].concat(),
            value,
        );
    }
    out
}

/// Adds `length key=value\n`, whose length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while body + length.to_string().len() != length {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::super::{TarLimits, TarReader};
    use super::*;

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry {
            path: path.to_vec(),
            link: Vec::new(),
            kind,
            mode: 0o4755,
            uid: 7,
            gid: 8,
            mtime: (1_700_000_000, 0),
            size: 0,
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let long = [b'd'; 300];
        let mut file = entry(b"a/file", EntryKind::File);
        file.size = 700;
        file.uid = 3_000_000_000;
        file.mtime = (-5, 0);
        file.xattrs = vec![(b"security.capability".to_vec(), b"\x01\n=\0".to_vec())];
        let mut link = entry(&long, EntryKind::Symlink);
        link.link = "ü/target".as_bytes().to_vec();
        let mut node = entry(b"dev/x", EntryKind::Block);
        node.device = (8, 17);
        let entries = [entry(b"a/", EntryKind::Directory), file, link, node];
        let mut writer = TarWriter::new(Vec::new());
        for entry in &entries {
            let mut data: &[u8] = &[b'x'; 900];
            writer.append(entry, &mut data).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut reader = TarReader::new(bytes.as_slice(), TarLimits::default());
        for wanted in &entries {
            let got = reader.next().unwrap().unwrap();
            assert_eq!(got, *wanted);
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            let size = usize::try_from(wanted.size).unwrap();
            assert_eq!(data, vec![b'x'; size]);
        }
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn a_file_that_shrank_is_filled_up() {
        let mut file = entry(b"f", EntryKind::File);
        file.size = 1500;
        let mut writer = TarWriter::new(Vec::new());
        writer.append(&file, &mut &b"short"[..]).unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = TarReader::new(bytes.as_slice(), TarLimits::default());
        reader.next().unwrap().unwrap();
        let mut data = Vec::new();
        reader.read_to_end(&mut data).unwrap();
        assert_eq!(data.len(), 1500);
        assert!(data.starts_with(b"short\0") && reader.next().unwrap().is_none());
    }

    #[test]
    fn record_lengths_count_themselves() {
        for size in 0..120 {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'v'; size]);
            let text = String::from_utf8(out.clone()).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, out.len());
        }
    }
}
