//! An allocator for processes that live for a few milliseconds: memory is handed out from one
//! region in a row, and only the last piece is ever taken back. Two system calls for every size
//! class and a page fault for every other piece, which the system's allocator costs a young
//! process, do not happen.
//!
//! It is off until [`enable`] is called, bounded by [`REGION`] (or [`MORE`]), and falls back to the system's
//! allocator for large pieces and when the region is used up: nothing that runs for long is
//! harmed, and a process that never enables it (a supervisor, a Wasm runner) does not notice.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Bytes handed out before the system's allocator takes over.
const REGION: usize = 256 << 10;
/// What most commands use of it: mapped at once, not page by page.
const USUAL: usize = 96 << 10;
/// Bytes of the larger region that [`enable_more`] adds.
const MORE: usize = 16 << 20;
/// What is mapped of it at once.
const MORE_USUAL: usize = 64 << 10;
/// Pieces from this size on are the system's: they may be given back, or never be touched.
const LARGE: usize = 16 << 10;

/// The next free byte, the first and the last of the region; all 0 while it is off.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static BEGIN: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// The first and the last byte of the small region once the larger one is in its place.
static FORMER_BEGIN: AtomicUsize = AtomicUsize::new(0);
static FORMER_END: AtomicUsize = AtomicUsize::new(0);

/// The program's allocator: `#[global_allocator] static A: Arena = Arena;`.
#[derive(Debug, Clone, Copy)]
pub struct Arena;

/// Turns the region on; for processes that end soon. Without memory for it everything stays as
/// it was.
pub fn enable() {
    enable_for(USUAL);
}

/// As [`enable`], for a process that usually needs this many bytes of it.
pub fn enable_for(usual: usize) {
    if BEGIN.load(Ordering::Relaxed) != 0 {
        return;
    }
    if let Some(begin) = map(REGION, usual.min(REGION)) {
        BEGIN.store(begin, Ordering::Relaxed);
        END.store(begin + REGION, Ordering::Relaxed);
        NEXT.store(begin, Ordering::Release);
    }
}

/// Goes on in a larger region, where [`enable`] was called: for a command that is about to read
/// the records of very many objects, prints them and ends. To be called once, while the process
/// has one thread.
pub fn enable_more() {
    if BEGIN.load(Ordering::Relaxed) == 0 || FORMER_BEGIN.load(Ordering::Relaxed) != 0 {
        return;
    }
    if let Some(begin) = map(MORE, MORE_USUAL) {
        FORMER_BEGIN.store(BEGIN.load(Ordering::Relaxed), Ordering::Relaxed);
        FORMER_END.store(END.load(Ordering::Relaxed), Ordering::Relaxed);
        BEGIN.store(begin, Ordering::Relaxed);
        END.store(begin + MORE, Ordering::Relaxed);
        NEXT.store(begin, Ordering::Release);
    }
}

/// Maps a region, its first part at once; returns its address.
fn map(size: usize, usual: usize) -> Option<usize> {
    let flags = MapFlags::PRIVATE;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let region = unsafe { mmap_anonymous(null_mut(), size, protection, flags) }.ok()?;
    // SAFETY: the first part of the mapping, which nobody uses yet; a refusal changes nothing.
    let _ = unsafe { madvise(region, usual, Advice::LinuxPopulateWrite) };
    Some(region.expose_provenance())
}

/// Takes the next piece; null when it does not fit.
fn take(layout: Layout) -> *mut u8 {
    if layout.size() >= LARGE {
        return null_mut();
    }
    let mut next = NEXT.load(Ordering::Acquire);
    while next != 0 {
        let begin = next.next_multiple_of(layout.align());
        let end = begin + layout.size();
        if end > END.load(Ordering::Relaxed) {
            break;
        }
        match NEXT.compare_exchange_weak(next, end, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return std::ptr::with_exposed_provenance_mut(begin),
            Err(now) => next = now,
        }
    }
    null_mut()
}

/// Says whether a piece is of a region.
fn ours(piece: *mut u8) -> bool {
    let address = piece.addr();
    // An empty region holds nothing.
    [(&BEGIN, &END), (&FORMER_BEGIN, &FORMER_END)]
        .iter()
        .any(|(begin, end)| {
            (begin.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&address)
        })
}

