//! The child's steps about properties of its process, and others that are seldom asked for.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::child::Child;
use crate::mount::{MountAttr, set_attr};
use crate::plan::Op;
use crate::properties;
use crate::raw::{self, Sys};

impl Child<'_> {
    pub(crate) fn property_step(&self, op: &Op) -> Sys<()> {
        match op {
            Op::Personality(domain) => properties::personality(*domain),
            Op::Scheduler(wanted) => properties::schedule(wanted),
            Op::IoPriority(value) => properties::io_priority(*value),
            Op::CpuAffinity(mask) => properties::affinity(mask),
            Op::LsmLabel { files, label } => {
                // One of our own, attached nowhere: nobody can have put anything over it.
                let proc = self.new_fs(c"proc", Some(c"proc"), &[], 0)?;
                properties::write_label(proc.as_fd(), files, label)
            }
            Op::SeccompListen { filter, flags, ack } => {
                let ack = ack.ok_or(Errno::BADF)?;
                let listener = raw::load_seccomp(filter, *flags)?;
                // From here on somebody else may decide on every call but `write`: the number goes
                // through memory, and its descriptor is fetched from outside.
                let number = u32::try_from(listener).map_err(|_| Errno::BADF)?;
                self.report.detail.store(number, Ordering::Release);
                self.wait(ack)?;
                self.report.detail.store(0, Ordering::Release);
                Ok(())
            }
            Op::ChangeMount {
                at,
                set,
                clear,
                propagation,
            } => {
                let change = MountAttr {
                    attr_set: *set,
                    attr_clr: *clear,
                    propagation: *propagation,
                    ..MountAttr::default()
                };
                set_attr(self.ensure(at)?.as_fd(), false, &change)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
            _ => Err(Errno::NOSYS),
        }
    }
}
