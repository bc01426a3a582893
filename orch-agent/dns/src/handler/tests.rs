//! Requests as bytes: what is answered how, and that nothing panics.

use std::{net::SocketAddr, sync::Arc};

use hickory_proto::{
    op::Query,
    rr::{Record, rdata::A},
};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn handler(upstreams: Vec<SocketAddr>) -> Handler {
    let zone = Zone::new("cluster.local", &["10.96.0.0/16".parse().unwrap()], Vec::new()).unwrap();
    let handler = Handler::new(zone, Forwarder::new(upstreams));
    let service = |name: &str, spec: serde_json::Value| {
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        Some(Arc::new(serde_json::from_value(object).unwrap()))
    };
    let alias = |name: &str, to: &str| service(name, json!({"type": "ExternalName", "externalName": to}));
    handler.update(|index| {
        index.put_service("web", "shop", service("web", json!({"clusterIP": "10.96.1.2"})));
        index.put_service("to-web", "shop", alias("to-web", "web.shop.svc.cluster.local"));
        index.put_service(
            "to-nothing",
            "shop",
            alias("to-nothing", "nope.shop.svc.cluster.local."),
        );
        index.put_service("twice", "shop", alias("twice", "to-web.shop.svc.cluster.local"));
        index.put_service("round", "shop", alias("round", "round.shop.svc.cluster.local"));
        index.put_service("out", "shop", alias("out", "example.org"));
    });
    handler
}

fn request(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask(handler: &Handler, request: &[u8]) -> Option<Message> {
    let bytes = handler.respond(request, Transport::Udp).await?;
    Some(Message::from_vec(&bytes).unwrap())
}

#[tokio::test]
async fn aliases_are_followed_within_the_zone_and_end() {
    let handler = handler(Vec::new());
    let table = [
        ("to-web", RecordType::A, ResponseCode::NoError, 2),
        ("twice", RecordType::A, ResponseCode::NoError, 3),
        ("to-web", RecordType::CNAME, ResponseCode::NoError, 1),
        ("to-web", RecordType::AAAA, ResponseCode::NoError, 1),
        ("to-nothing", RecordType::A, ResponseCode::NXDomain, 1),
        ("round", RecordType::A, ResponseCode::NoError, 1 + MAX_ALIASES),
        // There is nobody to ask.
        ("out", RecordType::A, ResponseCode::ServFail, 1),
    ];
    for (name, kind, code, answers) in table {
        let request = request(&format!("{name}.shop.svc.cluster.local."), kind)
            .to_vec()
            .unwrap();
        let answer = ask(&handler, &request).await.unwrap();
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len()),
            (code, answers),
            "{name} {kind}"
        );
        assert!(answer.metadata.authoritative, "{name}");
        let negative = matches!((name, kind), ("to-nothing", _) | (_, RecordType::AAAA));
        assert_eq!(!answer.authorities.is_empty(), negative, "{name} {kind}");
    }
}

