//! Real maps, read back through every view and through bpftool.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use aya::maps::{MapInfo, lpm_trie::Key};
use orch_dataplane::{
    inspect::{self, View},
    load,
    maps::{self, Maps},
};
use orch_ebpf::{
    Address6, PROTOCOL_TCP,
    endpoint::{Endpoint, ISOLATED_INGRESS},
    policy::{INGRESS, RULE_ALLOW, RULE_ANY_PORT_BITS, Rule, RuleKey},
    service::{
        BACKEND_LOCAL, Backend, BackendKey, CHUNK_SLOTS, Chunk, ChunkKey, SCOPE_EXTERNAL, SERVICE_LOCAL,
        Service, ServiceKey,
    },
};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../../orch-ebpf/README.md");

/// Pins that go with the test.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/sys/fs/bpf/orch-inspect-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.0);
    }
}

fn fill(maps: &mut Maps) {
    let backend = |address, flags| Backend {
        address,
        port: 8080,
        protocol: PROTOCOL_TCP,
        flags,
        node: [172, 30, 0, 11],
    };
    maps.v4
        .backends
        .insert(BackendKey { id: 1 }, backend([10, 244, 0, 5], BACKEND_LOCAL), 0)
        .unwrap();
    maps.v4
        .backends
        .insert(BackendKey { id: 2 }, backend([10, 244, 1, 5], 0), 0)
        .unwrap();
    let mut slots = vec![1; 20];
    slots.extend([2; 11]);
    for (number, part) in slots.chunks(CHUNK_SLOTS).enumerate() {
        let mut chunk = Chunk::default();
        chunk.backends[..part.len()].copy_from_slice(part);
        let key = ChunkKey {
            pool: 9,
            chunk: number as u32,
        };
        maps.slots.insert(key, chunk, 0).unwrap();
    }
    let key = ServiceKey {
        address: [203, 0, 113, 9],
        port: 80,
        protocol: PROTOCOL_TCP,
        scope: SCOPE_EXTERNAL,
    };
    let service = Service {
        pool: 9,
        count: 31,
        affinity_seconds: 0,
        flags: SERVICE_LOCAL,
        ..Service::default()
    };
    maps.v4.services.insert(key, service, 0).unwrap();
    let key = ServiceKey::<Address6> {
        address: "fd00:10:96::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        port: 443,
        protocol: PROTOCOL_TCP,
        scope: 0,
    };
    maps.v6
        .services
        .insert(key, Service::<Address6>::default(), 0)
        .unwrap();
    let mut uid = [0; 40];
    uid[..3].copy_from_slice(b"u-1");
    let endpoint = Endpoint {
        ifindex: 7,
        policy: 3,
        flags: ISOLATED_INGRESS,
        pod_mac: [2, 0, 0, 0, 0, 1],
        node_mac: [2, 0, 0, 0, 0, 2],
        uid,
    };
    maps.v4.endpoints.insert([10, 244, 0, 5], endpoint, 0).unwrap();
    let [port_high, port_low] = 8192_u16.to_be_bytes();
    let rule = RuleKey {
        policy: 3,
        identity: 20,
        direction: INGRESS,
        protocol: PROTOCOL_TCP,
        port_high,
        port_low,
        ..RuleKey::default()
    };
    maps.rules
        .insert(
            &Key::new(RULE_ANY_PORT_BITS + 3, rule),
            Rule { verdict: RULE_ALLOW },
            0,
        )
        .unwrap();
}

fn view(root: &Path, name: &str) -> Value {
    inspect::read(root, name.parse::<View>().unwrap())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .json()
}

#[test]
fn what_is_written_is_what_a_person_reads() {
    let root = Root::new("views");
    let (_programs, mut maps) = load::load(&root.0).unwrap();
    fill(&mut maps);
    for name in View::NAMES {
        view(&root.0, name);
    }
    let services = inspect::read(&root.0, View::Services).unwrap().text();
    let line = services
        .lines()
        .find(|line| line.starts_with("203.0.113.9:80"))
        .unwrap();
    assert!(
        line.contains("10.244.0.5:8080 64.5%, 10.244.1.5:8080 35.5%"),
        "{line}"
    );
    assert!(line.contains("outside") && line.contains("local"), "{line}");
    assert!(services.contains("[fd00:10:96::7]:443"), "{services}");
    assert_eq!(
        view(&root.0, "backends")[0],
        json!({"id": 1, "backend": "10.244.0.5:8080", "protocol": "tcp", "local": true, "node": "172.30.0.11",
            "pools": 1, "slots": 20})
    );
    assert_eq!(
        view(&root.0, "endpoints")[0],
        json!({"address": "10.244.0.5", "interface": 7, "mac": "02:00:00:00:00:01", "policy": 3,
            "options": ["isolated-ingress"], "pod": "u-1"})
    );
    assert_eq!(
        view(&root.0, "policy")[0],
        json!({"policy": 3, "direction": "ingress", "peer_identity": 20, "protocol": "tcp",
            "ports": "8192-16383", "verdict": "allow"})
    );
    let programs = view(&root.0, "programs");
    let named = |name: &str| programs.as_array().unwrap().iter().any(|row| row["name"] == name);
    for name in [
        "pod_ingress",
        "pod_egress",
        "uplink_ingress",
        "uplink_egress",
        "connect4",
        "getpeername6",
    ] {
        assert!(named(name), "{name} in {programs}");
    }
}

#[test]
fn the_page_states_each_map_s_capacity() {
    let root = Root::new("capacity");
    let _loaded = load::load(&root.0).unwrap();
    for name in maps::names() {
        let info = MapInfo::from_pin(maps::folder(&root.0).join(&name)).unwrap();
        let row = PAGE
            .lines()
            .find(|line| line.starts_with("| `ORCH_") && line.contains(&format!("`{name}`")));
        let capacity = row
            .and_then(|row| row.split(" | ").nth(2))
            .unwrap_or_else(|| panic!("{name} has a row"));
        let stated = capacity.split([' ', ',']).next().unwrap();
        assert_eq!(stated, info.max_entries().to_string(), "{name}");
    }
}

#[test]
fn bpftool_prints_the_names_of_fields() {
    let root = Root::new("bpftool");
    let (_programs, mut maps) = load::load(&root.0).unwrap();
    fill(&mut maps);
    let dump = |name: &str| {
        let path = maps::folder(&root.0).join(name);
        let output = Command::new("bpftool")
            .args(["-j", "map", "dump", "pinned"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let services = dump("ORCH_SERVICES4");
    let formatted = &services[0]["formatted"];
    assert_eq!(formatted["key"]["address"], json!([203, 0, 113, 9]), "{services}");
    assert_eq!(formatted["key"]["port"], 80);
    assert_eq!(formatted["value"]["count"], 31);
    assert_eq!(dump("ORCH_ENDPOINTS4")[0]["formatted"]["value"]["ifindex"], 7);
    assert_eq!(dump("ORCH_SLOTS")[0]["formatted"]["key"]["pool"], 9);
    assert!(dump("ORCH_CONFIG")[0]["formatted"]["value"]["v4"]["node_address"].is_array());
    for name in maps::names().filter(|name| name != "ORCH_EVENTS") {
        let info = MapInfo::from_pin(maps::folder(&root.0).join(&name)).unwrap();
        let kernel = info.name_as_str().unwrap().to_owned();
        assert!(
            name.starts_with(&kernel) && kernel.len() >= name.len().min(15),
            "{name} is {kernel}"
        );
    }
}
