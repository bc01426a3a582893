//! The services of both families in real maps: what is written, found again, and forgotten.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use aya::maps::lpm_trie::Key;
use k8s_openapi::api::{core::v1::Service as Object, discovery::v1::EndpointSlice};
use orch_dataplane::{
    HostPort, load,
    maps::{Maps, entries},
    model::{self, Both, NodeInfo, View},
    services::{Addresses, Services},
};
use orch_ebpf::{
    Address4, Address6, PROTOCOL_TCP, PROTOCOL_UDP,
    conntrack::{Conntrack, DIRECTION_REPLY, KIND_SERVICE, Tuple},
    service::{
        Affinity, AffinityKey, BACKENDS_MAP, Backend, BackendKey, SCOPE_EXTERNAL, SCOPE_INTERNAL,
        SERVICE_MEMBERS, SERVICE_SOURCES, SLOTS_MAP, Service, ServiceKey, SourceKey,
    },
};
use serde_json::json;

/// Pins that go with the test.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/sys/fs/bpf/orch-services-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.0);
    }
}

/// A UDP and TCP service of both families with these endpoints, ready or not.
fn desired(endpoints: &[(u8, bool)]) -> Both {
    let object: Object = serde_json::from_value(json!({
        "metadata": {"name": "s"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
            "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
            "ports": [{"name": "web", "port": 80, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}, {"ip": "fd00:30::200"}]}},
    }))
    .unwrap();
    let slice = |family: &str, prefix: &str| -> EndpointSlice {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(last, ready)| json!({"addresses": [format!("{prefix}{last}")], "conditions": {"ready": ready}}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {}, "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]}),
        )
        .unwrap()
    };
    let nodes: HashMap<String, NodeInfo> = HashMap::new();
    let view = View {
        node_name: "here",
        nodes: &nodes,
        left_out: &BTreeSet::new(),
    };
    let slices = [slice("IPv4", "10.244.0."), slice("IPv6", "fd00:10:244::")];
    model::service(&object, &slices, &view).0
}

fn key<A>(address: A, port: u16, protocol: u8, scope: u8) -> ServiceKey<A> {
    ServiceKey {
        address,
        port,
        protocol,
        scope,
    }
}

fn reached4(maps: &Maps, key: &ServiceKey<Address4>) -> (Service<Address4>, Vec<u8>) {
    let service = maps.v4.services.get(key, 0).unwrap();
    assert_ne!(service.flags & SERVICE_MEMBERS, 0);
    let members = &service.members[..service.count as usize];
    let mut lasts: Vec<u8> = members
        .iter()
        .map(|member| {
            let id = member.id;
            let backend = maps.v4.backends.get(&BackendKey { id }, 0).unwrap();
            assert_eq!(member.backend, backend);
            backend.address[3]
        })
        .collect();
    lasts.sort_unstable();
    (service, lasts)
}

const BALANCER: Address4 = [172, 30, 0, 200];

#[test]
fn a_new_agent_finds_what_the_old_one_wrote_and_writes_nothing() {
    let root = Root::new("adopt");
    let (_programs, mut maps) = load::load(&root.0).unwrap();
    let wanted = desired(&[(1, true), (2, true), (3, false)]);
    let mut services = Services::adopt(&maps).unwrap();
    assert!(services.put(&mut maps, "default/s", &wanted).unwrap().changed);
    services.finish(&mut maps).unwrap();
    services.flush(&mut maps).unwrap();

    let balancer = key(BALANCER, 80, PROTOCOL_TCP, SCOPE_EXTERNAL);
    let (service, lasts) = reached4(&maps, &balancer);
    assert_eq!((service.count, lasts), (2, vec![1, 2]));
    assert_eq!(
        (service.flags, service.affinity_seconds),
        (SERVICE_SOURCES | SERVICE_MEMBERS, 10_800)
    );
    assert_eq!(
        reached4(&maps, &key([10, 96, 0, 1], 53, PROTOCOL_UDP, SCOPE_INTERNAL))
            .0
            .count,
        2
    );
    let pool = service.pool;
    let allowed = |address| {
        maps.v4
            .sources
            .get(&Key::new(64, SourceKey { pool, address }), 0)
            .is_ok()
    };
    assert!(allowed([192, 0, 2, 77]) && !allowed([192, 0, 3, 77]));
    let six = maps
        .v6
        .services
        .get(&key([0; 16], 30080, PROTOCOL_TCP, SCOPE_EXTERNAL), 0);
    assert_eq!(six.unwrap().count, 2);

    let mut services = Services::adopt(&maps).unwrap();
    let outcome = services.put(&mut maps, "default/s", &wanted).unwrap();
    assert!(!outcome.changed && outcome.refused.is_empty());
    assert!(!services.finish(&mut maps).unwrap().changed);

    services.put(&mut maps, "default/s", &Both::default()).unwrap();
    assert!(services.due().is_some());
    services.flush(&mut maps).unwrap();
    assert_eq!(
        maps.v4.services.keys().count() + maps.v6.services.keys().count(),
        0
    );
    assert_eq!(maps.v4.sources.keys().count() + maps.v6.sources.keys().count(), 0);
    assert!(entries(SLOTS_MAP, &maps.slots).unwrap().is_empty());
    let backends: Vec<(BackendKey, Backend<Address6>)> = entries(BACKENDS_MAP, &maps.v6.backends).unwrap();
    assert!(backends.is_empty());
}

