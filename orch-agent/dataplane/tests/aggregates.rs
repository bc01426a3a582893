//! TCP aggregates over 64 KiB ("BIG TCP") on real interfaces: between pods by address and by service, under a policy, and
//! out of the node; and where there are none.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use netlink_packet_route::link::LinkAttribute;
use nix::sys::{
    socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt},
    time::TimeVal,
};
use orch_cluster::policies::{self, PolicyEvent, Update};
use orch_dataplane::{Dataplane, PodAttachment, Tunnel, inspect};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use serde_json::json;
use support::{Fake, Namespace, Settings};

#[test]
fn helper() {
    support::help();
}

/// The kernel's default, in bytes with headers; no longer packet can say its length in IPv4's header.
const DEFAULT: u32 = 65_536;
/// What a veth takes at most.
const MOST: u32 = 524_280;
/// Where servers listen.
const PORT: u16 = 8080;
/// The port of the service.
const SERVICE_PORT: u16 = 80;
/// Bytes of one transfer.
const TRANSFER: usize = 256 * PERIOD;
/// Transfers in which an aggregate must have been seen: a connection begins with small ones.
const TRANSFERS: usize = 10;
/// A prime number of bytes, after which what is sent repeats itself: no offset in a packet has the same bytes for long.
const PERIOD: usize = 65_521;

/// A node with an uplink, whose other end is in `outside`.
struct Place {
    config: Settings,
    node: Namespace,
    outside: Namespace,
}

fn place(name: &str, tunnel: Tunnel) -> Place {
    let (node, outside) = (
        Namespace::new(&format!("ag{name}n")),
        Namespace::new(&format!("ag{name}o")),
    );
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip("link set eth0 up");
    outside.ip("link set eth0 up");
    for (namespace, last) in [(&node, 11), (&outside, 1)] {
        namespace.ip(&format!("addr add 172.31.0.{last}/24 dev eth0"));
        namespace.ip(&format!("addr add fd00:31::{last}/64 dev eth0 nodad"));
    }
    node.ip("route add default via 172.31.0.1");
    node.ip("route add ::/0 via fd00:31::1");
    let mut config = Settings::new(&format!("aggregates-{name}"));
    config.tunnel = tunnel;
    Place {
        node,
        outside,
        config,
    }
}

/// Runs `work` with rtnetlink inside the namespace.
fn netlink<T: Send + 'static>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Handle) -> T + Send + 'static,
) -> T {
    let thread = namespace.thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            work(handle).await
        })
    });
    thread.join().unwrap()
}

/// What `eth0` takes in one piece, of IPv4 and of IPv6; nothing is known of IPv4's on kernels before 6.3.
fn takes(namespace: &Namespace) -> (Option<u32>, u32) {
    netlink(namespace, async |handle| {
        let mut found = handle.link().get().match_name("eth0".to_owned()).execute();
        let link = found.try_next().await.unwrap().unwrap();
        let (mut v4, mut v6) = (None, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::GsoIpv4MaxSize(bytes) => v4 = Some(*bytes),
                LinkAttribute::GsoMaxSize(bytes) => v6 = Some(*bytes),
                _ => {}
            }
        }
        (v4, v6.unwrap())
    })
}

/// Sets what `eth0` takes in one piece.
fn set(namespace: &Namespace, bytes: u32) {
    netlink(namespace, async move |handle| {
        let mut found = handle.link().get().match_name("eth0".to_owned()).execute();
        let index = found.try_next().await.unwrap().unwrap().header.index;
        let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(index).build();
        message.attributes = vec![
            LinkAttribute::GsoMaxSize(bytes),
            LinkAttribute::GsoIpv4MaxSize(bytes),
        ];
        handle.link().set(message).execute().await.unwrap();
    });
}

fn pattern() -> Vec<u8> {
    (0..PERIOD)
        .map(|index| ((index * 2_654_435_761) >> 13) as u8)
        .collect()
}

/// A server that answers each transfer with how many bytes came as they were sent.
fn serve(namespace: &Namespace, address: IpAddr) {
    let (ready, wait) = mpsc::channel();
    namespace.thread(move || {
        let listener = TcpListener::bind(SocketAddr::new(address, PORT)).unwrap();
        // Nobody sends more in one piece than half of what there is room for.
        socket::setsockopt(&listener, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        ready.send(()).unwrap();
        let pattern = pattern();
        for mut stream in listener.incoming().flatten() {
            let (mut buffer, mut right) = (vec![0; PERIOD], 0_u64);
            while stream.read_exact(&mut buffer).is_ok() && buffer == pattern {
                right += PERIOD as u64;
            }
            let _ = stream.write_all(&right.to_be_bytes());
        }
    });
    wait.recv().unwrap();
}

/// Sends a transfer; says how many bytes arrived as they were sent.
fn send(namespace: &Namespace, target: SocketAddr) -> usize {
    let thread = namespace.thread(move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
        let wait = Some(Duration::from_secs(60));
        stream.set_read_timeout(wait).unwrap();
        stream.set_write_timeout(wait).unwrap();
        let all = pattern().repeat(TRANSFER / PERIOD);
        stream
            .write_all(&all)
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut right = [0; 8];
        stream.read_exact(&mut right).unwrap();
        u64::from_be_bytes(right) as usize
    });
    thread.join().unwrap()
}

