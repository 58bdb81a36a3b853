//! Labels of security modules, applied where the host has the module and refused where not.

use std::ffi::CString;
use std::path::Path;

use amphora_spec::runtime::Process;
use amphora_sys::plan::Op;

use crate::ExecutorError;
use crate::base::cstr;

type Result<T = ()> = std::result::Result<T, ExecutorError>;

/// Says whether the host has AppArmor turned on.
#[must_use]
pub fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it.starts_with(b"Y"))
}

/// Says whether the host has SELinux turned on.
#[must_use]
pub fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn refused<T>(field: &str, module: &str) -> Result<T> {
    Err(ExecutorError::Unsupported {
        field: field.to_owned(),
        detail: format!(": the host has no {module}"),
    })
}

/// Refuses `linux.mountLabel` where nothing would come of it.
pub(crate) fn check_mounts(label: &str) -> Result {
    if label.contains('\0') {
        return Err(ExecutorError::Invalid(
            "linux.mountLabel: contains a null byte".into(),
        ));
    }
    if !label.is_empty() && !selinux() {
        return refused("linux.mountLabel", "SELinux");
    }
    Ok(())
}

/// The steps that have the program labelled.
pub(crate) fn steps(process: &Process) -> Result<Vec<Op>> {
    if process.apparmor_profile.is_empty() && process.selinux_label.is_empty() {
        return Ok(Vec::new());
    }
    labels(process, apparmor(), selinux())
}

fn labels(process: &Process, apparmor: bool, selinux: bool) -> Result<Vec<Op>> {
    let mut steps = Vec::new();
    let profile = process.apparmor_profile.as_str();
    if !profile.is_empty() {
        if !apparmor {
            return refused("process.apparmorProfile", "AppArmor");
        }
        cstr(profile)?;
        // Kernels before 5.8 have no file of AppArmor's own beside other modules.
        steps.push(Op::LsmLabel {
            files: files(["self/attr/apparmor/exec", "self/attr/exec"]),
            label: format!("exec {profile}").into_bytes(),
        });
    }
    let label = process.selinux_label.as_str();
    if !label.is_empty() {
        if !selinux {
            return refused("process.selinuxLabel", "SELinux");
        }
        cstr(label)?;
        steps.push(Op::LsmLabel {
            files: files(["self/attr/exec"]),
            label: label.as_bytes().to_vec(),
        });
    }
    Ok(steps)
}

fn files<const N: usize>(names: [&str; N]) -> Vec<CString> {
    let names = names.into_iter();
    names.filter_map(|name| CString::new(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            apparmor_profile: "docker-default".into(),
            selinux_label: "system_u:system_r:container_t:s0:c1,c2".into(),
            ..Process::default()
        }
    }

    #[test]
    fn labels_go_to_the_modules_own_files() {
        let steps = labels(&process(), true, true).unwrap();
        let expected = [
            Op::LsmLabel {
                files: vec![
                    c"self/attr/apparmor/exec".to_owned(),
                    c"self/attr/exec".to_owned(),
                ],
                label: b"exec docker-default".to_vec(),
            },
            Op::LsmLabel {
                files: vec![c"self/attr/exec".to_owned()],
                label: b"system_u:system_r:container_t:s0:c1,c2".to_vec(),
            },
        ];
        assert_eq!(steps, expected);
        assert!(
            labels(&Process::default(), false, false)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_label_that_nothing_would_come_of_is_refused_by_field() {
        let text = |aa, se| labels(&process(), aa, se).unwrap_err().to_string();
        assert_eq!(
            text(false, true),
            "\"process.apparmorProfile\" is not supported: the host has no AppArmor"
        );
        assert!(text(true, false).contains("process.selinuxLabel"));
    }
}
