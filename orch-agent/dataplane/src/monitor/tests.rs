//! Events through the hub, the filter and a real socket, with names.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use orch_ebpf::{
    Address, Address4, PROTOCOL_TCP, PROTOCOL_UDP,
    config::{CONFIG_DROPS, CONFIG_FLOWS},
    conntrack::KIND_SERVICE,
    event::{DropReason, EVENT_DROP, EVENT_FLOW, EVENT_VERDICT, Event},
    policy::{IDENTITY_WORLD, INGRESS},
};
use serde_json::{Value, json};

use super::{
    Filter, Kind, Message, Protocol, Verdict,
    client::{Monitor, MonitorError},
    hub::Hub,
    line,
    names::ClusterNames,
    record::{Names, describe},
    server,
};

struct Fixed {
    cluster: ClusterNames,
    pods: HashMap<IpAddr, String>,
}

impl Names for Fixed {
    fn node(&self) -> &str {
        "n1"
    }
    fn pod(&self, ip: IpAddr) -> Option<String> {
        self.pods.get(&ip).cloned().or_else(|| self.cluster.pod(ip))
    }
    fn service(&self, ip: IpAddr, port: u16) -> Option<String> {
        self.cluster.service(ip, port)
    }
    fn node_at(&self, ip: IpAddr) -> Option<String> {
        self.cluster.node_at(ip)
    }
    fn identity(&self, number: u32) -> Option<String> {
        (number == 20).then(|| "app=web".to_owned())
    }
    fn pod_at(&self, ifindex: u32) -> Option<String> {
        (ifindex == 7).then(|| "default/web-1".to_owned())
    }
    fn role(&self, ifindex: u32) -> Option<&'static str> {
        (ifindex == 2).then_some("uplink")
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn names() -> Fixed {
    let service: Arc<Service> = object(json!({
        "metadata": {"name": "api", "namespace": "default"},
        "spec": {
            "clusterIPs": ["10.96.0.7", "fd00:10:96::7"], "externalIPs": ["203.0.113.9"],
            "ports": [{"port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}},
    }));
    let slice: Arc<EndpointSlice> = object(json!({
        "metadata": {"name": "api-1", "namespace": "default"}, "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.244.1.7"], "targetRef": {"kind": "Pod", "namespace": "default", "name": "api-0"}},
            {"addresses": ["172.30.0.12"], "targetRef": {"kind": "Pod", "namespace": "default", "name": "hostly"}},
        ],
    }));
    let node: Arc<Node> = object(json!({
        "metadata": {"name": "n2"}, "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.12"}]},
    }));
    Fixed {
        cluster: ClusterNames::build([service], [slice], [node]),
        pods: HashMap::from([("10.244.0.5".parse().unwrap(), "default/web-1".to_owned())]),
    }
}

