//! From limits and annotations to properties of a unit. Pure.

use std::collections::BTreeMap;

use amphora_spec::runtime::{Cpu, Memory, Resources};

use super::wire::Value;
use super::{Property, Unit, variant};
use crate::CgroupError;
use crate::cpu::weight_from_shares;
use crate::devices::Policy;
use crate::settings::given;

/// Annotations of this kind are properties, in the words of GVariant.
const ANNOTATION: &str = "org.systemd.property.";
/// systemd's word for none.
const INFINITY: u64 = u64::MAX;
/// What a quota without a period is of, in microseconds.
const PERIOD: u64 = 100_000;
/// systemd keeps whole percents: microseconds of a second.
const PERCENT: u64 = 10_000;
/// No host has more processors or memory nodes.
const CPU_MAX: usize = 8192;

fn property(name: &str, value: Value) -> Property {
    Property {
        name: name.to_owned(),
        value,
    }
}

/// What makes the scope, without limits.
pub(super) fn scope(unit: &Unit, pid: i32) -> Vec<Property> {
    let short = unit.name.trim_end_matches(".scope");
    let id = short.split_once('-').map_or(short, |(_, id)| id);
    let pid = Value::U32(pid.unsigned_abs());
    let mut found = vec![
        property(
            "Description",
            Value::text(format!("libcontainer container {id}")),
        ),
        property("Slice", Value::text(&unit.slice)),
        property("Delegate", Value::Bool(true)),
        property("PIDs", Value::Array("u".to_owned(), vec![pid])),
        property("DefaultDependencies", Value::Bool(false)),
    ];
    for counted in ["Memory", "CPU", "IO", "Tasks"] {
        found.push(property(&format!("{counted}Accounting"), Value::Bool(true)));
    }
    found
}

/// The limits that systemd has words for.
pub(super) fn limits(resources: &Resources) -> Result<Vec<Property>, CgroupError> {
    let mut found = Vec::new();
    if let Some(memory) = &resources.memory {
        found.extend(self::memory(memory));
    }
    if let Some(cpu) = &resources.cpu {
        found.extend(self::cpu(cpu)?);
    }
    if let Some(pids) = resources.pids.as_ref().filter(|pids| pids.limit != 0) {
        let limit = u64::try_from(pids.limit).unwrap_or(INFINITY);
        found.push(property("TasksMax", Value::U64(limit)));
    }
    if !resources.devices.is_empty() {
        found.extend(devices(&Policy::from_rules(&resources.devices)?));
    }
    for (file, value) in &resources.unified {
        found.extend(unified(file, value)?);
    }
    Ok(found)
}

/// What leads back from changed properties to those before; of what was not told before, to nothing.
pub(super) fn back(changed: &[Property], before: &[Property]) -> Vec<Property> {
    let mut found: Vec<Property> = Vec::new();
    for now in changed {
        if found.iter().any(|have| have.name == now.name) {
            continue;
        }
        let old = before.iter().filter(|old| old.name == now.name);
        found.extend(old.cloned());
        if found.iter().any(|have| have.name == now.name) {
            continue;
        }
        let none = match (&now.value, now.name.as_str()) {
            (_, "MemoryLow" | "MemoryMin") => Value::U64(0),
            (_, "DevicePolicy") => Value::text("auto"),
            (Value::U64(_), _) => Value::U64(INFINITY),
            (Value::Array(element, _), _) => Value::Array(element.clone(), Vec::new()),
            _ => continue,
        };
        found.push(property(&now.name, none));
    }
    found
}

fn memory(memory: &Memory) -> Vec<Property> {
    let bytes = |name: &str, value: i64| {
        let value = u64::try_from(value).unwrap_or(INFINITY);
        property(name, Value::U64(value))
    };
    let limit = given(memory.limit);
    let mut found: Vec<Property> = limit
        .map(|limit| bytes("MemoryMax", limit))
        .into_iter()
        .collect();
    found.extend(given(memory.reservation).map(|low| bytes("MemoryLow", low)));
    let swap = match (given(memory.swap), limit) {
        (Some(..0), _) | (None, Some(..0)) => Some(-1),
        (Some(swap), Some(limit)) => Some((swap - limit).max(0)),
        _ => None,
    };
    found.extend(swap.map(|swap| bytes("MemorySwapMax", swap)));
    found
}

