//! Maps of older layouts, made by hand, become those of today's programs.

use std::{mem::offset_of, process};

use aya::{
    Pod,
    maps::{HashMap as BpfMap, MapData},
};
use orch_ebpf::{
    Address as _, Address4, PROTOCOL_TCP,
    config::{Config, NODE_LOCAL, NODES_MAP, NODES_MAX},
    conntrack::{Conntrack, KIND_SERVICE, SEEN_TRAFFIC, Tuple},
    endpoint::ENDPOINTS_MAP,
    event::METRICS_MAP,
    flow_table::{ROWS, WAYS},
    service::{
        AFFINITY_MAP, AffinityKey, BackendKey, CLIENT_ADDRESS, CLIENT_NAMESPACE, ChunkKey, SOCKETS_MAP,
        ServiceKey, SocketKey,
    },
};

use super::{btf::Type, layout, *};
use crate::{
    load::{self, Programs},
    maps::Maps,
    sys::{
        map::{Make, Update},
        memory::read,
    },
};

mod flows;

/// Writes BTF.
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    last: u32,
}

impl Writer {
    fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            last: 0,
        }
    }

    fn add(&mut self, name: &str, words: &[u32]) -> u32 {
        let name = self.name(name);
        let words = std::iter::once(&name).chain(words);
        self.types.extend(words.flat_map(|word| word.to_ne_bytes()));
        self.last += 1;
        self.last
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn int(&mut self, size: u32) -> u32 {
        self.add(&format!("u{}", size * 8), &[1 << 24, size, size * 8])
    }

    fn array(&mut self, element: u32, index: u32, count: u32) -> u32 {
        self.add("", &[3 << 24, 0, element, index, count])
    }

    fn record(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let mut words = vec![4 << 24 | members.len() as u32, size];
        for (name, of, offset) in members {
            words.extend([self.name(name), *of, offset * 8]);
        }
        self.add(name, &words)
    }

    fn finish(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

/// A place of maps that no other test has.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let root = PathBuf::from(format!("/sys/fs/bpf/orch-migrate-{name}-{}", process::id()));
        fs::create_dir_all(maps::folder(&root)).unwrap();
        Self(root)
    }

    fn pin(&self, name: &str, map: RawMap) -> RawMap {
        map.pin(&maps::folder(&self.0).join(name)).unwrap();
        map
    }

    fn load(&self) -> (Programs, Maps) {
        load::load(&self.0).unwrap()
    }

    fn list(&self, folder: &str) -> BTreeSet<String> {
        links::list(&self.0.join(folder), "")
            .unwrap()
            .into_iter()
            .collect()
    }

    fn open(&self, name: &str) -> RawMap {
        RawMap::open(&maps::folder(&self.0).join(name)).unwrap()
    }

    fn id(&self, name: &str) -> u32 {
        self.open(name).info().id
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = crate::remove_pins(&self.0);
    }
}

const LRU: u32 = layout::LRU_HASH;
const ON_DEMAND: u32 = 1;

fn make(kind: u32, sizes: (u32, u32), max_entries: u32, types: (Writer, u32, u32)) -> RawMap {
    let (writer, key, value) = types;
    Make {
        kind,
        key_size: sizes.0,
        value_size: sizes.1,
        max_entries,
        flags: if kind == layout::HASH { ON_DEMAND } else { 0 },
        btf: Some((&writer.finish(), key, value)),
    }
    .map()
    .unwrap()
}

