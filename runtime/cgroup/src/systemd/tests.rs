//! Against a manager of our own at the other end of a socket, which writes down what it hears.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::bus::Bus;
use super::wire::{CALL, ERROR, HEAD, Message, REPLY, SIGNAL, Value};
use super::{Property, Unit, check_slice};

fn read(stream: &mut UnixStream) -> Option<Message> {
    let mut bytes = vec![0; HEAD];
    stream.read_exact(&mut bytes).ok()?;
    let length = Message::length(&bytes).expect("a length");
    bytes.resize(length, 0);
    stream.read_exact(&mut bytes[HEAD..]).expect("the rest");
    Some(Message::parse(&bytes).expect("a message"))
}

/// How the manager answers the calls of one name, in order: a job's end, or an error.
type Script = &'static [(&'static str, Result<&'static str, &'static str>)];

fn answer(stream: &mut UnixStream, call: &Message, how: Result<&str, &str>) {
    let mut send = |message: Message| stream.write_all(&message.bytes()).expect("send");
    let noise = |job: &str, result: &str| Message {
        kind: SIGNAL,
        serial: 1,
        path: "/org/freedesktop/systemd1".to_owned(),
        interface: "org.freedesktop.systemd1.Manager".to_owned(),
        member: "JobRemoved".to_owned(),
        body: vec![
            Value::U32(1),
            Value::Path(job.to_owned()),
            Value::text("x.scope"),
            Value::text(result),
        ],
        ..Message::default()
    };
    // Another's job, and what nobody has asked for.
    send(noise("/job/0", "failed"));
    send(Message {
        member: "PropertiesChanged".to_owned(),
        body: vec![Value::Variant(Box::new(Value::Variant(Box::new(
            Value::Bool(true),
        ))))],
        ..noise("", "")
    });
    let reply = |body| Message {
        kind: REPLY,
        serial: 1,
        reply_to: call.serial,
        body,
        ..Message::default()
    };
    match how {
        Ok("unseen") => send(reply(vec![Value::Path("/job/7".to_owned())])),
        Err(name) => send(Message {
            kind: ERROR,
            error: format!("org.freedesktop.systemd1.{name}"),
            ..reply(vec![Value::text(format!("it is {name}"))])
        }),
        Ok("") => send(reply(Vec::new())),
        Ok(result) => {
            send(reply(vec![Value::Path("/job/7".to_owned())]));
            send(noise("/job/7", result));
        }
    }
}

/// A connection, and what the manager has heard when it is closed.
fn manager(shared: bool, script: Script) -> (Bus, JoinHandle<Vec<Message>>) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let other = std::thread::spawn(move || {
        let mut line = [0; 18];
        theirs.read_exact(&mut line).expect("a greeting");
        assert_eq!(&line, b"\0AUTH EXTERNAL 30\r");
        theirs.read_exact(&mut line[..1]).expect("its end");
        theirs.write_all(b"OK 1234deadbeef\r\n").expect("answer");
        theirs.read_exact(&mut line[..7]).expect("begin");
        assert_eq!(&line[..7], b"BEGIN\r\n");
        let mut heard: Vec<Message> = Vec::new();
        while let Some(call) = read(&mut theirs) {
            assert_eq!(call.kind, CALL);
            let before = heard.iter().filter(|m| m.member == call.member).count();
            let mut own = script.iter().filter(|(member, _)| *member == call.member);
            let how = own.nth(before).map_or(Ok(""), |(_, how)| *how);
            answer(&mut theirs, &call, how);
            heard.push(call);
        }
        heard
    });
    (Bus::on(ours, 0, shared).expect("log in"), other)
}

fn names(heard: &[Message]) -> Vec<&str> {
    heard.iter().map(|call| call.member.as_str()).collect()
}

fn unit() -> Unit {
    Unit::parse("a-b.slice:pod:one", "id", None).expect("a unit")
}

#[test]
fn a_scope_is_made_changed_and_ended() {
    let script: Script = &[("StartTransientUnit", Ok("done")), ("StopUnit", Ok("done"))];
    let (mut bus, other) = manager(false, script);
    let unit = unit();
    let limit = |bytes| Property {
        name: "MemoryMax".to_owned(),
        value: Value::U64(bytes),
    };
    let more = [Property {
        name: "CollectMode".to_owned(),
        value: Value::text("inactive-or-failed"),
    }];
    unit.start_on(&mut bus, 42, vec![limit(5)], &more)
        .expect("start");
    unit.update_on(&mut bus, &[limit(6)]).expect("update");
    unit.stop_on(&mut bus).expect("stop");
    drop(bus);
    let heard = other.join().expect("the manager");
    let want = [
        "StartTransientUnit",
        "SetUnitProperties",
        "StopUnit",
        "ResetFailedUnit",
    ];
    assert_eq!(names(&heard), want);
    for call in &heard {
        assert_eq!(call.body[0], Value::text("pod-one.scope"));
        assert_eq!(call.interface, "org.freedesktop.systemd1.Manager");
    }
    let Value::Array(_, properties) = &heard[0].body[2] else {
        panic!("{:?}", heard[0]);
    };
    let property = |name: &str, value: Value| {
        Value::Struct(vec![Value::text(name), Value::Variant(Box::new(value))])
    };
    let pids = Value::array(vec![Value::U32(42)]).expect("one");
    for want in [
        property("Slice", Value::text("a-b.slice")),
        property("Delegate", Value::Bool(true)),
        property("PIDs", pids),
        property("DefaultDependencies", Value::Bool(false)),
        property("MemoryMax", Value::U64(5)),
        property("CollectMode", Value::text("inactive-or-failed")),
    ] {
        assert!(properties.contains(&want), "{want:?}");
    }
    assert_eq!(heard[1].body[1], Value::Bool(true), "until the next boot");
}

