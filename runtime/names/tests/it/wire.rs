use std::net::IpAddr;

use amphora_names::{Malformed, Query, Rcode, Record, is_answer, kinds};
use proptest::prelude::*;

use crate::packets::{answer, edns, query, read, wire_name};

fn rcode(packet: &[u8]) -> u8 {
    match Query::parse(packet) {
        Err(Malformed::Answer(answer)) => read(&answer).rcode,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_query_is_read_with_and_without_edns() {
    let packet = query(7, "Web.My-Net_1", kinds::AAAA);
    let plain = Query::parse(&packet).unwrap();
    assert_eq!((plain.id(), plain.kind, plain.class), (7, 28, 1));
    assert_eq!(plain.name().unwrap(), "Web.My-Net_1");
    assert_eq!(plain.datagram(), 512);
    for (offered, taken) in [(100, 512), (1232, 1232), (65535, 4096)] {
        let packet = edns(7, "web", kinds::A, offered);
        let query = Query::parse(&packet).unwrap();
        assert_eq!(query.datagram(), taken);
        assert!(read(&query.failure(Rcode::Refused)).edns);
    }
}

#[test]
fn what_is_no_query_is_refused_or_passed_over() {
    let good = edns(7, "web", 1, 1232);
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    assert_eq!(Query::parse(&good[..11]).unwrap_err(), Malformed::Silent);
    // An answer: two name servers must not talk to each other for ever.
    assert_eq!(
        Query::parse(&changed(2, 0x81)).unwrap_err(),
        Malformed::Silent
    );
    assert_eq!(rcode(&changed(2, 0x28)), 4, "an update");
    for questions in [0, 2, 255] {
        assert_eq!(rcode(&changed(5, questions)), 1);
    }
    assert_eq!(rcode(&changed(12, 64)), 1, "a label that is too long");
    assert_eq!(rcode(&changed(12, 0xc0)), 1, "a pointer in the question");
    assert_eq!(rcode(&good[..20]), 1, "a record cut off");
    assert_eq!(rcode(&[&good[..], &[0]].concat()), 1, "bytes left over");
    assert_eq!(rcode(&changed(11, 17)), 1, "too many records");
    let twice = [&changed(11, 2)[..], &good[good.len() - 11..]].concat();
    assert_eq!(rcode(&twice), 1, "EDNS twice");
    let version = good.len() - 5;
    let answered = match Query::parse(&changed(version, 1)) {
        Err(Malformed::Answer(answer)) => answer,
        other => panic!("{other:?}"),
    };
    assert!(read(&answered).edns && answered[answered.len() - 6] == 1);
}

#[test]
fn a_name_is_255_bytes_at_most_and_a_pointer_to_itself_ends() {
    let label = "a".repeat(62);
    let longest = format!("{label}.{label}.{label}.{label}");
    let packet = query(1, &longest, 1);
    assert_eq!(Query::parse(&packet).unwrap().name().unwrap(), longest);
    assert_eq!(rcode(&query(1, &format!("{longest}.bb"), 1)), 1);
    // A further record whose name points at itself: it is skipped, not followed.
    let mut looping = query(1, "web", 1);
    looping[11] = 1;
    let here = u8::try_from(looping.len()).unwrap();
    looping.extend([0xc0, here, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Query::parse(&looping).unwrap().name().unwrap(), "web");
}

#[test]
fn names_that_cannot_be_ours_have_no_text() {
    for label in ["a/b", "..", "\u{e4}", "a b", "a\0b"] {
        let mut packet = query(1, "x", 1)[..12].to_vec();
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
        packet.extend([0, 0, 1, 0, 1]);
        assert_eq!(Query::parse(&packet).unwrap().name(), None, "{label:?}");
    }
    let root = query(1, "", 1);
    assert_eq!(Query::parse(&root).unwrap().name(), None);
}

#[test]
fn an_answer_repeats_the_question_and_is_cut_where_it_does_not_fit() {
    let all: Vec<Record> = (0..100_u8)
        .map(|n| Record::Address(IpAddr::from([10, 0, 0, n])))
        .collect();
    let packet = query(9, "Alias", 1);
    let parsed = Query::parse(&packet).unwrap();
    let whole = read(&parsed.answer(Rcode::NoError, &all, Query::stream()));
    assert_eq!((whole.addresses.len(), whole.truncated), (100, false));
    let message = parsed.answer(Rcode::NoError, &all, parsed.datagram());
    let cut = read(&message);
    assert!(cut.truncated && message.len() <= 512);
    assert_eq!(cut.addresses.len(), (512 - packet.len()) / 16);
    // The case of the question is kept: some clients check it.
    assert_eq!(message[..2], packet[..2]);
    assert_eq!(message[12..packet.len()], packet[12..]);
    let name = parsed.answer(Rcode::NoError, &[Record::Name("web.net.1".into())], 512);
    assert_eq!(read(&name).names, ["web.net.1."]);
}

#[test]
fn only_an_answer_to_the_question_counts() {
    let asked = query(77, "Example.org", 1);
    let good = answer(&asked, 0, Some([1, 2, 3, 4]));
    assert!(is_answer(&asked, &good));
    let folded = answer(&query(77, "eXAMPLE.ORG", 1), 3, None);
    assert!(is_answer(&asked, &folded));
    let others = [
        answer(&query(78, "Example.org", 1), 0, None),
        answer(&query(77, "Example.com", 1), 0, None),
        answer(&query(77, "Example.org", 28), 0, None),
        asked.clone(),
        good[..good.len().min(14)].to_vec(),
        Vec::new(),
    ];
    for other in others {
        assert!(!is_answer(&asked, &other), "{other:?}");
    }
    let mut bare = good[..12].to_vec();
    bare[4..12].fill(0);
    assert!(!is_answer(&asked, &bare), "nothing asked, nothing wrong");
    bare[3] = 0x81;
    assert!(is_answer(&asked, &bare), "it could not read the question");
}

proptest! {
    #[test]
    fn anything_may_come(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&packet);
    }

    #[test]
    fn a_damaged_query_may_come(
        at in 0_usize..64, value: u8, cut in 0_usize..80, more in proptest::collection::vec(any::<u8>(), 0..40)
    ) {
        let mut packet = edns(1, "container.network.example", 1, 1232);
        if let Some(place) = packet.get_mut(at) {
            *place = value;
        }
        packet.truncate(cut);
        packet.extend(more);
        check(&packet);
    }

    #[test]
    fn names_come_back(labels in proptest::collection::vec("[a-zA-Z0-9_-]{1,63}", 1..4)) {
        let name = labels.join(".");
        let packet = query(3, &name, 1);
        prop_assert_eq!(Query::parse(&packet).unwrap().name(), Some(name.clone()));
        prop_assert_eq!(wire_name(&name).len(), name.len() + 2);
    }
}

/// Whatever comes, what goes out is an answer of bounded size, to the same number.
fn check(packet: &[u8]) {
    let out = match Query::parse(packet) {
        Ok(query) => {
            let _ = query.name();
            assert!(query.head().len() <= packet.len());
            query.failure(Rcode::ServerFailure)
        }
        Err(Malformed::Answer(out)) => out,
        Err(Malformed::Silent) => return,
    };
    assert!(out.len() <= 12 + 255 + 4 + 11, "{}", out.len());
    assert_eq!(out[..2], packet[..2]);
    read(&out);
    assert!(matches!(Query::parse(&out), Err(Malformed::Silent)));
}