fn wide(text: &str) -> [u8; 16] {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => Address4::from(ip.octets()).wide(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn dropped() -> Event {
    Event {
        source: wide("10.244.0.5"),
        destination: wide("10.96.0.7"),
        source_port: 3344,
        destination_port: 80,
        protocol: PROTOCOL_TCP,
        kind: EVENT_DROP,
        reason: DropReason::NoBackend as u32,
        ifindex: 7,
        length: 60,
        ..Event::default()
    }
}

fn chosen() -> Event {
    Event {
        destination: wide("10.96.0.7"),
        destination_port: 80,
        becomes: wide("10.244.1.7"),
        becomes_port: 8080,
        protocol: PROTOCOL_TCP,
        kind: EVENT_FLOW,
        reason: u32::from(KIND_SERVICE),
        ..Event::default()
    }
}

fn allowed() -> Event {
    Event {
        source: wide("fd00::9"),
        destination: wide("fd00:10:244::5"),
        source_port: 9999,
        destination_port: 53,
        protocol: PROTOCOL_UDP,
        kind: EVENT_VERDICT,
        reason: u32::from(INGRESS),
        identity: IDENTITY_WORLD,
        ifindex: 2,
        ..Event::default()
    }
}

fn message(event: &Event) -> Message {
    describe(event, "2026-11-24T12:03:04.123456789Z".to_owned(), &names()).unwrap()
}

#[test]
fn a_person_reads_one_line_an_event() {
    let text = |event: &Event| line(&message(event), &jiff::tz::TimeZone::UTC);
    assert_eq!(
        text(&dropped()),
        "12:03:04.123 drop tcp default/web-1 (10.244.0.5:3344) -> default/api (10.96.0.7:80) \
         service has no ready backend at default/web-1"
    );
    assert_eq!(
        text(&chosen()),
        "12:03:04.123 flow tcp a socket -> default/api (10.96.0.7:80) => default/api-0 (10.244.1.7:8080) service"
    );
    assert_eq!(
        text(&allowed()),
        "12:03:04.123 verdict udp {world} ([fd00::9]:9999) -> [fd00:10:244::5]:53 policy ingress at uplink"
    );
}

#[test]
fn json_has_the_documented_fields() {
    let value = |event: &Event| serde_json::to_value(message(event)).unwrap();
    assert_eq!(
        value(&dropped()),
        json!({
            "type": "drop", "time": "2026-11-24T12:03:04.123456789Z", "node": "n1", "verdict": "denied",
            "protocol": "tcp", "reason": "service has no ready backend", "length": 60,
            "source": {"ip": "10.244.0.5", "port": 3344, "pod": "default/web-1"},
            "destination": {"ip": "10.96.0.7", "port": 80, "service": "default/api"},
            "interface": {"index": 7, "pod": "default/web-1"},
        })
    );
    assert_eq!(
        value(&chosen())["backend"],
        json!({"ip": "10.244.1.7", "port": 8080, "pod": "default/api-0"})
    );
    let verdict = value(&allowed());
    assert_eq!(verdict["direction"], "ingress");
    assert_eq!(
        verdict["source"],
        json!({"ip": "fd00::9", "port": 9999, "identity": 1, "labels": "world"})
    );
}

#[test]
fn a_service_is_found_by_each_of_its_addresses_and_a_node_is_not_taken_for_its_pods() {
    let names = names();
    let service = |ip: &str, port| names.service(ip.parse().unwrap(), port);
    for ip in ["10.96.0.7", "fd00:10:96::7", "203.0.113.9", "172.30.0.200"] {
        assert_eq!(service(ip, 80).as_deref(), Some("default/api"), "{ip}");
    }
    assert_eq!(service("172.30.0.12", 30080).as_deref(), Some("default/api"));
    assert_eq!(service("10.244.0.5", 30080), None);
    assert_eq!(service("10.96.0.7", 81), None);
    let ip = "172.30.0.12".parse().unwrap();
    assert_eq!((names.pod(ip), names.node_at(ip)), (None, Some("n2".to_owned())));
}

#[test]
fn filters_say_what_they_mean() {
    let passes = |filter: &Filter, event: &Event| filter.admits(event) && filter.passes(&message(event));
    let filter = |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        [&dropped(), &chosen(), &allowed()].map(|event| passes(&filter, event))
    };
    assert_eq!(filter(|_| {}), [true, true, true]);
    assert_eq!(
        filter(|f| f.types = vec![Kind::Drop, Kind::Verdict]),
        [true, false, true]
    );
    assert_eq!(
        filter(|f| f.verdict = Some(Verdict::Allowed)),
        [false, true, true]
    );
    assert_eq!(
        filter(|f| f.pod = Some("default/api-0".into())),
        [false, true, false]
    );
    assert_eq!(
        filter(|f| f.pod = Some("default/web-1".into())),
        [true, false, false]
    );
    assert_eq!(
        filter(|f| f.service = Some("default/api".into())),
        [true, true, false]
    );
    assert_eq!(
        filter(|f| f.namespace = Some("default".into())),
        [true, true, false]
    );
    assert_eq!(
        filter(|f| f.namespace = Some("defaul".into())),
        [false, false, false]
    );
    assert_eq!(
        filter(|f| f.ip = Some("10.244.0.0/16".parse().unwrap())),
        [true, true, false]
    );
    assert_eq!(
        filter(|f| f.ip = Some("fd00:10::/32".parse().unwrap())),
        [false, false, true]
    );
    assert_eq!(filter(|f| f.port = Some(8080)), [false, true, false]);
    assert_eq!(filter(|f| f.protocol = Some(Protocol::Udp)), [false, false, true]);
    assert_eq!(filter(|f| f.reason = Some("READY".into())), [true, false, false]);
}

#[test]
fn the_programs_write_only_what_somebody_listens_to() {
    let told = Arc::new(AtomicU32::new(u32::MAX));
    let switch = Arc::clone(&told);
    let hub = Hub::new(false, move |flags| switch.store(flags, Ordering::Relaxed));
    let told = || told.load(Ordering::Relaxed);
    assert_eq!(told(), 0);
    let drops = hub.subscribe(Filter {
        types: vec![Kind::Drop],
        ..Filter::default()
    });
    assert_eq!(told(), CONFIG_DROPS);
    let all = hub.subscribe(Filter::default());
    assert_eq!(told(), CONFIG_DROPS | CONFIG_FLOWS);
    let allowed = hub.subscribe(Filter {
        verdict: Some(Verdict::Allowed),
        ..Filter::default()
    });
    drop((all, drops));
    assert_eq!(told(), CONFIG_FLOWS);
    drop(allowed);
    assert_eq!(told(), 0);
}

#[test]
fn a_slow_listener_is_told_how_many_it_lost() {
    let hub = Hub::new(false, |_| {});
    let mut slow = hub.subscribe(Filter::default());
    let names = names();
    for _ in 0..5000 {
        hub.publish(&dropped(), String::new, &names);
    }
    let mut got = 0;
    while slow.lines.try_recv().is_ok() {
        got += 1;
    }
    assert!(got > 0);
    assert_eq!(got + slow.lost(), 5000);
    assert_eq!(slow.lost(), 0);
    hub.publish(&dropped(), String::new, &names);
    assert!(slow.lines.try_recv().is_ok());
}

struct NoNames;

impl server::Keeper for NoNames {
    fn node(&self) -> &str {
        "n1"
    }
    fn refresh(&self) {}
    fn forget(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_through_the_socket_until_the_client_goes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("monitor.sock");
    let told = Arc::new(AtomicU32::new(0));
    let switch = Arc::clone(&told);
    let hub = Hub::new(false, move |flags| switch.store(flags, Ordering::Relaxed));
    let listener = server::listen(&socket).unwrap();
    let server = tokio::spawn(server::serve(listener, Arc::clone(&hub), Arc::new(NoNames)));
    let filter = Filter {
        types: vec![Kind::Drop],
        ..Filter::default()
    };
    let publish = Arc::clone(&hub);
    let client = tokio::task::spawn_blocking(move || {
        let mut monitor = Monitor::connect(&socket, &filter).unwrap();
        assert_eq!(
            monitor.receive().unwrap().0,
            Message::Ready {
                node: "n1".to_owned()
            }
        );
        let names = names();
        publish.publish(&chosen(), String::new, &names);
        publish.publish(&dropped(), || "2026-11-24T12:03:04.123456789Z".to_owned(), &names);
        let (message, _) = monitor.receive().unwrap();
        assert_eq!(message, self::message(&dropped()));
        let mut strange = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        std::io::Write::write_all(&mut strange, b"{\"typos\": 1}\n").unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut strange, &mut answer).unwrap();
        assert!(
            answer.contains("the filter cannot be read") && answer.contains("typos"),
            "{answer}"
        );
        drop(monitor);
        socket
    });
    let socket = client.await.unwrap();
    while told.load(Ordering::Relaxed) != 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    server.abort();
    // What was aborted has closed its end once it is waited for.
    let _ = server.await;
    assert!(matches!(
        Monitor::connect(&socket, &Filter::default()),
        Err(MonitorError::Connect { .. })
    ));
}
