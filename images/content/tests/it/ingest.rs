use std::io::Write;
use std::sync::mpsc;
use std::thread;

use amphora_content::{ContentError, Store};
use amphora_spec::{Classify, ErrorKind};

use crate::support::{SmallDisk, content, digest, store};

#[test]
fn a_blob_appears_only_when_committed() {
    let (dir, store) = store();
    let hash = digest(b"hello");
    let mut ingest = store.ingest(&hash, 5).unwrap();
    ingest.write_all(b"hello").unwrap();
    assert_eq!(store.has(&hash).unwrap(), None);
    ingest.commit().unwrap();
    assert_eq!(store.has(&hash).unwrap(), Some(5));
    assert_eq!(store.read_blob(&hash, 5).unwrap(), b"hello");
    assert!(matches!(
        store.read_blob(&hash, 4),
        Err(ContentError::Limit { .. })
    ));
    assert_eq!(content(dir.path()).len(), 1);
    let again = store.ingest(&hash, 5).unwrap();
    assert!(again.is_present());
    assert_eq!(again.offset(), 5);
    again.commit().unwrap();
}

#[test]
fn a_dropped_ingest_resumes_where_it_stopped() {
    let (dir, store) = store();
    let hash = digest(b"hello world");
    let mut first = store.ingest(&hash, 11).unwrap();
    first.write_all(b"hello ").unwrap();
    drop(first);
    assert_eq!(content(dir.path()), [format!("ingest/{}.part", hash.hex())]);
    let mut second = Store::open(dir.path()).unwrap().ingest(&hash, 11).unwrap();
    assert_eq!(second.offset(), 6);
    second.write_all(b"world").unwrap();
    second.commit().unwrap();
    assert_eq!(store.read_blob(&hash, 64).unwrap(), b"hello world");
    assert_eq!(content(dir.path()).len(), 1);
}

#[test]
fn a_wrong_digest_names_both_and_leaves_nothing() {
    let (dir, store) = store();
    let hash = digest(b"right");
    let mut ingest = store.ingest(&hash, 5).unwrap();
    ingest.write_all(b"wrong").unwrap();
    let error = ingest.commit().unwrap_err();
    let wrong = digest(b"wrong");
    let text = format!("digest mismatch for blob {hash}: expected {hash}, got {wrong}");
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(content(dir.path()).is_empty());
}

#[test]
fn a_wrong_size_is_noticed_early_and_late() {
    let (dir, store) = store();
    let hash = digest(b"hello");
    let mut long = store.ingest(&hash, 5).unwrap();
    long.put(b"hell").unwrap();
    assert!(matches!(
        long.put(b"ooo"),
        Err(ContentError::SizeMismatch { actual: 7, .. })
    ));
    drop(long);
    assert!(content(dir.path()).is_empty());
    let mut short = store.ingest(&hash, 5).unwrap();
    short.put(b"hell").unwrap();
    assert!(matches!(
        short.commit(),
        Err(ContentError::SizeMismatch { actual: 4, .. })
    ));
    assert_eq!(
        store.ingest(&hash, 5).unwrap().offset(),
        4,
        "a short blob is resumed"
    );
}

#[test]
fn stale_partial_data_can_be_thrown_away() {
    let (_dir, store) = store();
    let hash = digest(b"hello");
    store.ingest(&hash, 5).unwrap().put(b"xyz").unwrap();
    let mut again = store.ingest(&hash, 5).unwrap();
    assert_eq!(again.offset(), 3);
    again.restart().unwrap();
    again.put(b"hello").unwrap();
    again.commit().unwrap();
}

#[test]
fn the_second_ingest_of_a_blob_waits_and_reuses() {
    let (_dir, store) = store();
    let hash = digest(b"hello");
    let mut first = store.ingest(&hash, 5).unwrap();
    let (started, wait) = mpsc::channel();
    let other = store.clone();
    let second = thread::spawn(move || {
        started.send(()).unwrap();
        let ingest = other.ingest(&hash, 5).unwrap();
        (ingest.is_present(), ingest.offset())
    });
    wait.recv().unwrap();
    first.put(b"hello").unwrap();
    first.commit().unwrap();
    assert_eq!(second.join().unwrap(), (true, 5));
}

#[test]
fn many_writers_of_one_blob_leave_one() {
    let (dir, store) = store();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store.write_blob(&[7; 100_000]).unwrap());
        }
    });
    assert_eq!(content(dir.path()).len(), 1);
}

#[test]
fn a_full_disk_says_so_and_leaves_nothing() {
    let disk = SmallDisk::new("256k");
    let store = Store::open(&disk.path()).unwrap();
    let bytes = vec![1; 1 << 20];
    let error = store.write_blob(&bytes).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(content(&disk.path()).is_empty());
    store.write_blob(b"small").unwrap();
}

#[test]
fn damaged_blobs_are_not_read() {
    let (_dir, store) = store();
    let hash = store.write_blob(b"hello").unwrap();
    std::fs::write(store.blob_path(&hash), b"jello").unwrap();
    assert!(matches!(
        store.read_blob(&hash, 64),
        Err(ContentError::DigestMismatch { .. })
    ));
    store.write_blob(b"hello").unwrap();
    assert_eq!(store.read_blob(&hash, 64).unwrap(), b"hello");
    assert!(!store.remove_damaged(&hash).unwrap());
    std::fs::write(store.blob_path(&hash), b"jello").unwrap();
    assert!(store.remove_damaged(&hash).unwrap());
    assert_eq!(store.has(&hash).unwrap(), None);
}
