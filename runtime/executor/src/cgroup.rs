//! How a plan's child gets into the container's cgroup.

use amphora_cgroup::Cgroup;
use amphora_sys::plan::{LaunchPlan, Op};

use crate::ExecutorError;

/// Has the child be born in a cgroup (v2), or go there as the plan's next step (v1).
///
/// # Errors
/// What opening the v1 `tasks` files answers.
pub fn enter(cgroup: &Cgroup, plan: &mut LaunchPlan) -> Result<(), ExecutorError> {
    let directory = cgroup
        .launch_fd()
        .map(|fd| fd.try_clone_to_owned())
        .transpose();
    let directory = directory.map_err(ExecutorError::kernel("hold the cgroup"))?;
    plan.cgroup = directory.map(|fd| plan.add_fd(fd));
    for tasks in cgroup.tasks_fds()? {
        let tasks = plan.add_fd(tasks);
        plan.ops.push(Op::JoinCgroup { tasks });
    }
    Ok(())
}