#[test]
fn a_failed_one_of_that_name_makes_room_and_a_living_one_does_not() {
    let script: Script = &[
        ("StartTransientUnit", Err("UnitExists")),
        ("StartTransientUnit", Ok("done")),
    ];
    let (mut bus, other) = manager(false, script);
    unit()
        .start_on(&mut bus, 1, Vec::new(), &[])
        .expect("start");
    drop(bus);
    let want = [
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
    ];
    assert_eq!(names(&other.join().expect("the manager")), want);

    let script: Script = &[
        ("StartTransientUnit", Err("UnitExists")),
        ("StartTransientUnit", Err("UnitExists")),
    ];
    let (mut bus, other) = manager(false, script);
    let error = unit()
        .start_on(&mut bus, 1, Vec::new(), &[])
        .expect_err("exists");
    let text = error.to_string();
    assert!(text.contains("pod-one.scope: it is UnitExists"), "{text}");
    drop(bus);
    other.join().expect("the manager");
}

#[test]
fn a_job_that_fails_is_told_and_one_that_is_gone_is_no_error() {
    let script: Script = &[
        ("StartTransientUnit", Ok("failed")),
        ("StopUnit", Err("NoSuchUnit")),
    ];
    let (mut bus, other) = manager(false, script);
    let error = unit()
        .start_on(&mut bus, 1, Vec::new(), &[])
        .expect_err("failed");
    assert!(
        error.to_string().contains("the job ended as failed"),
        "{error}"
    );
    unit().stop_on(&mut bus).expect("it is gone");
    drop(bus);
    other.join().expect("the manager");
}

#[test]
fn a_job_that_goes_without_a_word_is_asked_for() {
    let script: Script = &[
        ("StopUnit", Ok("unseen")),
        ("GetJob", Ok("")),
        ("GetJob", Err("NoSuchJob")),
    ];
    let (mut bus, other) = manager(false, script);
    unit().stop_on(&mut bus).expect("it has gone");
    drop(bus);
    let heard = other.join().expect("the manager");
    assert_eq!(
        names(&heard),
        ["StopUnit", "GetJob", "GetJob", "ResetFailedUnit"]
    );
    assert_eq!(heard[1].body, [Value::U32(7)]);
}

#[test]
fn on_a_bus_it_says_who_it_is_and_what_it_wants_to_hear() {
    let (bus, other) = manager(true, &[]);
    drop(bus);
    let heard = other.join().expect("the manager");
    assert_eq!(names(&heard), ["Hello", "AddMatch", "Subscribe"]);
}

#[test]
fn a_manager_that_goes_is_an_error() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    drop(theirs);
    assert!(Bus::on(ours, 0, false).is_err());
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    theirs.write_all(b"REJECTED EXTERNAL\r\n").expect("answer");
    assert!(Bus::on(ours, 0, false).is_err());
}

#[test]
fn paths_name_a_scope_in_a_slice() {
    let parse = |path: &str, user| Unit::parse(path, "id", user).map(|u| (u.slice, u.name));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let cases = [
        ("", None, pair("system.slice", "runc-id.scope")),
        ("", Some(1000), pair("user.slice", "runc-id.scope")),
        (":docker:x", None, pair("system.slice", "docker-x.scope")),
        (
            "machine.slice:libpod:x",
            None,
            pair("machine.slice", "libpod-x.scope"),
        ),
        ("-.slice:a:b", None, pair("-.slice", "a-b.scope")),
    ];
    for (path, user, want) in cases {
        assert_eq!(parse(path, user).expect(path), want, "{path}");
    }
    let bad = [
        "/a/b",
        "a:b",
        "a.slice:b:c:d",
        "a:b:c",
        "a/b.slice:b:c",
        "a.slice:b:c/d",
        "a.slice::x.slice",
        "a--b.slice:x:y",
        "-a.slice:x:y",
        ".slice:x:y",
        "a.slice:x:y z",
    ];
    for path in bad {
        let error = parse(path, None).expect_err(path).to_string();
        assert!(error.contains("linux.cgroupsPath"), "{error}");
    }
    assert!(check_slice("a-b-c.slice").is_ok());
}
