//! A server over caches that the test fills, and resolvers that answer as the test says.

#![allow(
    dead_code,
    reason = "each test binary uses its own part, so that no expectation holds for all"
)]

use std::{
    collections::HashMap,
    net::{self, IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
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
use orch_dns::{DnsConfig, Keeper, serve};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// The id of every question.
const ID: u16 = 4242;

/// Sockets that outlive a server, as long as this does.
#[derive(Default)]
pub struct Kept(Mutex<HashMap<SocketAddr, (net::UdpSocket, net::TcpListener)>>);

impl Keeper for Kept {
    fn take(&self, address: SocketAddr) -> Option<(net::UdpSocket, net::TcpListener)> {
        let kept = self.0.lock().unwrap();
        let (udp, tcp) = kept.get(&address)?;
        Some((udp.try_clone().unwrap(), tcp.try_clone().unwrap()))
    }

    fn keep(&self, [udp, tcp]: [OwnedFd; 2]) {
        let udp = net::UdpSocket::from(udp);
        let address = udp.local_addr().unwrap();
        self.0.lock().unwrap().insert(address, (udp, tcp.into()));
    }
}

pub struct Dns {
    /// Where questions go.
    pub address: SocketAddr,
    /// All that is served: one of each family.
    pub addresses: Vec<SocketAddr>,
    services: Writer<Service>,
    slices: Writer<EndpointSlice>,
    mark: watch::Sender<u64>,
    _stop: tokio_util::sync::DropGuard,
}

/// Both sockets of a port that was free for both protocols.
async fn both(ip: &str) -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind(format!("{ip}:0")).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// An address that nobody listens on, and that nobody is given.
pub const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// An address that nobody listens on just now.
pub async fn free_address(ip: &str) -> SocketAddr {
    both(ip).await.0.local_addr().unwrap()
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

impl Dns {
    pub async fn start(upstreams: Vec<SocketAddr>) -> Self {
        let addresses = vec![free_address("127.0.0.1").await, free_address("[::1]").await];
        let dns = Self::start_at(addresses, upstreams, Arc::<Kept>::default());
        for address in &dns.addresses {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        dns
    }

    /// Starts a server and does not wait for it.
    pub fn start_at(addresses: Vec<SocketAddr>, upstreams: Vec<SocketAddr>, keeper: Arc<dyn Keeper>) -> Self {
        let (services, mut service_writer) = reflector::store();
        let (slices, mut slice_writer) = reflector::store();
        let (nodes, _) = reflector::store::<Node>();
        let (mark, changed) = watch::channel(0);
        service_writer.apply_watcher_event(&Event::Init);
        service_writer.apply_watcher_event(&Event::InitDone);
        slice_writer.apply_watcher_event(&Event::Init);
        slice_writer.apply_watcher_event(&Event::InitDone);
        let cluster = Cluster::from_stores(services, slices, nodes, changed);
        let stop = CancellationToken::new();
        let config = DnsConfig {
            listen: addresses.clone(),
            domain: "cluster.local".into(),
            upstreams,
            networks: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
        };
        tokio::spawn(serve(config, cluster, keeper, stop.clone()));
        Self {
            address: addresses[0],
            addresses,
            services: service_writer,
            slices: slice_writer,
            mark,
            _stop: stop.drop_guard(),
        }
    }

    /// Sends bytes by UDP, and reads the answer, which has to fit a client without EDNS unless it has an OPT record.
    pub async fn send(&self, bytes: &[u8]) -> Message {
        let local = if self.address.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.send_to(bytes, self.address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert!(
            length <= 512 || answer.edns.is_some(),
            "a client without EDNS takes 512 bytes, not {length}"
        );
        assert_eq!(answer.metadata.id, ID);
        answer
    }

    pub async fn udp(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind).to_vec().unwrap()).await
    }

    pub async fn tcp(&self, name: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let bytes = question(name, kind).to_vec().unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// Asks until the answer is as wanted.
    pub async fn until(&self, name: &str, kind: RecordType, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let answer = self.udp(name, kind).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn put_service(&mut self, spec: Value) {
        let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        self.services
            .apply_watcher_event(&Event::Apply(serde_json::from_value(service).unwrap()));
        self.mark.send_modify(|n| *n += 1);
    }

    pub fn remove_service(&mut self) {
        let service = json!({"metadata": {"name": "web", "namespace": "shop"}});
        self.services
            .apply_watcher_event(&Event::Delete(serde_json::from_value(service).unwrap()));
        self.mark.send_modify(|n| *n += 1);
    }

    pub fn put_slice(&mut self, endpoints: Value) {
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
        });
        self.slices
            .apply_watcher_event(&Event::Apply(serde_json::from_value(slice).unwrap()));
        self.mark.send_modify(|n| *n += 1);
    }
}

/// A resolver that answers as it is told, and counts its questions.
#[derive(Clone)]
pub struct Resolver {
    pub address: SocketAddr,
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
}

impl Resolver {
    /// `answer` gets the empty response to fill, and whether the question came by TCP; `None` is silence.
    pub async fn start(answer: impl Fn(Message, bool) -> Option<Message> + Send + Sync + 'static) -> Self {
        let (socket, listener) = both("127.0.0.1").await;
        let resolver = Self {
            address: socket.local_addr().unwrap(),
            udp: Arc::default(),
            tcp: Arc::default(),
        };
        let answer = Arc::new(answer);
        let (count, by_udp) = (resolver.udp.clone(), answer.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let message = Message::from_vec(&buffer[..length]).unwrap().into_response();
                if let Some(message) = by_udp(message, false) {
                    socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
                }
            }
        });
        let count = resolver.tcp.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut bytes).await.unwrap();
                let message = Message::from_vec(&bytes).unwrap().into_response();
                if let Some(message) = answer(message, true) {
                    let bytes = message.to_vec().unwrap();
                    stream.write_u16(bytes.len() as u16).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        });
        resolver
    }

    /// Questions by UDP and by TCP so far.
    pub fn asked(&self) -> (usize, usize) {
        (self.udp.load(Ordering::SeqCst), self.tcp.load(Ordering::SeqCst))
    }
}
