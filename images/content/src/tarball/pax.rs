//! PAX records (POSIX.1-2001, "pax Extended Header"): `length key=value\n`, by length, because
//! values may hold any byte.

/// The records that matter for an entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Most extended attributes of one entry.
pub(super) const MAX_XATTRS: usize = 256;

/// Says whether an image may bring an extended attribute: `user.*` and file capabilities. Those of
/// overlayfs are the layer store's to set, ACLs and security labels are the host's business.
fn is_allowed(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
}

/// Parses a record set; later records win.
pub(super) fn parse(mut rest: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    while !rest.is_empty() {
        let (key, value, tail) = record(rest).ok_or("pax record")?;
        apply(&mut records, key, value)?;
        rest = tail;
    }
    Ok(records)
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = number(bytes.get(..space)?)?;
    let body = bytes.get(space + 1..length)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((
        body.get(..equals)?,
        body.get(equals + 1..)?,
        bytes.get(length..)?,
    ))
}

fn apply(records: &mut Records, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    // An empty value takes the record back (POSIX).
    let text = || (!value.is_empty()).then(|| value.to_vec());
    let count = |why| match value {
        b"" => Ok(None),
        _ => number(value).map(Some).ok_or(why),
    };
    match key {
        b"path" => records.path = text(),
        b"linkpath" => records.link = text(),
        b"size" => records.size = count("pax size")?,
        b"uid" => records.uid = count("pax uid")?,
        b"gid" => records.gid = count("pax gid")?,
        b"mtime" => {
            records.mtime = if value.is_empty() {
                None
            } else {
                Some(time(value)?)
            }
        }
        _ if key.starts_with(b"GNU.sparse.") => records.sparse = true,
        _ => {
            let name = key.strip_prefix(XATTR).filter(|name| is_allowed(name));
            if let Some(name) = name {
                records.xattrs.retain(|(n, _)| n != name);
                if records.xattrs.len() >= MAX_XATTRS {
                    return Err("number of extended attributes");
                }
                records.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Parses `[-]seconds[.fraction]`, rounding towards the past.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    let bad = "pax mtime";
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|b| *b == b'.');
    let (seconds, fraction) = match dot {
        Some(at) => (value.get(..at).ok_or(bad)?, value.get(at + 1..).ok_or(bad)?),
        None => (value, &b""[..]),
    };
    let seconds: i64 = number(seconds).ok_or(bad)?;
    let mut nanos: u32 = 0;
    let mut scale = 100_000_000;
    for digit in fraction {
        if !digit.is_ascii_digit() {
            return Err(bad);
        }
        nanos += u32::from(digit - b'0') * scale;
        scale /= 10;
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_later_records_win() {
        let set = b"20 path=a\nb=c\0d\n\xffxy\n13 size=1234\n";
        assert_eq!(set.len(), 33);
        let records = parse(set).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\nb=c\0d\n\xffxy"[..]));
        assert_eq!(records.size, Some(1234));
        assert_eq!(parse(b"10 size=1\n10 size=2\n").unwrap().size, Some(2));
        assert_eq!(parse(b"10 size=1\n8 size=\n").unwrap().size, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for set in [
            &b"11 size=1\n"[..],
            b"8 size=1\n",
            b"x size=1\n",
            b"3\n",
            b"0 a=b\n",
            b"10 size=-1\n",
            b"99999999999999999999999 a=b\n",
            b"8 nokey\n",
        ] {
            assert!(parse(set).is_err(), "{:?}", String::from_utf8_lossy(set));
        }
    }

    #[test]
    fn extended_attributes_are_filtered_and_counted() {
        let record = |key: &str, n: usize| {
            let body = format!(" SCHILY.xattr.{key}{n}=v\n");
            let digits = (body.len() + 2).to_string();
            assert_eq!(digits.len(), 2);
            format!("{digits}{body}").into_bytes()
        };
        let set =
            |key: &str, count: usize| (0..count).flat_map(|n| record(key, n)).collect::<Vec<u8>>();
        for foreign in ["trusted.overlay.", "user.overlay.", "system.posix_acl_"] {
            assert_eq!(parse(&set(foreign, 20_000)).unwrap().xattrs, []);
        }
        assert_eq!(parse(&set("user.", MAX_XATTRS)).unwrap().xattrs.len(), 256);
        assert!(parse(&set("user.", MAX_XATTRS + 1)).is_err());
        let again = [record("user.", 0), set("user.", MAX_XATTRS)].concat();
        assert!(
            parse(&again).is_ok(),
            "a later record replaces an earlier one"
        );
    }

    #[test]
    fn times_round_down() {
        assert_eq!(time(b"1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time(b"12.1234567899"), Ok((12, 123_456_789)));
        assert!(time(b"1.x").is_err());
    }
}