/// A hash of which key and value are structs of numbers: name, size and offset of each member; a size above eight is an
/// array of bytes, as are addresses. A member without a name is an address alone.
fn numbers(
    kind: u32,
    key: &[(&'static str, u32, u32)],
    value: &[(&'static str, u32, u32)],
    sizes: (u32, u32),
) -> RawMap {
    let mut writer = Writer::new();
    let (byte, word) = (writer.int(1), writer.int(4));
    let mut record = |members: &[(&'static str, u32, u32)], size| {
        if let [("", 4, 0)] = members {
            return writer.array(byte, word, 4);
        }
        let members: Vec<_> = members
            .iter()
            .map(|(name, size, offset)| {
                let bytes = name.contains("address") || name.contains("mac") || *size > 8;
                let of = match bytes {
                    true => writer.array(byte, word, *size),
                    false => writer.int(*size),
                };
                (*name, of, *offset)
            })
            .collect();
        writer.record("Record", size, &members)
    };
    let (key, value) = (record(key, sizes.0), record(value, sizes.1));
    make(kind, sizes, 1024, (writer, key, value))
}

/// The first ABI's table of connections.
fn first_conntrack() -> RawMap {
    let mut writer = Writer::new();
    let (byte, half, word, long) = (writer.int(1), writer.int(2), writer.int(4), writer.int(8));
    let (address, pad) = (writer.array(byte, word, 4), writer.array(byte, word, 3));
    let tuple = writer.record(
        "Tuple",
        16,
        &[
            ("source", address, 0),
            ("destination", address, 4),
            ("source_port", half, 8),
            ("destination_port", half, 10),
            ("protocol", byte, 12),
            ("_pad", pad, 13),
        ],
    );
    let entry = writer.record(
        "Conntrack",
        32,
        &[
            ("last_seen", long, 0),
            ("becomes", tuple, 8),
            ("backend", word, 24),
            ("kind", byte, 28),
            ("direction", byte, 29),
            ("seen", byte, 30),
            ("_pad", byte, 31),
        ],
    );
    make(LRU, (16, 32), 131_072, (writer, tuple, entry))
}

/// The fourth ABI's way to say which slots of flows are in use, which was in two lines: tags and times.
fn fourth_rows() -> RawMap {
    let mut writer = Writer::new();
    let word = writer.int(4);
    let words = writer.array(word, word, WAYS as u32);
    let row = writer.record(
        "Row",
        128,
        &[
            ("tags", words, 0),
            ("spilled", word, 60),
            ("until", words, 64),
            ("_pad", word, 124),
        ],
    );
    make(layout::ARRAY, (4, 128), ROWS as u32 + 1, (writer, word, row))
}

/// The first ABI's settings.
fn first_config() -> RawMap {
    let mut writer = Writer::new();
    let (byte, word) = (writer.int(1), writer.int(4));
    let address = writer.array(byte, word, 4);
    let config = writer.record(
        "Config",
        40,
        &[
            ("abi_version", word, 0),
            ("uplink_ifindex", word, 4),
            ("uplink_mtu", word, 8),
            ("node_address", address, 12),
            ("flags", word, 36),
        ],
    );
    let map = make(layout::ARRAY, (4, 40), 1, (writer, word, config));
    let mut value = [1_u32, 7, 1500].map(u32::to_ne_bytes).concat();
    value.resize(40, 0);
    map.update(&[0; 4], &value, Update::Any).unwrap();
    map
}

fn tuple(client: u8) -> Tuple<Address4> {
    Tuple {
        source: [203, 0, 113, client],
        destination: [192, 0, 2, 1],
        source_port: 1000,
        destination_port: 443,
        protocol: PROTOCOL_TCP,
        _pad: [0; 3],
    }
}

fn tuple_bytes(tuple: &Tuple<Address4>) -> Vec<u8> {
    let mut bytes = [tuple.source, tuple.destination].concat();
    bytes.extend(tuple.source_port.to_ne_bytes());
    bytes.extend(tuple.destination_port.to_ne_bytes());
    bytes.extend([tuple.protocol, 0, 0, 0]);
    bytes
}

/// A connection of the first ABI, last used at `seen`.
fn open(map: &RawMap, client: u8, seen: u64) {
    let mut becomes = tuple(client);
    becomes.destination = [10, 244, 1, 7];
    let mut value = seen.to_ne_bytes().to_vec();
    value.extend(tuple_bytes(&becomes));
    value.extend(5_u32.to_ne_bytes());
    value.extend([KIND_SERVICE, 0, SEEN_TRAFFIC, 0]);
    map.update(&tuple_bytes(&tuple(client)), &value, Update::Any)
        .unwrap();
}

fn flow(maps: &Maps, client: u8) -> Option<Conntrack<Address4>> {
    maps.v4.conntrack.open().unwrap().get(&tuple(client)).unwrap()
}

fn get<K: Pod, V: Pod>(map: &BpfMap<MapData, K, V>, key: &K) -> Option<V> {
    map.get(key, 0).ok()
}

#[test]
fn the_kernel_and_the_object_describe_the_maps_alike() {
    let root = Root::new("btf");
    let (programs, loaded) = root.load();
    let wanted = layout::of_object(load::object()).unwrap();
    for name in maps::names() {
        let map = root.open(&name);
        assert_eq!(&Layout::of_map(&map).unwrap(), &wanted[&name], "{name}");
        assert_eq!(
            wanted[&name].types.is_some(),
            wanted[&name].kind != RING_BUFFER,
            "{name}"
        );
    }
    let (_, slot) = wanted["ORCH_CONNTRACK4"].types.as_ref().unwrap();
    let [key, value] = ["tuple", "entry"].map(|name| &slot.member(name).unwrap().of);
    let offset = |of: &Type, name: &str| of.member(name).unwrap().offset;
    assert_eq!(
        (key.size(), offset(key, "destination_port")),
        (
            size_of::<Tuple<Address4>>(),
            offset_of!(Tuple<Address4>, destination_port)
        )
    );
    assert_eq!(offset(value, "macs"), offset_of!(Conntrack<Address4>, macs));
    assert_eq!(&value.member("becomes").unwrap().of, key, "a struct in a struct");
    // The next agent of this version takes them as they are.
    let ids: Vec<u32> = maps::names().map(|name| root.id(&name)).collect();
    drop((programs, loaded));
    let (mut programs, _maps) = root.load();
    assert!(maps::names().map(|name| root.id(&name)).eq(ids));
    programs.settle().unwrap();
    assert_eq!(root.list(""), ["links", "maps"].map(str::to_owned).into());
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one node's maps of the first ABI, and what becomes of each"
)]
fn a_node_of_the_first_abi_keeps_all_it_knew() {
    let root = Root::new("first");
    root.pin(CONFIG_MAP, first_config());
    let conntrack = root.pin(CONNTRACK_MAP, first_conntrack());
    open(&conntrack, 1, 77);

    let mut writer = Writer::new();
    let (byte, word) = (writer.int(1), writer.int(4));
    let address = writer.array(byte, word, 4);
    let node = writer.record("Node", 4, &[("kind", word, 0)]);
    let nodes = make(layout::HASH, (4, 4), NODES_MAX as u32, (writer, address, node));
    let nodes = root.pin(NODES_MAP, nodes);
    nodes
        .update(&[192, 0, 2, 1], &NODE_LOCAL.to_ne_bytes(), Update::Any)
        .unwrap();

    let service = [
        ("address", 4, 0),
        ("port", 2, 4),
        ("protocol", 1, 6),
        ("scope", 1, 7),
    ];
    let pool = [("pool", 4, 0), ("count", 4, 4), ("affinity_seconds", 4, 8)];
    let services = root.pin(SERVICES_MAP, numbers(layout::HASH, &service, &pool, (8, 12)));
    let mut key = vec![10, 96, 0, 1];
    key.extend(80_u16.to_ne_bytes());
    key.extend([PROTOCOL_TCP, 0]);
    let value = [3_u32, 18, 60].map(u32::to_ne_bytes).concat();
    services.update(&key, &value, Update::Any).unwrap();
    let slot = [("pool", 4, 0), ("slot", 4, 4)];
    let slots = root.pin(
        SLOTS_MAP,
        numbers(layout::HASH, &slot, &[("backend", 4, 0)], (8, 4)),
    );
    for number in 0..18_u32 {
        let key = [3, number].map(u32::to_ne_bytes).concat();
        slots
            .update(&key, &(100 + number).to_ne_bytes(), Update::Any)
            .unwrap();
    }
    let backend = [
        ("address", 4, 0),
        ("port", 2, 4),
        ("protocol", 1, 6),
        ("flags", 1, 7),
    ];
    let backends = root.pin(
        BACKENDS_MAP,
        numbers(layout::HASH, &[("id", 4, 0)], &backend, (4, 8)),
    );
    let mut value = vec![10, 244, 1, 7];
    value.extend(8080_u16.to_ne_bytes());
    value.extend([PROTOCOL_TCP, 1]);
    backends
        .update(&100_u32.to_ne_bytes(), &value, Update::Any)
        .unwrap();

    let client = [("client", 8, 0), ("pool", 4, 8), ("client_kind", 4, 12)];
    let used = [("last_used", 8, 0), ("backend", 4, 8), ("_pad", 4, 12)];
    let affinity = root.pin(AFFINITY_MAP, numbers(LRU, &client, &used, (16, 16)));
    let value = [9_u64.to_ne_bytes(), 100_u64.to_ne_bytes()].concat();
    for (client, kind) in [
        ([10, 244, 1, 9, 0, 0, 0, 0], CLIENT_ADDRESS),
        ([1, 2, 3, 4, 5, 6, 7, 8], CLIENT_NAMESPACE),
    ] {
        let mut key = client.to_vec();
        key.extend([3, kind].map(u32::to_ne_bytes).concat());
        affinity.update(&key, &value, Update::Any).unwrap();
    }
    let socket = [
        ("cookie", 8, 0),
        ("address", 4, 8),
        ("port", 2, 12),
        ("_pad", 2, 14),
    ];
    let origin = [("address", 4, 0), ("port", 2, 4), ("_pad", 2, 6)];
    let sockets = root.pin(SOCKETS_MAP, numbers(LRU, &socket, &origin, (16, 8)));
    let mut key = (7_u64 << 32 | 8).to_ne_bytes().to_vec();
    key.extend([10, 244, 1, 7, 80, 0, 0, 0]);
    sockets
        .update(&key, &[10, 96, 0, 1, 80, 0, 0, 0], Update::Any)
        .unwrap();
    let pod = [
        ("ifindex", 4, 0),
        ("pod_mac", 6, 4),
        ("node_mac", 6, 10),
        ("uid", 40, 16),
    ];
    let endpoints = root.pin(ENDPOINTS_MAP, numbers(layout::HASH, &[("", 4, 0)], &pod, (4, 56)));
    endpoints.update(&[10, 244, 1, 7], &[9; 56], Update::Any).unwrap();

    let (mut programs, loaded) = root.load();
    let flow1 = flow(&loaded, 1).unwrap();
    assert_eq!(flow1.becomes.destination, [10, 244, 1, 7]);
    assert_eq!(
        (flow1.last_seen, flow1.backend, flow1.kind, flow1.seen),
        (77, 5, KIND_SERVICE, SEEN_TRAFFIC)
    );
    assert_eq!((flow1.hop, flow1.macs, flow1.ticks), (0, [0; 12], 0));
    assert_eq!(get(&loaded.v4.nodes, &[192, 0, 2, 1]).unwrap().kind, NODE_LOCAL);
    let key = ServiceKey {
        address: [10, 96, 0, 1],
        port: 80,
        protocol: PROTOCOL_TCP,
        scope: 0,
    };
    let service = get(&loaded.v4.services, &key).unwrap();
    assert_eq!(
        (
            service.pool,
            service.count,
            service.affinity_seconds,
            service.flags
        ),
        (3, 18, 60, 0)
    );
    let chunk = |chunk| get(&loaded.slots, &ChunkKey { pool: 3, chunk }).unwrap().backends;
    assert_eq!(
        (chunk(0)[0], chunk(0)[15], chunk(1)[0], chunk(1)[1], chunk(1)[2]),
        (100, 115, 116, 117, 0)
    );
    let backend = get(&loaded.v4.backends, &BackendKey { id: 100 }).unwrap();
    assert_eq!(
        (backend.address, backend.port, backend.flags, backend.node),
        ([10, 244, 1, 7], 8080, 1, [0; 4])
    );
    for (client, client_kind) in [
        ([10, 244, 1, 9].wide(), CLIENT_ADDRESS),
        ([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], CLIENT_NAMESPACE),
    ] {
        let kept = get(
            &loaded.affinity,
            &AffinityKey {
                client,
                pool: 3,
                client_kind,
            },
        )
        .unwrap();
        assert_eq!((kept.last_used, kept.backend), (9, 100));
    }
    let key = SocketKey {
        cookie: [8, 7],
        address: [10, 244, 1, 7],
        port: 80,
        _pad: 0,
    };
    assert_eq!(get(&loaded.v4.sockets, &key).unwrap().address, [10, 96, 0, 1]);
    let endpoint = get(&loaded.v4.endpoints, &[10, 244, 1, 7]).unwrap();
    assert_eq!(
        (endpoint.ifindex, endpoint.policy, endpoint.flags),
        (u32::from_ne_bytes([9; 4]), 0, 0)
    );
    assert_eq!(
        (endpoint.pod_mac, endpoint.node_mac, endpoint.uid),
        ([9; 6], [9; 6], [9; 40])
    );
    assert!(!programs.is_anew(ENDPOINTS_MAP) && !programs.is_anew(CONNTRACK_MAP));
    assert_eq!(loaded.config.get(&0, 0).unwrap().uplink_ifindex, 7);

    // What old programs open while they are swapped.
    open(&conntrack, 2, now());
    while flow(&loaded, 2).is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(root.list("maps").contains(CONNTRACK_MAP), "still in their place");
    let id = nodes.info().id;
    programs.settle().unwrap();
    assert!(
        root.list("maps")
            .into_iter()
            .eq(maps::names().collect::<BTreeSet<_>>())
    );
    assert_eq!(root.list(""), ["links", "maps"].map(str::to_owned).into());
    assert_eq!(root.id("ORCH_NODES4"), id, "the same map under its new name");
}

#[test]
fn programs_of_another_version_keep_their_settings_until_they_are_replaced() {
    let root = Root::new("settings");
    let (programs, mut loaded) = root.load();
    let other = ABI_VERSION - 1;
    loaded
        .configure(|settings| {
            settings.abi_version = other;
            settings.uplink_ifindex = 7;
        })
        .unwrap();
    drop((programs, loaded));
    let ids = [CONFIG_MAP, "ORCH_ROWS6", "ORCH_NODES4"].map(|name| root.id(name));

    let (mut programs, mut loaded) = root.load();
    assert!(programs.is_moving());
    loaded
        .configure(|settings| settings.abi_version = ABI_VERSION)
        .unwrap();
    assert_eq!(loaded.config.get(&0, 0).unwrap().uplink_ifindex, 7);
    let old = root.open(CONFIG_MAP);
    let settings: Config = read(&old.get(&[0; 4]).unwrap().unwrap()).unwrap();
    assert_eq!(settings.abi_version, other);
    programs.settle().unwrap();
    let [config, rows, nodes] = [CONFIG_MAP, "ORCH_ROWS6", "ORCH_NODES4"].map(|name| root.id(name));
    assert_eq!(
        (config == ids[0], rows == ids[1], nodes == ids[2]),
        (false, false, true)
    );
}

#[test]
fn an_upgrade_that_was_cut_short_goes_on() {
    let root = Root::new("cut");
    root.pin(CONFIG_MAP, first_config());
    let old = root.pin(CONNTRACK_MAP, first_conntrack());
    let begin = now();
    open(&old, 1, begin);
    let (programs, loaded) = root.load();
    // Some programs have been swapped, and one has seen the flow since.
    let mut known = flow(&loaded, 1).unwrap();
    (known.last_seen, known.hop) = (begin + 1, 1);
    let table = loaded.v4.conntrack.open().unwrap();
    for client in [1, 3] {
        assert!(table.insert(&tuple(client), &known).unwrap());
    }
    drop((programs, loaded, table));
    assert!(root.list(NEXT).contains(PREPARING));
    // Others have not.
    open(&old, 2, begin);

    let (mut programs, loaded) = root.load();
    assert_eq!(flow(&loaded, 1).unwrap().hop, 1, "the newer one stays");
    assert!([2, 3].iter().all(|client| flow(&loaded, *client).is_some()));
    programs.settle().unwrap();
    drop((programs, loaded));

    // It dies after the sets have changed places, before the old one is gone and the mark.
    let next = root.0.join(NEXT);
    fs::create_dir(&next).unwrap();
    old.pin(&next.join(CONNTRACK_MAP)).unwrap();
    fs::create_dir(maps::folder(&root.0).join(PREPARING)).unwrap();
    let (mut programs, loaded) = root.load();
    assert_eq!(loaded.v4.conntrack.open().unwrap().all().unwrap().len(), 3);
    programs.settle().unwrap();
    assert!(!next.exists() && !root.list("maps").contains(PREPARING));
}

#[test]
fn what_an_old_agent_left_beside_is_not_taken_for_new() {
    let root = Root::new("back");
    let (programs, loaded) = root.load();
    drop((programs, loaded));
    // An old set that an agent replaced and did not come to remove: its maps fit today's, its contents are of yesterday.
    let next = root.0.join(NEXT);
    fs::rename(maps::folder(&root.0), &next).unwrap();
    let stale = RawMap::open(&next.join("ORCH_CONNTRACK4")).unwrap();
    let id = stale.info().id;
    drop(stale);
    fs::create_dir(maps::folder(&root.0)).unwrap();
    root.pin(CONFIG_MAP, first_config());
    root.pin(CONNTRACK_MAP, first_conntrack());
    let (mut programs, _loaded) = root.load();
    programs.settle().unwrap();
    assert_ne!(root.id("ORCH_CONNTRACK4"), id);
}

#[test]
fn what_nothing_describes_starts_anew() {
    let root = Root::new("anew");
    let (programs, mut loaded) = root.load();
    let key = ServiceKey {
        address: [10, 96, 0, 1],
        port: 80,
        protocol: PROTOCOL_TCP,
        scope: 0,
    };
    loaded
        .v4
        .services
        .insert(key, orch_ebpf::service::Service::<Address4>::default(), 0)
        .unwrap();
    loaded
        .v4
        .nodes
        .insert([192, 0, 2, 1], orch_ebpf::config::Node { kind: NODE_LOCAL }, 0)
        .unwrap();
    drop((programs, loaded));
    let bare = Make {
        kind: layout::HASH,
        key_size: 8,
        value_size: 4,
        max_entries: 16,
        flags: ON_DEMAND,
        btf: None,
    };
    for name in ["ORCH_SLOTS", "ORCH_CONNTRACK4", METRICS_MAP] {
        links::remove(&maps::folder(&root.0).join(name)).unwrap();
        root.pin(name, bare.map().unwrap());
    }
    let (mut programs, loaded) = root.load();
    assert!(programs.is_anew(SLOTS_MAP) && programs.is_anew(CONNTRACK_MAP) && programs.is_anew(METRICS_MAP));
    assert!(programs.is_anew(SERVICES_MAP), "services name slots");
    assert!(get(&loaded.v4.services, &key).is_none());
    assert!(get(&loaded.v4.nodes, &[192, 0, 2, 1]).is_some());
    programs.settle().unwrap();
    drop((programs, loaded));
    let (programs, _loaded) = root.load();
    assert!(!programs.is_anew(SERVICES_MAP));
}
