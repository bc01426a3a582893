//! Ages, spellings and bounds.

use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn key(text: &str) -> Key {
    Key {
        name: LowerName::new(&name(text)),
        kind: RecordType::A,
        dnssec_ok: false,
        checking_disabled: false,
    }
}

fn a(text: &str, ttl: u32) -> Record {
    Record::from_rdata(name(text), ttl, RData::A(A::new(192, 0, 2, 1)))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(
        name("ns.example.org."),
        name("root.example.org."),
        1,
        1,
        1,
        1,
        minimum,
    );
    Record::from_rdata(name("example.org."), ttl, RData::SOA(soa))
}

fn answer(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Answer {
    let mut answer = Answer::code(code);
    answer.answers = answers;
    answer.authorities = authorities;
    answer
}

#[test]
fn how_long_each_kind_of_answer_is_kept() {
    use ResponseCode::{NXDomain, NoError, ServFail};
    let alias = || {
        Record::from_rdata(
            name("w.example.org."),
            20,
            RData::CNAME(CNAME(name("x.example.org."))),
        )
    };
    let table = [
        (
            answer(
                NoError,
                vec![a("w.example.org.", 60), a("w.example.org.", 30)],
                vec![],
            ),
            30,
        ),
        (answer(NoError, vec![a("w.example.org.", 0)], vec![]), 0),
        (
            answer(NoError, vec![a("w.example.org.", 1_000_000)], vec![]),
            MAX_POSITIVE,
        ),
        (
            answer(NoError, vec![alias(), a("x.example.org.", 60)], vec![]),
            20,
        ),
        // An alias to nothing is a negative answer.
        (answer(NoError, vec![alias()], vec![]), 0),
        (answer(NoError, vec![alias()], vec![soa(60, 15)]), 15),
        (answer(NoError, vec![], vec![soa(10, 60)]), 10),
        (answer(NXDomain, vec![], vec![soa(60, 10)]), 10),
        (answer(NXDomain, vec![], vec![soa(86_400, 86_400)]), MAX_NEGATIVE),
        (answer(NXDomain, vec![], vec![]), 0),
        (answer(ServFail, vec![], vec![]), FAILURE),
    ];
    for (answer, seconds) in table {
        assert_eq!(ttl(&answer, RecordType::A), seconds, "{answer:?}");
    }
}

#[test]
fn ttls_shrink_until_the_answer_is_gone_and_names_are_spelled_as_asked() {
    let (mut cache, start) = (Cache::default(), Instant::now());
    let kept = answer(ResponseCode::NoError, vec![a("www.example.org.", 30)], vec![]);
    cache.put(key("www.example.org."), &kept, start);
    let at = |cache: &mut Cache, seconds| {
        cache.get(
            &key("WWW.example.org."),
            &name("WwW.eXample.org."),
            start + Duration::from_secs(seconds),
        )
    };
    let young = at(&mut cache, 12).unwrap();
    assert_eq!(
        (young.answers[0].ttl, young.answers[0].name.to_string().as_str()),
        (18, "WwW.eXample.org.")
    );
    assert_eq!(at(&mut cache, 29).unwrap().answers[0].ttl, 1);
    assert!(at(&mut cache, 30).is_none());
    assert_eq!(cache.size(), (0, 0));
    assert!(
        cache
            .get(&key("other.example.org."), &name("other.example.org."), start)
            .is_none()
    );
}

#[test]
fn entries_and_bytes_stay_within_bounds_and_what_is_used_stays() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let small = |i: usize| format!("n{i}.example.org.");
    for i in 0..3 * MAX_ENTRIES {
        let text = small(i);
        cache.put(
            key(&text),
            &answer(ResponseCode::NoError, vec![a(&text, 60)], vec![]),
            now,
        );
        assert!(
            cache.get(&key(&small(0)), &name(&small(0)), now).is_some(),
            "at {i}"
        );
        let (entries, bytes) = cache.size();
        assert!(entries <= MAX_ENTRIES && bytes <= MAX_BYTES, "{entries} {bytes}");
    }
    assert!(cache.get(&key(&small(1)), &name(&small(1)), now).is_none());
    for i in 0..500 {
        let text = small(i);
        let long = TXT::new(vec!["x".repeat(255); 60]);
        let big = Record::from_rdata(name(&text), 60, RData::TXT(long));
        let mut key = key(&text);
        key.kind = RecordType::TXT;
        cache.put(key, &answer(ResponseCode::NoError, vec![big], vec![]), now);
        assert!(cache.size().1 <= MAX_BYTES);
    }
    let (entries, bytes) = cache.size();
    let (mut real_entries, mut real_bytes) = (0, 0);
    for generation in [&cache.young, &cache.old] {
        real_entries += generation.map.len();
        real_bytes += generation.map.iter().map(|(k, v)| size(k, v)).sum::<usize>();
    }
    assert_eq!((entries, bytes), (real_entries, real_bytes));
}
