use std::fs;

use amphora_names::Records;

use crate::home::{Home, id};

fn records(home: &Home, digit: char) -> Records {
    Records::new(&home.data(), &home.run(), &id(digit))
}

fn v4(records: &mut Records, name: &str) -> Vec<String> {
    let found = records.lookup(name);
    found.v4.iter().map(ToString::to_string).collect()
}

#[test]
fn a_name_an_alias_and_a_short_id_are_seen_on_common_networks_only() {
    let home = Home::new("seen");
    home.container('a', "web", &[("blue", "10.0.0.2", "fd00::2")]);
    home.container(
        'b',
        "db",
        &[("blue", "10.0.0.3", ""), ("red", "10.9.0.3", "")],
    );
    home.container('c', "far", &[("red", "10.9.0.4", "")]);
    home.alias("blue", "store", 'b');
    home.alias("red", "store", 'c');
    let mut web = records(&home, 'a');
    assert_eq!(v4(&mut web, "db"), ["10.0.0.3"]);
    assert_eq!(v4(&mut web, "web"), ["10.0.0.2"]);
    assert_eq!(
        web.lookup("web").v6,
        ["fd00::2".parse::<std::net::Ipv6Addr>().unwrap()]
    );
    assert_eq!(v4(&mut web, "store"), ["10.0.0.3"]);
    assert_eq!(v4(&mut web, &"b".repeat(12)), ["10.0.0.3"]);
    assert_eq!(v4(&mut web, &"B".repeat(63)), ["10.0.0.3"]);
    for hidden in [
        "far",
        &"c".repeat(12),
        &"b".repeat(11),
        "db.red",
        "no",
        "",
        ".",
        "a/b",
    ] {
        assert!(web.lookup(hidden).is_empty(), "{hidden:?}");
    }
    assert_eq!(v4(&mut web, "DB.Blue"), ["10.0.0.3"]);
    assert_eq!(v4(&mut web, "store.blue"), ["10.0.0.3"]);
    let mut db = records(&home, 'b');
    assert_eq!(v4(&mut db, "far"), ["10.9.0.4"]);
    // The first network that knows a name counts.
    assert_eq!(v4(&mut db, "store"), ["10.0.0.3"]);
    assert_eq!(v4(&mut db, "store.red"), ["10.9.0.4"]);
    assert_eq!(
        v4(&mut records(&home, 'd'), "web"),
        [""; 0],
        "on no network"
    );
}

#[test]
fn case_does_not_matter_and_changes_are_seen_at_once() {
    let home = Home::new("case");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    home.container('b', "MixedCase", &[("blue", "10.0.0.3", "")]);
    let mut me = records(&home, 'a');
    for name in ["MixedCase", "mixedcase", "MIXEDCASE"] {
        assert_eq!(v4(&mut me, name), ["10.0.0.3"], "{name}");
    }
    fs::rename(
        home.data().join("names/MixedCase"),
        home.data().join("names/Other"),
    )
    .unwrap();
    assert_eq!(v4(&mut me, "mixedcase"), [""; 0]);
    assert_eq!(v4(&mut me, "OTHER"), ["10.0.0.3"]);
    // Connected to another network, and off the first one.
    home.endpoints('b', &[("red", "10.9.0.3", "")]);
    assert_eq!(v4(&mut me, "other"), [""; 0]);
    home.endpoints('a', &[("blue", "10.0.0.2", ""), ("red", "10.9.0.2", "")]);
    assert_eq!(v4(&mut me, "other"), ["10.9.0.3"]);
}

#[test]
fn everybody_with_an_alias_is_listed_once() {
    let home = Home::new("alias");
    home.container('a', "one", &[("blue", "10.0.0.2", "")]);
    home.container('b', "two", &[("blue", "10.0.0.3", "")]);
    for digit in ['a', 'b', 'c'] {
        home.alias("blue", "one", digit);
    }
    assert_eq!(
        v4(&mut records(&home, 'a'), "ONE"),
        ["10.0.0.2", "10.0.0.3"]
    );
}

