//! A node whose programs and maps are of an older layout gets a new agent while clients talk through it.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{
        SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcHandle},
    },
};
use orch_dataplane::{Dataplane, DataplaneConfig, PodAttachment, inspect, maps};
use orch_ebpf::{Address4, conntrack::CONNTRACK_MAX};
use serde_json::json;
use support::{Fake, Namespace, Settings};

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The object that the crate embeds.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/orch.bpf.o")));

/// The map that had another capacity in the older release.
const MAP: &str = "ORCH_CONNTRACK4";
const FORMER_MAX: u32 = CONNTRACK_MAX as u32 + 15;
/// Program, start of its pins' names, and start of its interface's name.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("pod_ingress", "pod_", "orch"),
    ("pod_egress", "podegress_", "orch"),
    ("uplink_ingress", "uplink_ingress_", "eth0"),
    ("uplink_egress", "uplink_egress_", "eth0"),
];
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

#[test]
fn helper() {
    support::help();
}

/// Puts programs and a table of connections of an older release into the place of today's.
fn make_older(root: &Path) -> Ebpf {
    let folder = maps::folder(root);
    std::fs::remove_file(folder.join(MAP)).unwrap();
    let names: Vec<String> = maps::names().collect();
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(MAP, FORMER_MAX);
    for name in &names {
        loader.map_pin_path(name, folder.join(name));
    }
    let mut ebpf = loader.load(&OBJECT.0).unwrap();
    for (name, start, interface) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        let mut swapped = 0;
        for entry in std::fs::read_dir(root.join("links")).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with(start) {
                let link = FdLink::from(PinnedLink::from_pin(path).unwrap());
                program.attach_to_link(link.try_into().unwrap()).unwrap();
                swapped += 1;
            }
        }
        // Before Linux 6.6 there are no links to pin, but filters of tc.
        if swapped == 0 {
            let interface = interface_like(interface);
            let direction = if name.ends_with("egress") {
                TcAttachType::Egress
            } else {
                TcAttachType::Ingress
            };
            let handle = TcHandle::new(0, 1);
            let filter = SchedClassifierLink::attached(&interface, direction, 0x6f72, handle, None).unwrap();
            let link = program.attach_to_link(filter).unwrap();
            // It would go with the program that this returns.
            std::mem::forget(program.take_link(link).unwrap());
            swapped += 1;
        }
        assert_eq!(swapped, 1, "{name}");
    }
    ebpf
}

/// The interface here whose name begins like that.
fn interface_like(start: &str) -> String {
    let output = support::run("ip", &["-j", "link"]);
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut names = links.as_array().unwrap().iter().map(|link| &link["ifname"]);
    let name = names.find(|name| name.as_str().unwrap().starts_with(start));
    name.unwrap().as_str().unwrap().to_owned()
}

fn flows(root: &Path) -> usize {
    let table = maps::pinned_flows::<Address4>(&maps::folder(root)).unwrap();
    table.open().unwrap().all().unwrap().len()
}

fn say(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<()> {
    stream.write_all(word)?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, word);
    Ok(())
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20))?;
    stream.set_read_timeout(PATIENCE)?;
    stream.set_nodelay(true)?;
    say(&mut stream, b"hello")?;
    Ok(stream)
}

async fn start(config: &DataplaneConfig, fake: &mut Fake) -> Arc<Dataplane> {
    fake.open_policies();
    let dataplane = Dataplane::start(config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    let cidr = "10.244.1.0/24".parse().unwrap();
    dataplane.set_pod_cidrs(&[cidr]).await.unwrap();
    dataplane
}

async fn connect_pod(dataplane: &Dataplane, netns: PathBuf) -> IpAddr {
    let pod = PodAttachment {
        uid: "uid".into(),
        namespace: "default".into(),
        name: "pod".into(),
        netns,
        ..PodAttachment::default()
    };
    dataplane.attach_pod(&pod).await.unwrap()[0]
}

#[test]
fn connections_outlive_the_layout_of_their_table() {
    let [node, outside, pod] = ["un", "uo", "up"].map(Namespace::new);
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    for (namespace, address) in [(&node, "172.31.9.11/24"), (&outside, "172.31.9.1/24")] {
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("addr add {address} dev eth0"));
    }
    node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(upgrade(&outside, &pod));
}

async fn upgrade(outside: &Namespace, pod: &Namespace) {
    let mut config = Settings::new("upgrade");
    config.node_ips = vec!["172.31.9.11".parse().unwrap()];
    config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
    let root = &config.bpf_root;
    let mut fake = Fake::new();
    let dataplane = start(&config, &mut fake).await;
    let address = connect_pod(&dataplane, pod.path()).await;
    pod.serve_echo("0.0.0.0".parse().unwrap(), 8080);
    fake.ready();
    fake.service(json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
    }));
    fake.slice(json!({
        "metadata": {"name": "web-http", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [address], "nodeName": "n1", "conditions": {"ready": true}}],
    }));
    let rows = || inspect::read(root, inspect::View::Services).unwrap().json();
    while rows().as_array().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(dataplane);

    drop(make_older(root));
    let to = SocketAddr::new(config.node_ips[0], 30080);
    let mut idle = outside.thread(move || connect(to).unwrap()).join().unwrap();
    assert_eq!(flows(root), 2, "both directions, in the older table");

    // One connection is never still, and others come and go.
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let talk = outside.thread(move || {
        let mut stream = connect(to).unwrap();
        while !ends.load(Ordering::Relaxed) {
            say(&mut stream, b"again").unwrap();
        }
    });
    let ends = Arc::clone(&over);
    let come = outside.thread(move || {
        let mut connections = 0;
        while !ends.load(Ordering::Relaxed) {
            connect(to).unwrap();
            connections += 1;
        }
        connections
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let dataplane = start(&config, &mut fake).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    over.store(true, Ordering::Relaxed);
    let connections = come.join().unwrap();
    talk.join().unwrap();
    assert!(connections > 10, "{connections}");
    say(&mut idle, b"still here").unwrap();

    let table = MapInfo::from_pin(maps::folder(root).join(MAP)).unwrap();
    assert_eq!(table.max_entries() as usize, CONNTRACK_MAX);
    assert!(
        flows(root) >= 2 * connections,
        "{connections} and two more, in the new table"
    );
    let folders = std::fs::read_dir(root).unwrap().count();
    assert_eq!(folders, 2, "maps and links");
    let all = inspect::read(root, inspect::View::Services).unwrap().json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!(connect_pod(&dataplane, pod.path()).await, address);
}