fn connects(namespace: &Namespace, target: SocketAddr) -> bool {
    let connect = move || TcpStream::connect_timeout(&target, Duration::from_secs(2)).is_ok();
    namespace.thread(connect).join().unwrap()
}

/// The longest packet that a namespace's interfaces see while this lives.
struct Longest {
    bytes: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Longest {
    fn of(namespace: &Namespace) -> Self {
        let (bytes, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (ready, wait) = mpsc::channel();
        let (seen, end) = (Arc::clone(&bytes), Arc::clone(&over));
        let thread = namespace.thread(move || {
            let socket = socket::socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .unwrap();
            socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
            ready.send(()).unwrap();
            let mut start = [0; 64];
            while !end.load(Ordering::Relaxed) {
                // The length is the packet's, however little of it there is room for.
                if let Ok(length) = socket::recv(socket.as_raw_fd(), &mut start, MsgFlags::MSG_TRUNC) {
                    seen.fetch_max(length, Ordering::Relaxed);
                }
            }
        });
        wait.recv().unwrap();
        Self {
            bytes,
            over,
            thread: Some(thread),
        }
    }

    /// Without the Ethernet header.
    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed).saturating_sub(14)
    }
}

impl Drop for Longest {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends until a packet over 64 KiB has reached the receiver, who must get every byte as it was sent.
fn insist_on_large(from: &Namespace, to: &Namespace, target: SocketAddr) {
    let longest = Longest::of(to);
    for _ in 0..TRANSFERS {
        assert_eq!(send(from, target), TRANSFER, "{target}");
        if longest.bytes() > DEFAULT as usize {
            return;
        }
    }
    panic!("{target}: no packet was longer than {} bytes", longest.bytes());
}

fn labels(app: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), app.to_owned())])
}

struct Pod {
    namespace: Namespace,
    attachment: PodAttachment,
    ips: Vec<IpAddr>,
}

impl Pod {
    fn new(name: &str) -> Self {
        let namespace = Namespace::new(&format!("ag{name}"));
        let attachment = PodAttachment {
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            name: name.into(),
            netns: namespace.path(),
            labels: labels(name),
            ..PodAttachment::default()
        };
        Self {
            namespace,
            attachment,
            ips: Vec::new(),
        }
    }

    fn known(&self) -> policies::Pod {
        policies::Pod {
            uid: self.attachment.uid.clone(),
            namespace: "default".into(),
            name: self.attachment.name.clone(),
            labels: Arc::new(self.attachment.labels.clone()),
            addresses: self.ips.clone(),
            ports: Vec::new(),
        }
    }
}