#[tokio::test]
async fn what_is_no_plain_question_is_answered_by_its_code_alone() {
    let handler = handler(Vec::new());
    let good = request("WEB.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let answer = ask(&handler, &good).await.unwrap();
    assert_eq!(answer.answers[0].data, RData::A(A::new(10, 96, 1, 2)));
    assert!(
        answer.queries[0]
            .name()
            .eq_case(&Name::from_ascii("WEB.shop.svc.cluster.local.").unwrap())
    );
    assert!(answer.edns.is_none(), "nobody asked for an OPT record");
    let change = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    // Class CH; the class is the last byte.
    let chaos = change(good.len() - 1, 3);
    let table: [(&str, Vec<u8>, Option<ResponseCode>); 9] = [
        ("too short", good[..11].to_vec(), None),
        ("an answer", change(2, 0x81), None),
        ("an update", change(2, 5 << 3), Some(ResponseCode::NotImp)),
        ("a notify", change(2, 4 << 3), Some(ResponseCode::NotImp)),
        ("no question", change(5, 0), Some(ResponseCode::FormErr)),
        ("two questions", change(5, 2), Some(ResponseCode::FormErr)),
        (
            "cut off",
            good[..good.len() - 3].to_vec(),
            Some(ResponseCode::FormErr),
        ),
        ("another class", chaos, Some(ResponseCode::Refused)),
        (
            "a label pointing at itself",
            [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
            Some(ResponseCode::FormErr),
        ),
    ];
    for (what, bytes, code) in table {
        let answer = ask(&handler, &bytes).await;
        assert_eq!(answer.as_ref().map(|a| a.metadata.response_code), code, "{what}");
        if let Some(answer) = answer {
            assert_eq!(
                (answer.metadata.id, answer.metadata.message_type),
                (77, MessageType::Response),
                "{what}"
            );
            assert!(answer.answers.is_empty());
        }
    }
    let transfer = request("cluster.local.", RecordType::AXFR).to_vec().unwrap();
    assert_eq!(
        ask(&handler, &transfer).await.unwrap().metadata.response_code,
        ResponseCode::Refused
    );
    let mut outside = request("example.org.", RecordType::A);
    outside.metadata.recursion_desired = false;
    let outside = ask(&handler, &outside.to_vec().unwrap()).await.unwrap();
    assert_eq!(outside.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_opt_record_is_answered_by_one() {
    let handler = handler(Vec::new());
    let mut request = request("web.shop.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    request.set_edns(edns.clone());
    let answer = ask(&handler, &request.to_vec().unwrap()).await.unwrap();
    let opt = answer.edns.unwrap();
    assert_eq!(
        (opt.max_payload(), opt.version(), opt.flags().dnssec_ok),
        (MAX_UDP_PAYLOAD, 0, true)
    );
    edns.set_version(1);
    request.set_edns(edns);
    let answer = ask(&handler, &request.to_vec().unwrap()).await.unwrap();
    // The number has two names (RFC 6895 section 2.3).
    assert_eq!(
        u16::from(answer.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
    assert_eq!(answer.edns.unwrap().version(), 0);
}

#[tokio::test]
async fn names_of_the_cluster_are_not_denied_before_they_are_known() {
    let zone = Zone::new("cluster.local", &[], Vec::new()).unwrap();
    let handler = Handler::new(zone, Forwarder::new(Vec::new()));
    let request = request("web.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let code = ask(&handler, &request).await.unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
    handler.update(|_| {});
    let code = ask(&handler, &request).await.unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::NXDomain);
}

#[test]
fn what_does_not_fit_is_cut_as_little_as_possible() {
    let mut message = request("web.shop.svc.cluster.local.", RecordType::A);
    let name = message.queries[0].name().clone();
    let record = |i: u32| Record::from_rdata(name.clone(), 5, RData::A(A::from(std::net::Ipv4Addr::from(i))));
    message.answers = (0..100).map(record).collect();
    message.additionals = (0..5).map(record).collect();
    let whole = message.to_vec().unwrap().len();
    for limit in [
        512,
        513,
        600,
        1232,
        u16::try_from(whole).unwrap() - 1,
        u16::try_from(whole).unwrap(),
        u16::MAX,
    ] {
        let bytes = encode(message.clone(), limit).unwrap();
        assert!(bytes.len() <= usize::from(limit));
        let cut = Message::from_vec(&bytes).unwrap();
        // Each record takes 16 bytes: a pointer to the name, type, class, TTL, length and address.
        let lost = cut.answers.len() < 100;
        assert_eq!(cut.metadata.truncation, lost, "{limit}");
        assert!(
            !lost || usize::from(limit) - bytes.len() < 16,
            "{limit}: {} of it used",
            bytes.len()
        );
        assert_eq!(
            cut.additionals.len(),
            if usize::from(limit) < whole { 0 } else { 5 }
        );
    }
    message.answers = (0..5000).map(record).collect();
    message.edns = Some(Edns::new());
    let cut = Message::from_vec(&encode(message, u16::MAX).unwrap()).unwrap();
    assert!(
        cut.metadata.truncation && cut.answers.len() > 1000,
        "{}",
        cut.answers.len()
    );
    assert!(cut.edns.is_some(), "the OPT record stays");
}

proptest! {
    #[test]
    fn no_bytes_panic_and_every_answer_is_one(mut bytes in prop::collection::vec(any::<u8>(), 0..600), tidy in 0..4u8) {
        // Few random headers come past the first checks.
        if tidy > 0 && bytes.len() >= 12 {
            bytes[2] = 1;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        check(&bytes)?;
    }

    #[test]
    fn no_mutation_of_a_question_panics(at in prop::collection::vec((0..80usize, any::<u8>()), 0..6), labels in "[a-z0-9_*.-]{0,40}") {
        let name = Name::from_ascii(format!("{labels}.svc.cluster.local.")).unwrap_or_else(|_| Name::root());
        let mut message = request("x.", RecordType::SRV);
        message.queries[0].set_name(name);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        for (at, to) in at {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
        }
        check(&bytes)?;
    }
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let handler = handler(Vec::new());
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
        if let Some(answer) = runtime.block_on(handler.respond(bytes, transport)) {
            prop_assert!(answer.len() <= limit);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
            prop_assert!(answer[2] & 0x80 != 0);
            prop_assert!(Message::from_vec(&answer).is_ok());
        }
    }
    Ok(())
}