#[test]
fn what_is_known_of_a_backend_goes_with_it() {
    let root = Root::new("stale");
    let (_programs, mut maps) = load::load(&root.0).unwrap();
    let mut services = Services::adopt(&maps).unwrap();
    services
        .put(&mut maps, "default/s", &desired(&[(1, true), (2, true)]))
        .unwrap();
    services.finish(&mut maps).unwrap();

    let pool = maps
        .v4
        .services
        .get(&key([0; 4], 30053, PROTOCOL_UDP, SCOPE_EXTERNAL), 0)
        .unwrap()
        .pool;
    let flows = maps.v4.conntrack.open().unwrap();
    for (BackendKey { id }, backend) in entries(BACKENDS_MAP, &maps.v4.backends).unwrap() {
        let client = [192, 0, 2, backend.address[3]];
        let asked = Tuple {
            source: client,
            destination: [172, 30, 0, 11],
            source_port: 4000,
            destination_port: if backend.protocol == PROTOCOL_UDP {
                30053
            } else {
                30080
            },
            protocol: backend.protocol,
            _pad: [0; 3],
        };
        let becomes = Tuple {
            destination: backend.address,
            destination_port: backend.port,
            ..asked
        };
        let mut entry = Conntrack {
            becomes,
            backend: id,
            kind: KIND_SERVICE,
            ..Conntrack::default()
        };
        assert!(flows.insert(&asked, &entry).unwrap());
        entry.becomes = asked.reverse();
        entry.direction = DIRECTION_REPLY;
        assert!(flows.insert(&becomes.reverse(), &entry).unwrap());
        if backend.protocol == PROTOCOL_UDP {
            let client = AffinityKey {
                client: [backend.address[3]; 16],
                pool,
                client_kind: 0,
            };
            let kept = Affinity {
                backend: id,
                ..Affinity::default()
            };
            maps.affinity.insert(client, kept, 0).unwrap();
        }
    }
    assert_eq!(flows.all().unwrap().len(), 8);

    let outcome = services
        .put(&mut maps, "default/s", &desired(&[(1, true), (2, false)]))
        .unwrap();
    let gone: Vec<IpAddr> = outcome.gone.iter().map(|departed| departed.place.ip).collect();
    assert!(gone.contains(&IpAddr::from([10, 244, 0, 2])) && !gone.contains(&IpAddr::from([10, 244, 0, 1])));
    // Two directions of one UDP flow, and one client.
    assert_eq!(services.forget(&mut maps).unwrap(), 3);
    assert_eq!(services.forget(&mut maps).unwrap(), 0);
    let left: Vec<AffinityKey> = maps.affinity.keys().map(Result::unwrap).collect();
    assert_eq!(left.iter().map(|key| key.client[0]).collect::<Vec<_>>(), [1]);
    let left = flows.all().unwrap();
    let udp = left.iter().filter(|(tuple, _)| tuple.protocol == PROTOCOL_UDP);
    assert_eq!(udp.count(), 2);
}

#[test]
fn a_host_port_belongs_to_the_first_pod_until_it_goes() {
    let root = Root::new("ports");
    let (_programs, mut maps) = load::load(&root.0).unwrap();
    let mut services = Services::adopt(&maps).unwrap();
    let port = |host_ip: Option<&str>| HostPort {
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port: 8080,
        container_port: 80,
        protocol: PROTOCOL_TCP,
    };
    let node = [IpAddr::from([172, 30, 0, 11])];
    let pods: Vec<[IpAddr; 1]> = (1..4).map(|last| [IpAddr::from([10, 244, 0, last])]).collect();
    let set = |services: &mut Services, maps: &mut Maps, pod: usize, ports: &[HostPort]| {
        let addresses = Addresses {
            pod: &pods[pod],
            node: &node,
        };
        services
            .set_host_ports(maps, &format!("uid{pod}"), ports, &addresses)
            .unwrap()
    };
    assert!(set(&mut services, &mut maps, 0, &[port(None)]).refused.is_empty());
    assert_eq!(set(&mut services, &mut maps, 1, &[port(None)]).refused.len(), 1);
    assert!(
        set(&mut services, &mut maps, 2, &[port(Some("172.30.0.11"))])
            .refused
            .is_empty()
    );
    let everywhere = key([0; 4], 8080, PROTOCOL_TCP, SCOPE_EXTERNAL);
    assert_eq!(reached4(&maps, &everywhere).1, [1]);
    let one = key([172, 30, 0, 11], 8080, PROTOCOL_TCP, SCOPE_INTERNAL);
    assert_eq!(reached4(&maps, &one).1, [3]);

    // A new agent that has not yet heard of the pods keeps the ports of those that are here.
    let mut services = Services::adopt(&maps).unwrap();
    services.claim_host_ports(|ip| {
        pods.iter()
            .position(|pod| pod[0] == ip)
            .map(|pod| format!("uid{pod}"))
    });
    assert!(!services.finish(&mut maps).unwrap().changed);
    assert_eq!(set(&mut services, &mut maps, 1, &[port(None)]).refused.len(), 1);
    assert!(set(&mut services, &mut maps, 0, &[]).released);
    assert!(services.retry_host_ports(&mut maps).unwrap().changed);
    assert_eq!(reached4(&maps, &everywhere).1, [2]);
}
