//! Names of others, asked of a resolver that stands in the test: the cache, failover, truncation, aliases.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot set its test up should end the test"
)]

mod common;

use common::{Dns, NOBODY, Resolver, question};
use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA, TXT},
    },
};
use serde_json::json;

/// With one address for every name.
fn known(mut message: Message) -> Option<Message> {
    let name = message.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, 3600, RData::A(A::new(192, 0, 2, 1))));
    Some(message)
}

fn with_code(mut message: Message, code: ResponseCode) -> Option<Message> {
    message.metadata.response_code = code;
    Some(message)
}

fn soa() -> Record {
    let name = |text| Name::from_ascii(text).unwrap();
    let soa = SOA::new(
        name("ns.example.org."),
        name("root.example.org."),
        1,
        1,
        1,
        1,
        600,
    );
    Record::from_rdata(name("example.org."), 600, RData::SOA(soa))
}

#[tokio::test]
async fn other_names_are_forwarded_once_and_then_kept() {
    let upstream = Resolver::start(|message, _| known(message)).await;
    // The first resolver is not there at all.
    let mut dns = Dns::start(vec![NOBODY, upstream.address]).await;
    for name in ["example.org.", "EXAMPLE.org.", "example.ORG."] {
        let answer = dns.udp(name, RecordType::A).await;
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        assert_eq!(answer.answers[0].name.to_string(), name);
        assert!((3590..=3600).contains(&answer.answers[0].ttl));
    }
    assert_eq!(upstream.asked(), (1, 0));
    dns.put_service(json!({"type": "ExternalName", "externalName": "example.org"}));
    let name = "web.shop.svc.cluster.local.";
    let answer = dns
        .until(name, RecordType::A, |answer| !answer.answers.is_empty())
        .await;
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    assert_eq!(upstream.asked(), (1, 0), "the alias's target is in the cache");
    dns.put_service(json!({"type": "ExternalName", "externalName": "other.example.org"}));
    let changed = |answer: &Message| answer.answers[0].data.to_string() == "other.example.org.";
    let answer = dns.until(name, RecordType::A, changed).await;
    assert_eq!(answer.answers.len(), 2);
    assert_eq!(upstream.asked(), (2, 0));
}

