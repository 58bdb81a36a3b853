//! Limits on block devices: `blkio` on v1, `io` on v2. Pure.

use amphora_spec::runtime::{BlockIo, ThrottleDevice};

use crate::settings::{Absent, Setting, add, last_absent};
use crate::{CgroupError, Version};

/// One kind of rate: v1 file, v2 key, field, rates.
type Rate<'a> = (
    &'static str,
    &'static str,
    &'static str,
    &'a [ThrottleDevice],
);

/// Adds the settings. Weights are those of the BFQ scheduler where it is; else v2 has others, of
/// another range, and v1 those of CFQ (before kernel 5.0).
pub(crate) fn settings(
    out: &mut Vec<Setting>,
    version: Version,
    io: &BlockIo,
) -> Result<(), CgroupError> {
    let (controller, weight) = match version {
        Version::V1 => ("blkio", "blkio.bfq.weight"),
        Version::V2 => ("io", "io.bfq.weight"),
    };
    if let Some(value) = given(io.weight) {
        let field = "linux.resources.blockIO.weight";
        add(out, controller, weight, value.to_string(), field);
        let other = match version {
            Version::V1 => Absent::Instead("blkio.weight", value.to_string()),
            Version::V2 => Absent::Instead("io.weight", of_ten_thousand(value).to_string()),
        };
        last_absent(out, other);
    }
    if let Some(value) = given(io.leaf_weight) {
        let field = "linux.resources.blockIO.leafWeight";
        leaf(out, version, "blkio.leaf_weight", value.to_string(), field)?;
    }
    for device in &io.weight_device {
        let number = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = given(device.weight) {
            let value = format!("{number} {weight}");
            let field = "linux.resources.blockIO.weightDevice";
            let (file, other) = match version {
                Version::V1 => ("blkio.bfq.weight_device", "blkio.weight_device"),
                Version::V2 => ("io.bfq.weight", "io.weight"),
            };
            let instead = match version {
                Version::V1 => value.clone(),
                Version::V2 => format!("{number} {}", of_ten_thousand(weight)),
            };
            add(out, controller, file, value, field);
            last_absent(out, Absent::Instead(other, instead));
        }
        if let Some(weight) = given(device.leaf_weight) {
            let field = "linux.resources.blockIO.weightDevice.leafWeight";
            let value = format!("{number} {weight}");
            leaf(out, version, "blkio.leaf_weight_device", value, field)?;
        }
    }
    for (file, key, field, devices) in rates(io) {
        for ThrottleDevice { major, minor, rate } in devices {
            match version {
                Version::V1 => {
                    add(
                        out,
                        controller,
                        file,
                        format!("{major}:{minor} {rate}"),
                        field,
                    );
                }
                Version::V2 => {
                    let value = format!("{major}:{minor} {key}={rate}");
                    add(out, controller, "io.max", value, field);
                }
            }
        }
    }
    Ok(())
}

fn given(weight: Option<u16>) -> Option<u16> {
    weight.filter(|weight| *weight != 0)
}

/// From 10 to 1000, as runc and crun do it: 1 to 10000.
fn of_ten_thousand(weight: u16) -> u32 {
    1 + (u32::from(weight).saturating_sub(10) * 9999) / 990
}

fn leaf(
    out: &mut Vec<Setting>,
    version: Version,
    file: &'static str,
    value: String,
    field: &'static str,
) -> Result<(), CgroupError> {
    if version == Version::V2 {
        let field = field.to_owned();
        return Err(CgroupError::Unsupported { field, version });
    }
    add(out, "blkio", file, value, field);
    Ok(())
}

fn rates(io: &BlockIo) -> [Rate<'_>; 4] {
    [
        (
            "blkio.throttle.read_bps_device",
            "rbps",
            "linux.resources.blockIO.throttleReadBpsDevice",
            &io.throttle_read_bps_device,
        ),
        (
            "blkio.throttle.write_bps_device",
            "wbps",
            "linux.resources.blockIO.throttleWriteBpsDevice",
            &io.throttle_write_bps_device,
        ),
        (
            "blkio.throttle.read_iops_device",
            "riops",
            "linux.resources.blockIO.throttleReadIOPSDevice",
            &io.throttle_read_iops_device,
        ),
        (
            "blkio.throttle.write_iops_device",
            "wiops",
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            &io.throttle_write_iops_device,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_in_the_words_of_each_version() {
        let io = BlockIo {
            weight: Some(300),
            throttle_read_bps_device: vec![ThrottleDevice {
                major: 8,
                minor: 16,
                rate: 1024,
            }],
            ..BlockIo::default()
        };
        let lines = |version| {
            let mut out = Vec::new();
            settings(&mut out, version, &io).unwrap();
            let line = |s: Setting| format!("{} {}", s.file, s.value);
            out.into_iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            lines(Version::V1),
            [
                "blkio.bfq.weight 300",
                "blkio.throttle.read_bps_device 8:16 1024"
            ]
        );
        assert_eq!(
            lines(Version::V2),
            ["io.bfq.weight 300", "io.max 8:16 rbps=1024"]
        );
    }
}
