//! The server behind real sockets: UDP, TCP, truncation, live changes, forwarding and its cache.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot set its test up should end the test"
)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::runtime::{
    reflector::{self, store::Writer},
    watcher::Event,
};
use orch_cluster::Cluster;
use orch_dns::{DnsConfig, serve};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

struct Dns {
    address: SocketAddr,
    services: Writer<Service>,
    slices: Writer<EndpointSlice>,
    mark: watch::Sender<u64>,
    _stop: tokio_util::sync::DropGuard,
}

/// A port that is free for both protocols just now.
async fn free_address() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).await.is_ok() {
            return address;
        }
    }
}

async fn start(upstreams: Vec<SocketAddr>) -> Dns {
    let (services, service_writer) = reflector::store();
    let (slices, slice_writer) = reflector::store();
    let (nodes, _) = reflector::store::<Node>();
    let (mark, changed) = watch::channel(0);
    let cluster = Cluster::from_stores(services, slices, nodes, changed);
    let address = free_address().await;
    let stop = CancellationToken::new();
    let config = DnsConfig {
        listen: vec![address],
        domain: "cluster.local".into(),
        upstreams,
    };
    tokio::spawn(serve(config, cluster, stop.clone()));
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Dns {
        address,
        services: service_writer,
        slices: slice_writer,
        mark,
        _stop: stop.drop_guard(),
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

impl Dns {
    async fn udp(&self, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .send_to(&question(name, kind).to_vec().unwrap(), self.address)
            .await
            .unwrap();
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        assert!(
            length <= 512,
            "a client without EDNS takes 512 bytes, not {length}"
        );
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.id, 4242);
        answer
    }

    async fn tcp(&self, name: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let bytes = question(name, kind).to_vec().unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    fn put_service(&mut self, spec: serde_json::Value) {
        let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        self.services
            .apply_watcher_event(&Event::Apply(serde_json::from_value(service).unwrap()));
        self.mark.send_modify(|n| *n += 1);
    }
}

#[tokio::test]
async fn changes_show_in_the_next_answers() {
    let mut dns = start(Vec::new()).await;
    let name = "web.shop.svc.cluster.local.";
    assert_eq!(
        dns.udp(name, RecordType::A).await.metadata.response_code,
        ResponseCode::NXDomain
    );
    dns.put_service(json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]}));
    let answer = loop {
        let answer = dns.udp(name, RecordType::A).await;
        if !answer.answers.is_empty() {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].data, RData::A(A::new(10, 96, 0, 7)));
    let none = dns.tcp(name, RecordType::AAAA).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert!(none.answers.is_empty() && none.authorities[0].record_type() == RecordType::SOA);
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_comes_whole_by_tcp() {
    let mut dns = start(Vec::new()).await;
    let endpoints: Vec<_> = (1..=100)
        .map(|i| json!({"addresses": [format!("10.244.0.{i}")]}))
        .collect();
    let slice = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
    });
    dns.slices
        .apply_watcher_event(&Event::Apply(serde_json::from_value(slice).unwrap()));
    dns.put_service(json!({"clusterIP": "None"}));
    let name = "web.shop.svc.cluster.local.";
    while dns.tcp(name, RecordType::A).await.answers.len() != 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = dns.udp(name, RecordType::A).await;
    assert!(answer.metadata.truncation);
}

/// A resolver that knows every name, and counts its questions.
async fn resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 3600, RData::A(A::new(192, 0, 2, 1))));
            socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn other_names_are_forwarded_once_and_then_kept() {
    let (upstream, asked) = resolver().await;
    // The first resolver is not there at all.
    let mut dns = start(vec![free_address().await, upstream]).await;
    for _ in 0..3 {
        let answer = dns.udp("example.org.", RecordType::A).await;
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    dns.put_service(json!({"type": "ExternalName", "externalName": "example.org"}));
    let answer = loop {
        let answer = dns.udp("web.shop.svc.cluster.local.", RecordType::A).await;
        if !answer.answers.is_empty() {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    assert_eq!(
        asked.load(Ordering::SeqCst),
        1,
        "the alias's target is in the cache"
    );
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_servfail() {
    let dns = start(vec![free_address().await]).await;
    assert_eq!(
        dns.udp("example.org.", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    assert_eq!(
        dns.udp("cluster.local.", RecordType::SOA)
            .await
            .metadata
            .response_code,
        ResponseCode::NoError
    );
}