fn cpu(cpu: &Cpu) -> Result<Vec<Property>, CgroupError> {
    let mut found = Vec::new();
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        let weight = weight_from_shares(shares).into();
        found.push(property("CPUWeight", Value::U64(weight)));
    }
    found.extend(quota(given(cpu.quota), cpu.period.filter(|p| *p != 0)));
    for (name, list, field) in [
        ("AllowedCPUs", &cpu.cpus, "linux.resources.cpu.cpus"),
        ("AllowedMemoryNodes", &cpu.mems, "linux.resources.cpu.mems"),
    ] {
        if !list.is_empty() {
            found.push(bits(name, list, field)?);
        }
    }
    Ok(found)
}

/// A quota in microseconds of a period, as microseconds of a second. Rounded up: what is written
/// afterwards must fit in.
fn quota(quota: Option<i64>, period: Option<u64>) -> Vec<Property> {
    let mut found = Vec::new();
    if let Some(period) = period {
        found.push(property("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if let Some(quota) = quota {
        let of_second = match u64::try_from(quota) {
            Err(_) => INFINITY,
            Ok(quota) => {
                let exact = quota.saturating_mul(1_000_000) / period.unwrap_or(PERIOD);
                exact.div_ceil(PERCENT).saturating_mul(PERCENT)
            }
        };
        found.push(property("CPUQuotaPerSecUSec", Value::U64(of_second)));
    }
    found
}

/// A list such as `0-2,5` as bits, the lowest first.
fn bits(name: &str, list: &str, field: &str) -> Result<Property, CgroupError> {
    let invalid = || CgroupError::invalid(field, format!("\"{}\" is no list", list.escape_debug()));
    let mut bytes: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| invalid())?;
        let last: usize = last.trim().parse().map_err(|_| invalid())?;
        if first > last || last >= CPU_MAX {
            return Err(invalid());
        }
        for number in first..=last {
            if bytes.len() <= number / 8 {
                bytes.resize(number / 8 + 1, 0);
            }
            if let Some(byte) = bytes.get_mut(number / 8) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    let bytes = bytes.into_iter().map(Value::Byte).collect();
    Ok(property(name, Value::Array("y".to_owned(), bytes)))
}

/// Our own program is on the scope in any case; systemd's says the same where it can.
fn devices(policy: &Policy) -> Vec<Property> {
    let pair = |(path, access): (String, String)| {
        Value::Struct(vec![Value::Text(path), Value::Text(access)])
    };
    let (word, allowed) = match policy.systemd_list() {
        Some(list) => ("strict", list.into_iter().map(pair).collect()),
        None => ("auto", Vec::new()),
    };
    let none = Value::Array("(ss)".to_owned(), Vec::new());
    let mut found = vec![
        property("DevicePolicy", Value::text(word)),
        // What was allowed before goes with the empty list.
        property("DeviceAllow", none),
    ];
    if !allowed.is_empty() {
        let list = Value::Array("(ss)".to_owned(), allowed);
        found.push(property("DeviceAllow", list));
    }
    found
}

/// Files of v2 that are properties of systemd's, too.
fn unified(file: &str, value: &str) -> Result<Vec<Property>, CgroupError> {
    let field = || format!("linux.resources.unified[\"{}\"]", file.escape_debug());
    let invalid = || {
        let reason = format!("\"{}\" is no value for it", value.escape_debug());
        CgroupError::invalid(field(), reason)
    };
    let number = |text: &str| match text {
        "max" => Ok(INFINITY),
        text => text.parse::<u64>().map_err(|_| invalid()),
    };
    let name = match file {
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let of = number(words.next().unwrap_or_default())?;
            let of = i64::try_from(of).unwrap_or(-1);
            let period = words.next().map(number).transpose()?;
            return Ok(quota(Some(of), period));
        }
        "cpuset.cpus" => return Ok(vec![bits("AllowedCPUs", value, &field())?]),
        "cpuset.mems" => return Ok(vec![bits("AllowedMemoryNodes", value, &field())?]),
        "cpu.weight" => "CPUWeight",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.max" => "MemoryMax",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        // The file says it all.
        _ => return Ok(Vec::new()),
    };
    Ok(vec![property(name, Value::U64(number(value.trim())?))])
}

/// Properties that annotations `org.systemd.property.*` ask for. Times in seconds, as people write
/// them, become systemd's microseconds.
///
/// # Errors
/// By the annotation's name, when name or value makes no sense.
pub fn annotated(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>, CgroupError> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else {
            continue;
        };
        let field = || format!("annotations[\"{}\"]", key.escape_debug());
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(CgroupError::invalid(field(), "it names no property"));
        }
        let wrong = || CgroupError::invalid(field(), format!("\"{}\"", text.escape_debug()));
        let value = variant::parse(text).ok_or_else(wrong)?;
        found.push(match name.strip_suffix("Sec") {
            Some(stem) if !stem.ends_with('U') => {
                let micros = micros(&value).ok_or_else(wrong)?;
                property(&format!("{stem}USec"), Value::U64(micros))
            }
            _ => property(name, value),
        });
    }
    Ok(found)
}

