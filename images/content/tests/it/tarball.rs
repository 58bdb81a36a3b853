use std::io::{Read, Write};

use amphora_content::compress::{decompress, read_ahead, sniff};
use amphora_content::tarball::{EntryKind, TarError, TarLimits, TarReader};
use amphora_spec::media::Compression;

use crate::support::{gzip, tar_of, zstd};

fn names(bytes: &[u8], limits: TarLimits) -> Result<Vec<String>, TarError> {
    let mut reader = TarReader::new(bytes, limits);
    let mut found = Vec::new();
    while let Some(entry) = reader.next()? {
        found.push(entry.name());
    }
    reader.drain()?;
    Ok(found)
}

fn pax(records: &[(&str, &[u8])], header: &mut tar::Header, data: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions(records.iter().copied())
        .unwrap();
    header.set_cksum();
    builder.append(header, data).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn long_names_of_both_kinds_are_whole() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let gnu = tar_of(&[(&long, b"x")]);
    assert_eq!(
        names(&gnu, TarLimits::default()).unwrap(),
        std::slice::from_ref(&long)
    );
    let mut header = tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(1);
    let bytes = pax(&[("path", long.as_bytes())], &mut header, b"x");
    assert_eq!(names(&bytes, TarLimits::default()).unwrap(), [long]);
}

#[test]
fn pax_size_and_binary_xattrs_do_not_desynchronise() {
    let mut header = tar::Header::new_ustar();
    header.set_path("f").unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    let capability = b"\x01\0\0\x02\x0a\n9 size=9\n\0\0";
    let records: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", capability),
        ("size", b"3"),
        ("mtime", b"7.5"),
    ];
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions(records.iter().copied())
        .unwrap();
    header.set_cksum();
    let out = builder.get_mut();
    out.write_all(header.as_bytes()).unwrap();
    out.write_all(b"abc").unwrap();
    out.write_all(&[0; 509]).unwrap();
    out.write_all(&tar_of(&[("next", b"")])).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut reader = TarReader::new(&*bytes, TarLimits::default());
    let entry = reader.next().unwrap().unwrap();
    assert_eq!(
        (entry.kind, entry.size, entry.mtime),
        (EntryKind::File, 3, (7, 500_000_000))
    );
    assert_eq!(
        entry.xattrs,
        [(b"security.capability".to_vec(), capability.to_vec())]
    );
    let mut data = String::new();
    reader.read_to_string(&mut data).unwrap();
    assert_eq!(data, "abc");
    assert_eq!(reader.next().unwrap().unwrap().name(), "next");
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn limits_hold_at_the_limit() {
    let bytes = tar_of(&[("aaaa", b"x"), ("b", b"")]);
    let full = TarLimits {
        bytes: bytes.len() as u64,
        entries: 2,
        path_bytes: 4,
        header_bytes: 0,
    };
    assert_eq!(names(&bytes, full).unwrap().len(), 2);
    for tight in [
        TarLimits {
            bytes: full.bytes - 1,
            ..full
        },
        TarLimits { entries: 1, ..full },
        TarLimits {
            path_bytes: 3,
            ..full
        },
    ] {
        assert!(
            matches!(names(&bytes, tight), Err(TarError::Limit { .. })),
            "{tight:?}"
        );
    }
    let long = "n".repeat(300);
    let bytes = tar_of(&[(&long, b"x")]);
    let limits = |header_bytes| TarLimits {
        header_bytes,
        ..TarLimits::default()
    };
    assert!(names(&bytes, limits(301)).is_ok());
    assert!(matches!(
        names(&bytes, limits(300)),
        Err(TarError::Limit { .. })
    ));
}

#[test]
fn a_header_that_claims_gigabytes_costs_nothing() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = names(header.as_bytes(), TarLimits::default()).unwrap_err();
    assert!(matches!(error, TarError::Limit { .. }), "{error}");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(u64::MAX);
    header.set_cksum();
    let error = names(header.as_bytes(), TarLimits::default()).unwrap_err();
    assert!(matches!(error, TarError::Limit { .. }), "{error}");
}

#[test]
fn broken_streams_are_told_from_ended_ones() {
    let bytes = tar_of(&[("a", b"x")]);
    assert!(
        names(&bytes[..1024], TarLimits::default()).is_ok(),
        "end without zero blocks"
    );
    for cut in [1, 511, 513, 1000] {
        let error = names(&bytes[..cut], TarLimits::default()).unwrap_err();
        assert!(matches!(error, TarError::Truncated(_)), "{cut}: {error}");
    }
    let mut broken = bytes.clone();
    broken[0] ^= 1;
    assert!(matches!(
        names(&broken, TarLimits::default()),
        Err(TarError::Header { .. })
    ));
    let mut sparse = tar::Header::new_gnu();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_size(0);
    sparse.set_cksum();
    let error = names(sparse.as_bytes(), TarLimits::default()).unwrap_err();
    assert!(error.to_string().contains("sparse"), "{error}");
}

#[test]
fn the_magic_number_decides_not_the_label() {
    let plain = tar_of(&[("a", b"x")]);
    for bytes in [gzip(&plain), zstd(&plain), plain.clone()] {
        for label in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut out = Vec::new();
            decompress(label, &*bytes)
                .unwrap()
                .read_to_end(&mut out)
                .unwrap();
            assert_eq!(out, plain);
        }
    }
    assert!(sniff(b"BZh9").is_err());
    assert_eq!(sniff(b""), Ok(Compression::None));
}

#[test]
fn all_members_and_frames_are_read() {
    for squeeze in [gzip, zstd] {
        let joined = [squeeze(b"one "), squeeze(b""), squeeze(b"two")].concat();
        let mut out = String::new();
        decompress(Compression::None, &*joined)
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        assert_eq!(out, "one two");
    }
}

#[test]
fn reading_ahead_keeps_bytes_and_errors() {
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut out = Vec::new();
    read_ahead(std::io::Cursor::new(data.clone()))
        .read_to_end(&mut out)
        .unwrap();
    assert!(out == data);
    let cut = gzip(&data)[..9000].to_vec();
    let reader = decompress(Compression::Gzip, std::io::Cursor::new(cut)).unwrap();
    assert!(read_ahead(reader).read_to_end(&mut out).is_err());
}
