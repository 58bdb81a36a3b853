//! Huge pages, marks on network traffic and RDMA devices. Pure.

use amphora_spec::runtime::{HugepageLimit, NetworkMarks, Resources};

use crate::settings::{Absent, Setting, add};
use crate::{CgroupError, Version};

pub(crate) fn settings(
    out: &mut Vec<Setting>,
    version: Version,
    resources: &Resources,
) -> Result<(), CgroupError> {
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        huge_pages(out, version, limit, index)?;
    }
    if let Some(marks) = &resources.network {
        network(out, version, marks)?;
    }
    for (device, limit) in &resources.rdma {
        let field = format!("linux.resources.rdma[\"{}\"]", device.escape_debug());
        if device.is_empty() || device.contains(char::is_whitespace) {
            return Err(CgroupError::invalid(field, "it is no name of a device"));
        }
        let limits = [
            ("hca_handle", limit.hca_handles),
            ("hca_object", limit.hca_objects),
        ];
        let mut value = device.clone();
        for (key, number) in limits {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        if value != *device {
            add(out, "rdma", "rdma.max", value, field);
        }
    }
    Ok(())
}

/// Both what is in use and what is reserved is limited: a fault on a reserved page that may not be
/// used any more would kill.
fn huge_pages(
    out: &mut Vec<Setting>,
    version: Version,
    limit: &HugepageLimit,
    index: usize,
) -> Result<(), CgroupError> {
    let field = format!("linux.resources.hugepageLimits[{index}]");
    let size = &limit.page_size;
    let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = size.get(digits.len()..).unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || !matches!(unit, "KB" | "MB" | "GB") {
        let reason = format!("\"{}\" is no page size such as 2MB", size.escape_debug());
        return Err(CgroupError::invalid(field, reason));
    }
    let suffixes = match version {
        Version::V1 => ["limit_in_bytes", "rsvd.limit_in_bytes"],
        Version::V2 => ["max", "rsvd.max"],
    };
    for suffix in suffixes {
        let file = format!("hugetlb.{size}.{suffix}");
        add(out, "hugetlb", file, limit.limit.to_string(), field.clone());
        if let (true, Some(last)) = (suffix.starts_with("rsvd"), out.last_mut()) {
            // Kernels before 5.7 reserve without a limit.
            last.absent = Absent::Skip;
        }
    }
    Ok(())
}

fn network(
    out: &mut Vec<Setting>,
    version: Version,
    marks: &NetworkMarks,
) -> Result<(), CgroupError> {
    const CLASS: &str = "linux.resources.network.classID";
    const PRIORITIES: &str = "linux.resources.network.priorities";
    let class = marks.class_id.filter(|class| *class != 0);
    if version == Version::V2 {
        let field = match (class, marks.priorities.is_empty()) {
            (None, true) => return Ok(()),
            (Some(_), _) => CLASS,
            (None, false) => PRIORITIES,
        };
        let field = field.to_owned();
        return Err(CgroupError::Unsupported { field, version });
    }
    if let Some(class) = class {
        add(out, "net_cls", "net_cls.classid", class.to_string(), CLASS);
    }
    for interface in &marks.priorities {
        let value = format!("{} {}", interface.name, interface.priority);
        add(out, "net_prio", "net_prio.ifpriomap", value, PRIORITIES);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(version: Version, json: &str) -> Result<Vec<String>, String> {
        let resources: Resources = serde_json::from_str(json).expect("test input");
        let mut out = Vec::new();
        settings(&mut out, version, &resources).map_err(|error| error.to_string())?;
        let line = |s: Setting| format!("{} {}={}", s.controller, s.file, s.value);
        Ok(out.into_iter().map(line).collect())
    }

    #[test]
    fn each_is_written_in_the_words_of_its_version() {
        let huge = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
        assert_eq!(
            lines(Version::V1, huge).unwrap(),
            [
                "hugetlb hugetlb.2MB.limit_in_bytes=4194304",
                "hugetlb hugetlb.2MB.rsvd.limit_in_bytes=4194304"
            ]
        );
        assert_eq!(
            lines(Version::V2, huge).unwrap(),
            [
                "hugetlb hugetlb.2MB.max=4194304",
                "hugetlb hugetlb.2MB.rsvd.max=4194304"
            ]
        );
        let marks = r#"{"network":{"classID":1048577,"priorities":[
            {"name":"eth0","priority":5},{"name":"lo","priority":7}]}}"#;
        assert_eq!(
            lines(Version::V1, marks).unwrap(),
            [
                "net_cls net_cls.classid=1048577",
                "net_prio net_prio.ifpriomap=eth0 5",
                "net_prio net_prio.ifpriomap=lo 7"
            ]
        );
        let rdma = r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"a":{}}}"#;
        for version in [Version::V1, Version::V2] {
            let want = ["rdma rdma.max=mlx5_1 hca_handle=3 hca_object=10000"];
            assert_eq!(lines(version, rdma).unwrap(), want);
        }
    }

    #[test]
    fn what_is_no_size_and_what_v2_has_not_is_refused_by_name() {
        for size in ["", "2", "MB", "2mb", "2MB/..", "../2MB", "2 MB", "2TB"] {
            let json = format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":1}}]}}"#);
            let error = lines(Version::V1, &json).expect_err(size);
            assert!(
                error.contains("linux.resources.hugepageLimits[0]"),
                "{error}"
            );
        }
        let error = lines(Version::V2, r#"{"network":{"classID":5}}"#).expect_err("v2");
        assert!(error.contains("linux.resources.network.classID"), "{error}");
        let json = r#"{"network":{"priorities":[{"name":"lo","priority":1}]}}"#;
        let error = lines(Version::V2, json).expect_err("v2");
        assert!(
            error.contains("linux.resources.network.priorities"),
            "{error}"
        );
        let error = lines(Version::V1, r#"{"rdma":{"a b":{}}}"#).expect_err("name");
        assert!(error.contains("linux.resources.rdma"), "{error}");
    }
}
