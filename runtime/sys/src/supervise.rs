//! What a supervisor needs from the kernel beyond rustix: descriptors handed over through exec,
//! open-file-description locks, blocked signals, and buffers whose pages go back when they are
//! idle.

use std::ffi::CString;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes ownership of a descriptor that this process was started with, and makes it
/// close-on-exec. To be called once per number, at the very start of `main`, before anything
/// else can have been given that number.
///
/// # Errors
/// `EBADF` when nothing was inherited under that number.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; fails with EBADF on a closed descriptor.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open (checked above) and, by this function's contract, owned by
    // nobody else in this freshly started process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    // SAFETY: `flock` is plain integers; all zeroes means "from the start to the end".
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or(0);
    lock
}

/// Takes the exclusive lock of the open file description without waiting; `false` when somebody
/// else holds it. The lock lives as long as any descriptor of this description, through exec and
/// `SCM_RIGHTS`.
///
/// # Errors
/// What `fcntl(F_OFD_SETLK)` answers.
pub fn ofd_try_lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: `lock` is initialised and outlives the call.
    let result =
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(&lock)) };
    match check(result) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the exclusive lock of the open file description, waiting for it.
///
/// # Errors
/// What `fcntl(F_OFD_SETLKW)` answers.
pub fn ofd_lock(fd: BorrowedFd<'_>) -> io::Result<()> {
    let lock = whole_file(libc::F_WRLCK);
    loop {
        // SAFETY: `lock` is initialised and outlives the call.
        let result = unsafe {
            libc::fcntl(
                fd.as_raw_fd(),
                libc::F_OFD_SETLKW,
                std::ptr::from_ref(&lock),
            )
        };
        match check(result) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Says whether another open file description holds the lock; takes nothing, disturbs nobody.
///
/// # Errors
/// What `fcntl(F_OFD_GETLK)` answers.
pub fn ofd_locked(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file(libc::F_WRLCK);
    // SAFETY: `lock` is initialised, writable and outlives the call.
    check(unsafe {
        libc::fcntl(
            fd.as_raw_fd(),
            libc::F_OFD_GETLK,
            std::ptr::from_mut(&mut lock),
        )
    })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// The stack that a caller of [`release_program`] and the functions below it may be using: left
/// alone.
const STACK_IN_USE: usize = 4 << 10;
/// The stack below that which may have been used before: what the kernel gives at exec.
const STACK_BELOW: usize = 120 << 10;
const PAGE: usize = 4 << 10;

/// Gives back the pages that only startup or a burst of work needed: the program's own code and
/// constants, which come back from the page cache with the next touch (a few microseconds for all
/// of it), and the stack below what is in use. For a process that is about to sleep for long.
pub fn release_program() {
    // SAFETY: no arguments of memory; the value is the address of the program headers or 0.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    // SAFETY: as above.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) };
    let (Ok(address), Ok(count)) = (usize::try_from(headers), usize::try_from(count)) else {
        return;
    };
    let headers = std::ptr::with_exposed_provenance::<libc::Elf64_Phdr>(address);
    for index in 0..if address == 0 { 0 } else { count } {
        // SAFETY: the kernel says where this program's headers are mapped, and how many.
        let header = unsafe { &*headers.wrapping_add(index) };
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // A program of fixed addresses: what its headers say is where it is.
        let (Ok(start), Ok(len)) = (
            usize::try_from(header.p_vaddr),
            usize::try_from(header.p_memsz),
        ) else {
            continue;
        };
        forget(start & !(PAGE - 1), start + len);
    }
    let here = std::ptr::from_ref(&headers).addr();
    forget(
        (here - STACK_BELOW) & !(PAGE - 1),
        (here - STACK_IN_USE) & !(PAGE - 1),
    );
}

/// Drops the pages between two addresses, as far as something is mapped there. Clean file pages
/// come back as they were, anonymous ones as zeroes.
fn forget(start: usize, end: usize) {
    let start_pointer = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: called for mappings of the program's file that are never written to, and for stack
    // that no function is using.
    unsafe { libc::madvise(start_pointer, end - start, libc::MADV_DONTNEED) };
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: `sigset_t` is plain integers.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is initialised; an invalid number is refused with EINVAL.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let result = unsafe {
        libc::pthread_sigmask(
            libc::SIG_SETMASK,
            std::ptr::from_ref(set),
            std::ptr::null_mut(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Blocks every signal of the calling thread that can be blocked.
///
/// # Errors
/// What `pthread_sigmask` answers.
pub fn block_all_signals() -> io::Result<()> {
    let mut set = signal_set(&[]);
    // SAFETY: `set` is writable.
    unsafe { libc::sigfillset(&raw mut set) };
    set_mask(&set)
}

/// Unblocks every signal of the calling thread.
///
/// # Errors
/// What `pthread_sigmask` answers.
pub fn unblock_all_signals() -> io::Result<()> {
    set_mask(&signal_set(&[]))
}

/// Signals of this thread, blocked and read from a descriptor instead; unblocked again on drop.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    signals: Vec<i32>,
}

impl SignalFd {
    /// Blocks `signals` for the calling thread and opens a non-blocking descriptor for them.
    ///
    /// # Errors
    /// What `pthread_sigmask` and `signalfd` answer.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        // SAFETY: `set` is initialised; a new descriptor is asked for.
        let raw = check(unsafe {
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        })?;
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self {
            fd,
            signals: signals.to_vec(),
        })
    }

    /// Takes the next pending signal, if there is one.
    ///
    /// # Errors
    /// What `read(2)` answers.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info[..]) {
            Ok(n) if n >= 4 => Ok(Some(i32::from_ne_bytes([
                info[0], info[1], info[2], info[3],
            ]))),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        let set = signal_set(&self.signals);
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    }
}

/// Replaces this process by `exe`, with an empty environment and every signal unblocked; `keep`
/// stays open under the number `at`. Returns only on failure, after which the process should end:
/// whatever had the number `at` is gone.
pub fn exec_in_place(
    exe: BorrowedFd<'_>,
    argv: &[CString],
    keep: BorrowedFd<'_>,
    at: RawFd,
) -> io::Error {
    match try_exec(exe, argv, keep, at) {
        Err(e) => e,
        Ok(()) => io::Error::last_os_error(),
    }
}

fn try_exec(
    exe: BorrowedFd<'_>,
    argv: &[CString],
    keep: BorrowedFd<'_>,
    at: RawFd,
) -> io::Result<()> {
    unblock_all_signals()?;
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: plain integers.
    let exe = check(unsafe { libc::fcntl(exe.as_raw_fd(), libc::F_DUPFD_CLOEXEC, at + 1) })?;
    // SAFETY: plain integers.
    let keep = check(unsafe { libc::fcntl(keep.as_raw_fd(), libc::F_DUPFD_CLOEXEC, at + 1) })?;
    // SAFETY: plain integers; the contract of `exec_in_place` says that `at` may be taken over.
    check(unsafe { libc::dup3(keep, at, 0) })?;
    // SAFETY: both arrays end in a null pointer, their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            exe,
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Ok(())
}

/// Anonymous memory that costs nothing until it is touched and nothing after [`PageBuf::release`].
#[derive(Debug)]
pub struct PageBuf {
    start: NonNull<u8>,
    len: usize,
}

impl PageBuf {
    /// Maps `len` bytes of zeroes.
    ///
    /// # Errors
    /// What `mmap(2)` answers.
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Gives the pages back to the kernel; the contents become zeroes.
    pub fn release(&mut self) {
        // SAFETY: the range is our own private anonymous mapping; `&mut self` excludes readers.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` writable bytes, alive as long as `self` and borrowed once.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PageBuf {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