#[test]
fn an_address_has_the_name_of_its_holder_and_network() {
    let home = Home::new("reverse");
    home.container('a', "web", &[("blue", "10.0.0.2", "fd00::2")]);
    home.container('b', "far", &[("red", "10.9.0.3", "fd09::3")]);
    let web = records(&home, 'a');
    let name = |address: &str| web.name_of(address.parse().unwrap());
    assert_eq!(name("10.0.0.2").as_deref(), Some("web.blue"));
    assert_eq!(name("fd00::2").as_deref(), Some("web.blue"));
    for hidden in ["10.9.0.3", "fd09::3", "10.0.0.3", "fd00::3"] {
        assert_eq!(name(hidden), None, "{hidden}");
    }
}

#[test]
fn the_first_form_of_the_record_is_read_and_an_unknown_one_is_not() {
    let home = Home::new("forms");
    home.container('a', "web", &[]);
    let path = home.run().join("containers").join(id('a')).join("endpoint");
    fs::write(&path, r#"{"container":"x","network":"bridge","address":"172.17.0.2","prefix":16,"address6":null}"#).unwrap();
    let mut web = records(&home, 'a');
    assert_eq!(v4(&mut web, "web"), ["172.17.0.2"]);
    let place = r#"{"network":"bridge","address":"172.17.0.2"}"#;
    for (version, count) in [(2, 1), (3, 0)] {
        let text = format!(r#"{{"version":{version},"endpoints":[{place}]}}"#);
        fs::write(&path, text).unwrap();
        assert_eq!(v4(&mut web, "web").len(), count);
    }
    fs::write(&path, "torn{").unwrap();
    assert!(web.lookup("web").is_empty());
}

#[test]
fn only_internal_networks_keep_questions_in() {
    let home = Home::new("internal");
    home.container('a', "a", &[("in", "10.0.0.2", "")]);
    home.container('b', "b", &[("in", "10.0.0.3", ""), ("out", "10.9.0.3", "")]);
    home.container('c', "c", &[]);
    assert!(!records(&home, 'a').may_leave());
    assert!(records(&home, 'b').may_leave());
    assert!(!records(&home, 'c').may_leave());
}

#[test]
fn an_ipv6_address_leads_to_one_lease_and_nobody_elses_is_looked_at() {
    let home = Home::new("reverse6");
    home.container(
        'a',
        "web",
        &[
            ("bridge", "172.17.0.2", "fd00::2"),
            ("blue", "10.0.0.2", "fd05::2"),
        ],
    );
    home.container('b', "beside", &[("bridge", "172.17.1.3", "fd00::103")]);
    home.container('c', "askew", &[("bridge", "172.17.0.9", "fd00::77")]);
    home.container('d', "made", &[("blue", "10.0.0.4", "fd05::abcd:1:2")]);
    home.container('e', "without", &[("blue", "10.0.0.5", "fd05::5")]);
    home.container('f', "elsewhere", &[("blue", "10.0.0.6", "fd06::6")]);
    let leases = home.run().join("networks/blue/leases");
    fs::remove_file(leases.join("fd05::5")).unwrap();
    // Beyond the IPv4 subnet there is nothing it could go with.
    home.container('0', "far", &[("bridge", "172.17.0.3", "fd00::1:3")]);
    let web = records(&home, 'a');
    let name = |address: &str| web.name_of(address.parse().unwrap());
    assert_eq!(name("fd00::2").as_deref(), Some("web.bridge"));
    assert_eq!(name("fd00::103").as_deref(), Some("beside.bridge"));
    assert_eq!(name("fd05::abcd:1:2").as_deref(), Some("made.blue"));
    for none in [
        "fd00::77",
        "fd05::5",
        "fd06::6",
        "fd00::1:3",
        "fd00::1:0:3",
        "fd00::9",
    ] {
        assert_eq!(name(none), None, "{none}");
    }
    fs::remove_file(home.run().join("networks/bridge/leases/172.17.1.3")).unwrap();
    assert_eq!(name("fd00::103"), None, "its lease is that of IPv4");
}
