//! The shared plan, less what a guest must not have.

use amphora_sys::LaunchPlan;
use amphora_sys::plan::{CapSets, Dir, Op, Place, Reg};

/// `RLIMIT_AS`: a Wasm memory reserves more address space than it uses.
const RLIMIT_AS: u32 = 9;

/// Takes every view of the kernel out of a plan, and every capability.
///
/// A guest reaches whatever is mounted below its root. Through `/proc/self/mem` it would write
/// the memory of its own runner, and `/sys` is nothing it could use. `/proc` is still made, kept
/// detached: steps that set parameters write through its descriptor.
pub(crate) fn hide_kernel(plan: &mut LaunchPlan) {
    plan.ops.retain_mut(|op| match op {
        Op::NewFs {
            fstype,
            at,
            keep: Some(Reg::Proc),
            ..
        } if fstype.as_bytes() == b"proc" => {
            *at = None;
            true
        }
        Op::NewFs { fstype, .. } if is_kernel(fstype.as_bytes()) => false,
        Op::NewFs { at: Some(at), .. }
        | Op::Attach { at, .. }
        | Op::SetAttr { at, .. }
        | Op::Make { at }
        | Op::Symlink { at, .. }
        | Op::Mknod { at, .. }
        | Op::ReadonlyPath { at }
        | Op::MaskPath { at } => !in_kernel(at),
        Op::Rlimit { resource, .. } => *resource != RLIMIT_AS,
        Op::BoundingSet(bounding) => {
            *bounding = 0;
            true
        }
        Op::Capabilities(sets) => {
            *sets = CapSets::default();
            true
        }
        _ => true,
    });
}

fn is_kernel(fstype: &[u8]) -> bool {
    matches!(
        fstype,
        b"proc" | b"sysfs" | b"cgroup" | b"cgroup2" | b"debugfs" | b"mqueue"
    )
}

/// Says whether a place lies in a file system that is not there any more.
fn in_kernel(place: &Place) -> bool {
    match place.dir {
        Dir::Reg(Reg::Proc | Reg::Sys | Reg::Cgroup) => true,
        Dir::Reg(_) => false,
        Dir::Root => {
            let path = place.path.as_bytes();
            [&b"/proc"[..], b"/sys"].iter().any(|top| {
                path.strip_prefix(*top)
                    .is_some_and(|rest| rest.first().is_none_or(|&c| c == b'/'))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use amphora_sys::plan::Create;

    use super::*;

    fn fs(fstype: &CStr, path: &CStr, keep: Option<Reg>) -> Op {
        Op::NewFs {
            fstype: fstype.to_owned(),
            source: None,
            options: Vec::new(),
            attr: 0,
            at: Some(Place::root(path.to_owned(), Create::Dir)),
            keep,
            inherit_mode: false,
        }
    }

    fn mask(dir: Reg, path: &CStr) -> Op {
        Op::MaskPath {
            at: Place::reg(dir, path.to_owned(), Create::No),
        }
    }

    #[test]
    fn proc_is_detached_and_sys_is_gone() {
        let write = || Op::WriteProc {
            path: c"sys/net/x".to_owned(),
            value: vec![b'1'],
        };
        let kcore = Op::Symlink {
            target: c"/proc/kcore".to_owned(),
            at: Place::reg(Reg::Dev, c"core".to_owned(), Create::No),
        };
        let mut plan = LaunchPlan {
            ops: vec![
                fs(c"proc", c"/proc", Some(Reg::Proc)),
                fs(c"proc", c"/other", None),
                fs(c"sysfs", c"/sys", Some(Reg::Sys)),
                fs(c"tmpfs", c"/sys/fs/cgroup", Some(Reg::Cgroup)),
                fs(c"tmpfs", c"/system", None),
                kcore.clone(),
                Op::Attach {
                    mount: 0,
                    at: Place::root(c"/sys/fs".to_owned(), Create::Dir),
                },
                Op::Attach {
                    mount: 0,
                    at: Place::root(c"/data".to_owned(), Create::Dir),
                },
                mask(Reg::Proc, c"kcore"),
                mask(Reg::Sys, c"firmware"),
                write(),
            ],
            ..LaunchPlan::default()
        };
        hide_kernel(&mut plan);
        let mut detached = fs(c"proc", c"/proc", Some(Reg::Proc));
        if let Op::NewFs { at, .. } = &mut detached {
            *at = None;
        }
        let data = Op::Attach {
            mount: 0,
            at: Place::root(c"/data".to_owned(), Create::Dir),
        };
        assert_eq!(
            plan.ops,
            [
                detached,
                fs(c"tmpfs", c"/system", None),
                kcore,
                data,
                write()
            ]
        );
    }

    #[test]
    fn no_capability_and_no_bound_on_address_space_stay() {
        let all = CapSets {
            effective: 7,
            permitted: 7,
            inheritable: 7,
            ambient: 7,
        };
        let files = Op::Rlimit {
            resource: 7,
            soft: 1,
            hard: 1,
        };
        let mut plan = LaunchPlan {
            ops: vec![
                Op::Rlimit {
                    resource: RLIMIT_AS,
                    soft: 1,
                    hard: 1,
                },
                files.clone(),
                Op::BoundingSet(7),
                Op::Capabilities(all),
            ],
            ..LaunchPlan::default()
        };
        hide_kernel(&mut plan);
        let none = Op::Capabilities(CapSets::default());
        assert_eq!(plan.ops, [files, Op::BoundingSet(0), none]);
    }
}
