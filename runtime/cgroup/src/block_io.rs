//! Limits on block devices: `blkio` on v1, `io` on v2. Pure.

use amphora_spec::runtime::{BlockIo, ThrottleDevice};

use crate::Version;
use crate::settings::{Setting, add};

/// One kind of rate: v1 file, v2 key, field, rates.
type Rate<'a> = (
    &'static str,
    &'static str,
    &'static str,
    &'a [ThrottleDevice],
);

/// Adds the settings. Weights are those of the BFQ scheduler, the only one that has them.
pub(crate) fn settings(out: &mut Vec<Setting>, version: Version, io: &BlockIo) {
    let (controller, weight) = match version {
        Version::V1 => ("blkio", "blkio.bfq.weight"),
        Version::V2 => ("io", "io.bfq.weight"),
    };
    if let Some(value) = io.weight.filter(|value| *value != 0) {
        let field = "linux.resources.blockIO.weight";
        add(out, controller, weight, value.to_string(), field);
    }
    for device in &io.weight_device {
        let value = format!("{}:{} {}", device.major, device.minor, device.weight);
        let field = "linux.resources.blockIO.weightDevice";
        let file = match version {
            Version::V1 => "blkio.bfq.weight_device",
            Version::V2 => weight,
        };
        add(out, controller, file, value, field);
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
            settings(&mut out, version, &io);
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