/// Moves the end of the last piece; `false` when it is not the last.
fn move_end(piece: *mut u8, old: usize, new: usize) -> bool {
    let begin = piece.addr();
    BEGIN.load(Ordering::Relaxed) <= begin
        && begin + new <= END.load(Ordering::Relaxed)
        && NEXT
            .compare_exchange(
                begin + old,
                begin + new,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
}

// SAFETY: every piece lies in the region or comes from the system's allocator, which also gets
// it back; pieces of the region never overlap, because its free end only moves by exchange.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let piece = take(layout);
        if !piece.is_null() {
            return piece;
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let piece = take(layout);
        if piece.is_null() {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the piece is this long. It may have been somebody's before.
        unsafe { piece.write_bytes(0, layout.size()) };
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if ours(piece) {
            move_end(piece, layout.size(), 0);
            return;
        }
        // SAFETY: it is not of the region, so the system's allocator made it.
        unsafe { System.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ours(piece) {
            // SAFETY: it is not of the region, so the system's allocator made it.
            return unsafe { System.realloc(piece, layout, size) };
        }
        if size <= layout.size() || move_end(piece, layout.size(), size) {
            return piece;
        }
        // SAFETY: the caller promises that the new size is a valid one for this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0: it is larger than the old one.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both pieces are at least this long, and apart.
            unsafe { piece.copy_to_nonoverlapping(new, layout.size()) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allocations of all sizes, kept and freed in odd orders by several threads at once.
    #[test]
    fn pieces_never_overlap_and_keep_what_they_hold() {
        enable();
        let fill = |seed: u8| {
            move || {
                let arena = Arena;
                let mut kept: Vec<(*mut u8, Layout, u8)> = Vec::new();
                for round in 0..2000_usize {
                    let mark = seed.wrapping_add(round as u8);
                    let size = 1 + (round * 37) % 700 + if round % 97 == 0 { 20_000 } else { 0 };
                    let layout = Layout::from_size_align(size, 1 << (round % 7)).unwrap();
                    // SAFETY: a valid layout of a size above 0.
                    let mut piece = unsafe { arena.alloc_zeroed(layout) };
                    assert_eq!(piece.addr() % layout.align(), 0);
                    // SAFETY: the piece is this long and zeroed.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(piece, size) };
                    assert!(bytes.iter().all(|b| *b == 0));
                    bytes.fill(mark);
                    let mut layout = layout;
                    if round % 3 == 0 {
                        // SAFETY: the piece was allocated with this layout.
                        piece = unsafe { arena.realloc(piece, layout, size + 50) };
                        layout = Layout::from_size_align(size + 50, layout.align()).unwrap();
                        // SAFETY: the piece is this long now.
                        let bytes = unsafe { std::slice::from_raw_parts_mut(piece, size + 50) };
                        bytes[size..].fill(mark);
                    }
                    kept.push((piece, layout, mark));
                    if round % 5 < 3 {
                        let (piece, layout, mark) = kept.swap_remove(round % kept.len());
                        // SAFETY: the piece is this long.
                        let bytes = unsafe { std::slice::from_raw_parts(piece, layout.size()) };
                        assert!(bytes.iter().all(|b| *b == mark));
                        // SAFETY: allocated with this layout, and freed once.
                        unsafe { arena.dealloc(piece, layout) };
                    }
                }
                for (piece, layout, mark) in kept {
                    // SAFETY: the piece is this long.
                    let bytes = unsafe { std::slice::from_raw_parts(piece, layout.size()) };
                    assert!(bytes.iter().all(|b| *b == mark));
                    // SAFETY: allocated with this layout, and freed once.
                    unsafe { arena.dealloc(piece, layout) };
                }
            }
        };
        let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(fill(n * 50))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(NEXT.load(Ordering::Relaxed) > BEGIN.load(Ordering::Relaxed));

        let arena = Arena;
        let layout = Layout::from_size_align(100, 8).unwrap();
        NEXT.store(BEGIN.load(Ordering::Relaxed), Ordering::Relaxed);
        // SAFETY: a valid layout of a size above 0.
        let old = unsafe { arena.alloc_zeroed(layout) };
        // SAFETY: the piece is this long.
        unsafe { old.write_bytes(7, 100) };
        enable_more();
        assert!(ours(old), "pieces of the former region are known");
        // SAFETY: the piece was allocated with this layout.
        let new = unsafe { arena.realloc(old, layout, 200) };
        assert!(BEGIN.load(Ordering::Relaxed) <= new.addr());
        // SAFETY: the piece is this long.
        let bytes = unsafe { std::slice::from_raw_parts(new, 100) };
        assert!(bytes.iter().all(|b| *b == 7));
        // SAFETY: allocated with this layout, and freed once.
        unsafe { arena.dealloc(old, layout) };
    }
}