#[tokio::test]
async fn that_a_name_does_not_exist_is_kept_as_long_as_its_zone_allows() {
    let upstream = Resolver::start(|mut message, _| {
        if message.queries[0].name().to_string().starts_with("kept") {
            message.add_authority(soa());
        }
        with_code(message, ResponseCode::NXDomain)
    })
    .await;
    let dns = Dns::start(vec![upstream.address]).await;
    for _ in 0..3 {
        let answer = dns.udp("kept.example.org.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(answer.authorities[0].ttl <= 600);
    }
    assert_eq!(upstream.asked(), (1, 0));
    for _ in 0..3 {
        dns.udp("unkept.example.org.", RecordType::A).await;
    }
    assert_eq!(
        upstream.asked(),
        (4, 0),
        "RFC 2308: without an SOA nothing may be kept"
    );
}

#[tokio::test]
async fn names_of_the_cluster_never_leave_it() {
    let upstream = Resolver::start(|message, _| known(message)).await;
    let dns = Dns::start(vec![upstream.address]).await;
    for name in [
        "nope.shop.svc.cluster.local.",
        "example.org.shop.svc.cluster.local.",
        "example.org.svc.cluster.local.",
        "example.org.cluster.local.",
        "9.9.96.10.in-addr.arpa.",
        "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
    ] {
        let answer = dns.udp(name, RecordType::PTR).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(answer.metadata.authoritative && answer.authorities[0].record_type() == RecordType::SOA);
    }
    assert_eq!(upstream.asked(), (0, 0));
    dns.udp("9.9.97.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(upstream.asked(), (1, 0));
}

#[tokio::test]
async fn a_silent_resolver_is_passed_over_and_then_asked_last() {
    let silent = Resolver::start(|_, _| None).await;
    let other = Resolver::start(|message, _| known(message)).await;
    let dns = Dns::start(vec![silent.address, other.address]).await;
    for name in ["a.example.org.", "b.example.org.", "c.example.org."] {
        assert_eq!(dns.udp(name, RecordType::A).await.answers.len(), 1);
    }
    assert_eq!((silent.asked(), other.asked()), ((1, 0), (3, 0)));
}

#[tokio::test]
async fn a_resolver_that_refuses_is_passed_over_and_its_code_is_the_last_resort() {
    let refusing = Resolver::start(|message, _| with_code(message, ResponseCode::Refused)).await;
    let other = Resolver::start(|message, _| {
        if message.queries[0].name().to_string() == "b.example.org." {
            return with_code(message, ResponseCode::ServFail);
        }
        known(message)
    })
    .await;
    let dns = Dns::start(vec![refusing.address, other.address]).await;
    let answer = dns.udp("a.example.org.", RecordType::A).await;
    assert_eq!(
        (answer.metadata.response_code, answer.answers.len()),
        (ResponseCode::NoError, 1)
    );
    let answer = dns.udp("b.example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn what_a_resolver_cuts_is_asked_for_again_by_tcp() {
    let upstream = Resolver::start(|mut message, tcp| {
        message.metadata.truncation = !tcp;
        if tcp {
            let name = message.queries[0].name().clone();
            let text = TXT::new(vec!["x".repeat(250); 8]);
            message.add_answer(Record::from_rdata(name, 60, RData::TXT(text)));
        }
        Some(message)
    })
    .await;
    let dns = Dns::start(vec![upstream.address]).await;
    let cut = dns.udp("large.example.org.", RecordType::TXT).await;
    assert!(
        cut.metadata.truncation && cut.answers.is_empty(),
        "2,000 bytes are too many for UDP"
    );
    let whole = dns.tcp("large.example.org.", RecordType::TXT).await;
    assert!(!whole.metadata.truncation && whole.answers.len() == 1);
    assert_eq!(upstream.asked(), (1, 1));
}

#[tokio::test]
async fn a_resolver_without_edns_is_asked_without() {
    let upstream = Resolver::start(|mut message, _| {
        if message.edns.take().is_some() {
            message.queries.clear();
            return with_code(message, ResponseCode::FormErr);
        }
        known(message)
    })
    .await;
    let dns = Dns::start(vec![upstream.address]).await;
    assert_eq!(dns.udp("old.example.org.", RecordType::A).await.answers.len(), 1);
    assert_eq!(upstream.asked(), (2, 0));
}

#[tokio::test]
async fn answers_with_and_without_dnssec_are_kept_apart() {
    let upstream = Resolver::start(|message, _| {
        let asked = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let mut message = known(message)?;
        message.answers[0].data = RData::A(A::new(192, 0, 2, if asked { 2 } else { 1 }));
        Some(message)
    })
    .await;
    let dns = Dns::start(vec![upstream.address]).await;
    for _ in 0..2 {
        let plain = dns.udp("example.org.", RecordType::A).await;
        assert_eq!(plain.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        let mut secure = question("example.org.", RecordType::A);
        secure.edns = Some(Edns::new());
        secure.edns.as_mut().unwrap().set_dnssec_ok(true);
        let secure = dns.send(&secure.to_vec().unwrap()).await;
        assert_eq!(secure.answers[0].data, RData::A(A::new(192, 0, 2, 2)));
    }
    assert_eq!(upstream.asked(), (2, 0));
}

#[tokio::test]
async fn a_forged_answer_is_not_taken() {
    let upstream = Resolver::start(|message, _| {
        let mut message = known(message)?;
        if message.queries[0].name().to_string() == "forged.example.org." {
            message.metadata.id = message.metadata.id.wrapping_add(1);
        }
        Some(message)
    })
    .await;
    let dns = Dns::start(vec![upstream.address]).await;
    let forged = dns.udp("forged.example.org.", RecordType::A).await;
    assert_eq!(forged.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        upstream.asked(),
        (2, 0),
        "a packet that may have been lost is sent again"
    );
    assert_eq!(dns.udp("true.example.org.", RecordType::A).await.answers.len(), 1);
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_servfail() {
    let dns = Dns::start(vec![NOBODY]).await;
    let answer = dns.udp("example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let answer = dns.udp("cluster.local.", RecordType::SOA).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}