/// Runs `work` on a node's data plane; policies come by the channel.
fn on_node(
    place: &Place,
    work: impl AsyncFnOnce(Arc<Dataplane>, Fake, tokio::sync::mpsc::Sender<PolicyEvent>),
) {
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (tell, events) = tokio::sync::mpsc::channel(16);
        tell.send(PolicyEvent::Policy(Update::All(Vec::new())))
            .await
            .unwrap();
        let mut fake = Fake::new();
        fake.ready();
        fake.cluster.set_policy_events(events);
        let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
            .await
            .unwrap();
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap());
        dataplane.set_pod_cidrs(&cidrs).await.unwrap();
        work(dataplane, fake, tell).await;
    });
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn pods_send_larger_aggregates_where_the_uplink_takes_them() {
    let place = place("big", Tunnel::Off);
    set(&place.node, MOST);
    set(&place.outside, MOST);
    on_node(&place, async |dataplane, mut fake, tell| {
        let (mut web, mut client, mut other) = (Pod::new("web"), Pod::new("client"), Pod::new("other"));
        for pod in [&mut web, &mut client, &mut other] {
            pod.ips = dataplane.attach_pod(&pod.attachment).await.unwrap();
        }
        // Kernels before 6.3 have large ones of IPv6 only, and carry those of IPv4 all the same.
        let v4 = takes(&place.node).0;
        assert_eq!(takes(&client.namespace), (v4, MOST));
        let reach = |to: &Namespace, target: SocketAddr| {
            if v4.is_some() || target.is_ipv6() {
                insist_on_large(&client.namespace, to, target);
            } else {
                assert_eq!(send(&client.namespace, target), TRANSFER, "{target}");
            }
        };

        // The service's port is another than its backend's, so that addresses and ports are translated.
        fake.service(json!({
            "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7", "fd00:10:96::77"],
                "ports": [{"port": SERVICE_PORT}]},
        }));
        for (kind, address) in ["IPv4", "IPv6"].iter().zip(&web.ips) {
            fake.slice(json!({
                "metadata": {"name": kind, "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind,
                "ports": [{"port": PORT}],
                "endpoints": [{"addresses": [address], "nodeName": "n1", "conditions": {"ready": true}}],
            }));
        }
        let policy = json!({
            "metadata": {"namespace": "default", "name": "in"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": PORT}]}],
            },
        });
        for event in [
            PolicyEvent::Namespace(Update::All(Vec::new())),
            PolicyEvent::Pod(Update::All(vec![web.known(), client.known(), other.known()])),
            PolicyEvent::Policy(Update::All(vec![Arc::new(
                serde_json::from_value(policy).unwrap(),
            )])),
        ] {
            tell.send(event).await.unwrap();
        }
        for ip in &web.ips {
            serve(&web.namespace, *ip);
        }
        let services: [IpAddr; 2] = ["10.96.7.7".parse().unwrap(), "fd00:10:96::77".parse().unwrap()];
        let rows = || {
            inspect::read(&place.config.bpf_root, inspect::View::Services)
                .unwrap()
                .json()
        };
        until("the service", || rows().as_array().unwrap().len() == 2);
        // Nobody is in the middle of a transfer when the policy comes.
        let refused = || !connects(&other.namespace, SocketAddr::new(web.ips[0], PORT));
        until("the policy", refused);
        for family in [0, 1] {
            for target in [
                SocketAddr::new(web.ips[family], PORT),
                SocketAddr::new(services[family], SERVICE_PORT),
            ] {
                reach(&web.namespace, target);
                assert!(
                    !connects(&other.namespace, target),
                    "{target}: no policy allows it"
                );
            }
        }

        // To the node itself, which no program redirects to.
        let node: [IpAddr; 2] = ["172.31.0.11".parse().unwrap(), "fd00:31::11".parse().unwrap()];
        for family in [0, 1] {
            serve(&place.node, node[family]);
            reach(&place.node, SocketAddr::new(node[family], PORT));
        }

        // Out of the node, with the node's address: as they are, and in segments once the uplink takes less.
        let outside: [IpAddr; 2] = ["172.31.0.1".parse().unwrap(), "fd00:31::1".parse().unwrap()];
        for ip in outside {
            serve(&place.outside, ip);
        }
        for family in [0, 1] {
            reach(&place.outside, SocketAddr::new(outside[family], PORT));
        }
        set(&place.node, DEFAULT);
        for family in [0, 1] {
            let longest = Longest::of(&place.outside);
            let target = SocketAddr::new(outside[family], PORT);
            assert_eq!(send(&client.namespace, target), TRANSFER, "{target}");
            let longest = longest.bytes();
            assert!(longest <= DEFAULT as usize, "{target}: {longest}");
        }
    });
}

#[test]
fn pods_keep_to_the_default_where_the_uplink_or_a_limit_asks_for_it() {
    let place = place("small", Tunnel::Off);
    on_node(&place, async |dataplane, _fake, _tell| {
        let pod = Pod::new("plain");
        dataplane.attach_pod(&pod.attachment).await.unwrap();
        let (v4, v6) = takes(&pod.namespace);
        assert_eq!((v4.unwrap_or(DEFAULT), v6), (DEFAULT, DEFAULT));
    });
    // A data plane that begins after the change; the kernel tells a running one nothing of it.
    set(&place.node, MOST);
    on_node(&place, async |dataplane, _fake, _tell| {
        let mut limited = Pod::new("limited");
        limited.attachment.bandwidth.egress = Some(1_000_000_000);
        dataplane.attach_pod(&limited.attachment).await.unwrap();
        assert_eq!(takes(&limited.namespace).1, DEFAULT, "of bandwidth");
        let free = Pod::new("free");
        dataplane.attach_pod(&free.attachment).await.unwrap();
        let (v4, v6) = takes(&free.namespace);
        assert_eq!((v4.unwrap_or(MOST), v6), (MOST, MOST));
    });
}

#[test]
fn pods_keep_to_the_default_where_packets_go_through_a_tunnel() {
    let place = place("tunnel", Tunnel::Vxlan);
    set(&place.node, MOST);
    on_node(&place, async |dataplane, _fake, _tell| {
        let pod = Pod::new("tunnelled");
        dataplane.attach_pod(&pod.attachment).await.unwrap();
        let (v4, v6) = takes(&pod.namespace);
        assert_eq!((v4.unwrap_or(DEFAULT), v6), (DEFAULT, DEFAULT));
    });
}
