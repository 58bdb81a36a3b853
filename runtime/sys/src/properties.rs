//! Properties of a process that a plan may ask for: execution domain, scheduling, I/O priority,
//! CPUs, and the labels of security modules.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::raw::{Sys, check};
use crate::walk::{self, Confine};

/// What `sched_setattr(2)` is to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Of the normal policies.
    pub nice: i32,
    /// Of the real-time policies.
    pub priority: u32,
    /// Nanoseconds: runtime, deadline, period.
    pub times: [u64; 3],
}

pub(crate) fn schedule(wanted: &Scheduling) -> Sys<()> {
    /// `struct sched_attr`, with the bounds of utilisation.
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        times: [u64; 3],
        bounds: [u32; 2],
    }
    let attr = SchedAttr {
        size: 56,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        times: wanted.times,
        bounds: [0; 2],
    };
    // SAFETY: the structure outlives the call and carries its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0 as c_long,
            std::ptr::from_ref(&attr),
            0 as c_long,
        )
    })?;
    Ok(())
}

pub(crate) fn io_priority(value: u32) -> Sys<()> {
    const IOPRIO_WHO_PROCESS: c_long = 1;
    // SAFETY: plain integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0 as c_long,
            c_long::from(value),
        )
    })?;
    Ok(())
}

pub(crate) fn personality(domain: u32) -> Sys<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::syscall(libc::SYS_personality, c_long::from(domain)) })?;
    Ok(())
}

pub(crate) fn affinity(mask: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length of a borrowed slice.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0 as c_long,
            mask.len(),
            mask.as_ptr(),
        )
    })?;
    Ok(())
}

/// Has the calling thread run on the CPUs of a mask (bit 0 of byte 0 is CPU 0) only.
///
/// # Errors
/// What `sched_setaffinity(2)` answers: `EINVAL` when it may run on none of them.
pub fn set_affinity(mask: &[u8]) -> io::Result<()> {
    Ok(affinity(mask)?)
}

/// Writes a label to the first of `files` that is there, below `proc`. It must be the kernel's own
/// file: what is written to another would confine nothing (CVE-2019-16884, CVE-2025-52881).
pub(crate) fn write_label(proc: BorrowedFd<'_>, files: &[CString], label: &[u8]) -> Sys<()> {
    let mut last = Errno::NOENT;
    for path in files {
        let file = match walk::open(proc, path, Confine::Beneath, OFlags::WRONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if rustix::fs::fstatfs(&file)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
            return Err(Errno::NODEV);
        }
        match rustix::io::write(file.as_fd(), label) {
            Ok(written) if written == label.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            // Without the module behind it the file is there and takes nothing.
            Err(Errno::INVAL) => last = Errno::INVAL,
            Err(errno) => return Err(errno),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<CString> {
        list.iter()
            .map(|name| CString::new(*name).unwrap())
            .collect()
    }

    /// Another file of procfs stands for the attribute that this kernel may not have.
    #[test]
    fn a_label_is_written_to_the_first_file_that_is_there() {
        let thread = std::thread::spawn(|| {
            let proc = crate::mount::new_fs(c"proc", Some("proc"), &[], 0).unwrap();
            let files = names(&["thread-self/no-such", "thread-self/comm"]);
            write_label(proc.as_fd(), &files, b"exec some").unwrap();
            let comm = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(comm, "exec some\n");
            let missing = names(&["thread-self/no-such"]);
            let failed = write_label(proc.as_fd(), &missing, b"x");
            assert_eq!(failed, Err(Errno::NOENT));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_label_is_not_written_to_a_file_of_somebody_elses() {
        let fake = crate::mount::new_fs(c"tmpfs", None, &[], 0).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&fake, c"exec", flags, mode).unwrap();
        let failed = write_label(fake.as_fd(), &names(&["exec"]), b"label");
        assert_eq!(failed, Err(Errno::NODEV));
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 0);
        // Nor through a link that leaves procfs's own tree.
        let link = rustix::fs::symlinkat(c"/proc/self/comm", &fake, c"link");
        link.unwrap();
        let failed = write_label(fake.as_fd(), &names(&["link"]), b"label");
        assert_eq!(failed, Err(Errno::XDEV));
    }

    #[test]
    fn scheduling_io_priority_and_cpus_are_set() {
        let thread = std::thread::spawn(|| {
            let batch = Scheduling {
                policy: 3,
                nice: 5,
                ..Scheduling::default()
            };
            schedule(&batch).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let rest = stat.rsplit_once(") ").unwrap().1;
            let fields: Vec<&str> = rest.split(' ').collect();
            // nice and policy, fields 19 and 41 of the whole line.
            assert_eq!((fields[16], fields[38]), ("5", "3"));
            io_priority(2 << 13 | 6).unwrap();
            set_affinity(&[1]).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
            assert!(set_affinity(&[0]).is_err());
            personality(8).unwrap();
            let domain = std::fs::read_to_string("/proc/thread-self/personality").unwrap();
            assert_eq!(domain, "00000008\n");
        });
        thread.join().unwrap();
    }
}
