//! Attacks on container runtimes that have a CVE, carried out against ours, where they must fail,
//! and against a deliberately naive runtime, where the same attack must succeed: a few lines of
//! shell that do the step by paths, as the runtimes of the time did. Both faces, where both can be
//! asked for it: `amphora-runc`, and `amphora run` and `exec`.
//!
//! | CVE | attack | test |
//! |---|---|---|
//! | 2016-9962 | a process that enters is looked into from inside | `inside::who_enters_brings_no_descriptor` |
//! | 2018-15664, 2019-14271 | `cp` through links, with the container's libraries | `copy.rs` |
//! | 2019-5736 | the runtime's file is overwritten from inside | `runc::the_runtime_cannot_be_overwritten_from_inside` |
//! | 2019-16884 | labels are written to a `/proc` of the image's | `paths::a_proc_of_the_image_is_not_written_to` |
//! | 2019-19921, 2023-27561, 2023-28642 | `/proc` or `/sys` is a link | `paths::proc_and_sys_are_not_mounted_behind_a_link` |
//! | 2020-15257 | an abstract socket of the engine's in the host's network | `inside::no_abstract_socket_is_there_to_talk_to` |
//! | 2021-30465, 2024-45310 | a mount's target is swapped for a link | `paths::a_target_swapped_for_a_link_leads_nowhere` |
//! | 2021-43784 | a length overflows in a netlink message of runc's bootstrap | not applicable: a plan has no such message; its numbers are checked when they are read |
//! | 2022-0185 | `fsconfig` by a user who made a namespace | `inside::nobody_gets_to_fsconfig` |
//! | 2022-0492 | `release_agent` of a v1 hierarchy | `inside::no_release_agent_is_written` |
//! | 2022-24769, 2022-29162, 2022-27649 | inheritable capabilities | `inside::nothing_is_inheritable` |
//! | 2024-21626 | a working directory through a descriptor of the host | `paths::no_directory_of_the_host_is_worked_in` |
//! | 2024-40635 | a user id that overflows to 0 | `inside::a_user_id_does_not_overflow` |
//! | 2025-31133 | masking with the image's `/dev/null` | `paths::masks_do_not_come_from_the_image` |
//! | 2025-52565 | `/dev/console` leads elsewhere | `paths::the_console_is_mounted_where_it_says` |
//! | 2025-52881 | a write to `/proc` is led elsewhere | `paths::a_proc_of_the_image_is_not_written_to` |

mod inside;
mod paths;

use std::path::PathBuf;
use std::process::Command;

use crate::runc::World;
use crate::sandbox::{Output, Sandbox, finish, path};

/// A step of a naive runtime, in a mount namespace of its own: `$D` is the test's directory, `$R`
/// the root file system, `$O` what is outside of it.
fn naive(w: &World, script: &str) -> Output {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("D", &w.s.dir)
        .env("R", w.s.dir.join("rootfs"))
        .env("O", outside(w));
    finish(command)
}

/// A directory of the host that no container is to reach.
fn outside(w: &World) -> PathBuf {
    w.s.dir.join("outside")
}

/// A world with something outside of the root file system.
fn world() -> World {
    let w = World::ours();
    std::fs::create_dir_all(outside(&w)).unwrap();
    std::fs::write(outside(&w).join("secret"), "of the host\n").unwrap();
    for applet in ["mkdir", "touch", "mount", "unshare", "grep", "stat", "test"] {
        let link = w.s.dir.join("rootfs/bin").join(applet);
        std::os::unix::fs::symlink("busybox", link).unwrap();
    }
    w
}

/// The same with an image `bb` for the engine's own face.
fn world_with_image() -> World {
    let mut w = world();
    load(&w.s, &crate::fixtures::busybox_image("bb"));
    // The bridge and what else stays.
    w.s.run(&["run", "--rm", "bb", "true"]).ok();
    w.s.settle();
    w.s.mark();
    w
}

fn load(s: &Sandbox, image: &crate::fixtures::Image) {
    let archive = s.dir.join("bb.tar");
    image.write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
}
