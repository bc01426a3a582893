//! The server behind real sockets: UDP, TCP, truncation, live changes. Forwarding is in `forwarding.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot set its test up should end the test"
)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Dns, Kept, free_address, question};
use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{RData, RecordType, rdata::A},
};
use orch_dns::Keeper as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

const NAME: &str = "web.shop.svc.cluster.local.";

#[tokio::test]
async fn changes_show_in_the_next_answers_on_every_address() {
    let mut dns = Dns::start(Vec::new()).await;
    assert_eq!(dns.addresses.len(), 2);
    let before = dns.udp(NAME, RecordType::A).await;
    assert_eq!(before.metadata.response_code, ResponseCode::NXDomain);
    dns.put_service(json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]}));
    let answer = dns
        .until(NAME, RecordType::A, |answer| !answer.answers.is_empty())
        .await;
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].data, RData::A(A::new(10, 96, 0, 7)));
    for address in dns.addresses.clone() {
        dns.address = address;
        let some = dns.udp(NAME, RecordType::A).await;
        assert_eq!(some.answers[0].data, RData::A(A::new(10, 96, 0, 7)), "{address}");
        let none = dns.tcp(NAME, RecordType::AAAA).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NoError);
        assert!(none.answers.is_empty() && none.authorities[0].record_type() == RecordType::SOA);
    }
    dns.remove_service();
    dns.until(NAME, RecordType::A, |answer| {
        answer.metadata.response_code == ResponseCode::NXDomain
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_between_two_servers_waits_for_the_second() {
    let address = free_address("127.0.0.1").await;
    let kept = Arc::<Kept>::default();
    let first = Dns::start_at(vec![address], Vec::new(), kept.clone());
    while kept.take(address).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.udp(NAME, RecordType::A).await;
    drop(first);
    // Until the first server has let go of its copies it may still answer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bytes = question(NAME, RecordType::A).to_vec().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(address).await.unwrap();
    udp.send(&bytes).await.unwrap();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_u16(bytes.len() as u16).await.unwrap();
    tcp.write_all(&bytes).await.unwrap();
    let mut buffer = [0; 512];
    let early = tokio::time::timeout(Duration::from_millis(200), udp.recv(&mut buffer)).await;
    assert!(
        early.is_err(),
        "neither answered nor refused while nobody serves: {early:?}"
    );
    let _second = Dns::start_at(vec![address], Vec::new(), kept);
    let length = udp.recv(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    // From full lists, and not from none.
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(tcp.read_u16().await.unwrap() > 12);
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_comes_whole_by_tcp() {
    let mut dns = Dns::start(Vec::new()).await;
    let endpoints: Vec<_> = (1..=100)
        .map(|i| json!({"addresses": [format!("10.244.0.{i}")]}))
        .collect();
    dns.put_slice(json!(endpoints));
    dns.put_service(json!({"clusterIP": "None"}));
    while dns.tcp(NAME, RecordType::A).await.answers.len() != 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Without EDNS 512 bytes, which the helper checks; with it as many as both sides take.
    let small = dns.udp(NAME, RecordType::A).await;
    assert!(
        small.metadata.truncation && (20..32).contains(&small.answers.len()),
        "{}",
        small.answers.len()
    );
    let mut asked = question(NAME, RecordType::A);
    asked.edns = Some(Edns::new());
    asked.edns.as_mut().unwrap().set_max_payload(900);
    let larger = dns.send(&asked.to_vec().unwrap()).await;
    assert!(
        larger.metadata.truncation && larger.answers.len() > 45,
        "{}",
        larger.answers.len()
    );
    assert!(larger.edns.is_some());
}

#[tokio::test]
async fn a_connection_takes_any_number_of_questions() {
    let mut dns = Dns::start(Vec::new()).await;
    dns.put_service(json!({"clusterIP": "10.96.0.7"}));
    dns.until(NAME, RecordType::A, |answer| !answer.answers.is_empty())
        .await;
    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    let mut all = Vec::new();
    for id in 0..5u16 {
        let mut message = question(NAME, RecordType::A);
        message.metadata.id = id;
        let bytes = message.to_vec().unwrap();
        all.extend((bytes.len() as u16).to_be_bytes());
        all.extend(bytes);
    }
    // All at once, and cut where no message ends.
    stream.write_all(&all[..7]).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&all[7..]).await.unwrap();
    for id in 0..5 {
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
    }
    // What is no request ends the connection, and only that one.
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert!(stream.read_u16().await.is_err());
    assert_eq!(dns.tcp(NAME, RecordType::A).await.answers.len(), 1);
}

#[tokio::test]
async fn garbage_is_answered_by_a_code_or_not_at_all_and_harms_nobody() {
    let dns = Dns::start(Vec::new()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&[1, 2, 3], dns.address).await.unwrap();
    socket.send_to(&[], dns.address).await.unwrap();
    let broken = dns.send(&[16, 146, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 255, 1]).await;
    assert_eq!(broken.metadata.response_code, ResponseCode::FormErr);
    let update = dns.send(&[16, 146, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!(update.metadata.response_code, ResponseCode::NotImp);
    let soa = dns.udp("cluster.local.", RecordType::SOA).await;
    assert_eq!(
        (soa.metadata.response_code, soa.answers.len()),
        (ResponseCode::NoError, 1)
    );
}