fn micros(value: &Value) -> Option<u64> {
    const SECOND: i128 = 1_000_000;
    let whole = match value {
        Value::Byte(n) => i128::from(*n),
        Value::I16(n) => i128::from(*n),
        Value::U16(n) => i128::from(*n),
        Value::I32(n) => i128::from(*n),
        Value::U32(n) => i128::from(*n),
        Value::I64(n) => i128::from(*n),
        Value::U64(n) => i128::from(*n),
        Value::Double(seconds) => {
            let micros = seconds * 1e6;
            let fits = (0.0..1e18).contains(&micros);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked just before"
            )]
            return fits.then_some(micros as u64);
        }
        _ => return None,
    };
    u64::try_from(whole.checked_mul(SECOND)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str) -> Result<Vec<(String, Value)>, String> {
        let resources: Resources = serde_json::from_str(json).expect("test input");
        let found = limits(&resources).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|p| (p.name, p.value)).collect())
    }

    fn numbers(list: &[(&str, u64)]) -> Vec<(String, Value)> {
        let pair = |(name, value): &(&str, u64)| ((*name).to_owned(), Value::U64(*value));
        list.iter().map(pair).collect()
    }

    #[test]
    fn limits_are_told_in_systemds_words() {
        let json = r#"{"memory":{"limit":1000,"swap":1500,"reservation":500},
            "cpu":{"shares":1024,"quota":12345,"period":50000},"pids":{"limit":7}}"#;
        let want = numbers(&[
            ("MemoryMax", 1000),
            ("MemoryLow", 500),
            ("MemorySwapMax", 500),
            ("CPUWeight", 100),
            ("CPUQuotaPeriodUSec", 50_000),
            ("CPUQuotaPerSecUSec", 250_000),
            ("TasksMax", 7),
        ]);
        assert_eq!(told(json), Ok(want));
        let json = r#"{"memory":{"limit":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
        let want = numbers(&[
            ("MemoryMax", INFINITY),
            ("MemorySwapMax", INFINITY),
            ("CPUQuotaPerSecUSec", INFINITY),
            ("TasksMax", INFINITY),
        ]);
        assert_eq!(told(json), Ok(want));
        let json = r#"{"unified":{"memory.high":"4096","cpu.max":"max","pids.max":"9",
            "io.max":"8:0 rbps=1","cpu.weight":"50"}}"#;
        let want = numbers(&[
            ("CPUQuotaPerSecUSec", INFINITY),
            ("CPUWeight", 50),
            ("MemoryHigh", 4096),
            ("TasksMax", 9),
        ]);
        assert_eq!(told(json), Ok(want));
        let set = told(r#"{"cpu":{"cpus":"0-2,9"}}"#).expect("valid");
        let bytes = vec![Value::Byte(7), Value::Byte(2)];
        let want = Value::Array("y".to_owned(), bytes);
        assert_eq!(set, [("AllowedCPUs".to_owned(), want)]);
        for cpus in ["2-1", "x", "0-99999", ""] {
            let json = format!(r#"{{"unified":{{"cpuset.cpus":"{cpus}"}}}}"#);
            assert!(told(&json).is_err(), "{cpus}");
        }
    }

    #[test]
    fn a_change_is_taken_back() {
        let of =
            |json: &str| limits(&serde_json::from_str(json).expect("test input")).expect("valid");
        let changed = of(r#"{"memory":{"limit":9,"reservation":3},"cpu":{"shares":7,"cpus":"0"}}"#);
        let before = of(r#"{"memory":{"limit":5},"pids":{"limit":4}}"#);
        let found = back(&changed, &before);
        let found: Vec<_> = found.into_iter().map(|p| (p.name, p.value)).collect();
        let mut want = numbers(&[("MemoryMax", 5), ("MemoryLow", 0), ("CPUWeight", INFINITY)]);
        want.push((
            "AllowedCPUs".to_owned(),
            Value::Array("y".to_owned(), Vec::new()),
        ));
        assert_eq!(found, want);
    }

    #[test]
    fn devices_are_listed_where_systemd_can() {
        let json = r#"{"devices":[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"b","major":8,"minor":0,"access":"r"}]}"#;
        let found = told(json).expect("valid");
        assert_eq!(found[0], ("DevicePolicy".to_owned(), Value::text("strict")));
        let Value::Array(_, list) = &found[2].1 else {
            panic!("{found:?}");
        };
        let pair =
            |path: &str, access: &str| Value::Struct(vec![Value::text(path), Value::text(access)]);
        for entry in [
            pair("/dev/block/8:0", "r"),
            pair("/dev/char/1:3", "rwm"),
            pair("char-136", "rwm"),
            pair("block-*", "m"),
        ] {
            assert!(list.contains(&entry), "{entry:?}");
        }
        let all = told(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#).expect("valid");
        assert_eq!(all[0], ("DevicePolicy".to_owned(), Value::text("auto")));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn annotations_become_properties() {
        let one = |key: &str, text: &str| {
            let annotations = BTreeMap::from([(key.to_owned(), text.to_owned())]);
            annotated(&annotations).map_err(|error| error.to_string())
        };
        let key = "org.systemd.property.CollectMode";
        let want = [property("CollectMode", Value::text("inactive"))];
        assert_eq!(one(key, "'inactive'").as_deref(), Ok(&want[..]));
        for text in ["2", "uint64 2", "2.0", "byte 2"] {
            let found = one("org.systemd.property.TimeoutStopSec", text);
            let want = [property("TimeoutStopUSec", Value::U64(2_000_000))];
            assert_eq!(found.as_deref(), Ok(&want[..]), "{text}");
        }
        let found = one("org.systemd.property.TimeoutStopUSec", "uint64 5");
        let want = [property("TimeoutStopUSec", Value::U64(5))];
        assert_eq!(found.as_deref(), Ok(&want[..]));
        assert_eq!(one("other", "x").as_deref(), Ok(&[][..]));
        for (name, text) in [
            ("A1", "1"),
            ("", "1"),
            ("CollectMode", "inactive"),
            ("XSec", "-1"),
        ] {
            let key = format!("org.systemd.property.{name}");
            let error = one(&key, text).expect_err(&key);
            assert!(error.contains(&key), "{error}");
        }
    }
}
