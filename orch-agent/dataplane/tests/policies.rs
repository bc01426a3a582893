//! NetworkPolicies on real traffic, from before a pod's first packet through changes and a restart of the agent.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use orch_cluster::policies::{self, NamedPort, PolicyEvent, Update};
use orch_dataplane::{Dataplane, DataplaneConfig, PodAttachment, maps::Maps};
use serde_json::{Value, json};
use support::{Fake, Namespace, Settings};
use tokio::sync::mpsc;

#[test]
fn helper() {
    support::help();
}

const PORT: u16 = 8080;
/// How long a change may take to be in force. Reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(config: &DataplaneConfig, policies: mpsc::Receiver<PolicyEvent>) -> (Arc<Dataplane>, Fake) {
    let mut fake = Fake::new();
    fake.ready();
    fake.cluster.set_policy_events(policies);
    let dataplane = Dataplane::start(config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap());
    dataplane.set_pod_cidrs(&cidrs).await.unwrap();
    (dataplane, fake)
}

fn labels(app: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), app.to_owned())])
}

fn http() -> Vec<NamedPort> {
    vec![NamedPort {
        name: "http".into(),
        protocol: 6,
        port: PORT,
    }]
}

struct Pod {
    namespace: Namespace,
    attachment: PodAttachment,
    addresses: Vec<IpAddr>,
}

impl Pod {
    fn new(app: &str) -> Self {
        let namespace = Namespace::new(&format!("np-{app}"));
        let attachment = PodAttachment {
            uid: format!("uid-{app}"),
            namespace: "shop".into(),
            name: app.into(),
            netns: namespace.path(),
            labels: labels(app),
            named_ports: http(),
            ..PodAttachment::default()
        };
        Self {
            namespace,
            attachment,
            addresses: Vec::new(),
        }
    }

    fn known(&self) -> policies::Pod {
        policies::Pod {
            uid: self.attachment.uid.clone(),
            namespace: "shop".into(),
            name: self.attachment.name.clone(),
            labels: Arc::new(self.attachment.labels.clone()),
            addresses: self.addresses.clone(),
            ports: http(),
        }
    }

    /// Whether it gets an answer from the other pod's address of the same family as the first or second.
    fn reaches(&self, other: &Self, family: usize) -> bool {
        let target = SocketAddr::new(other.addresses[family], PORT);
        let said = self.namespace.ask(None, &format!("tcp {target} 1"));
        assert!(
            said.contains("TimedOut") || said.contains(&other.attachment.name),
            "{said}"
        );
        !said.contains("TimedOut")
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
    }
}

fn policy(from: Value) -> Arc<NetworkPolicy> {
    let object = json!({
        "metadata": {"namespace": "shop", "name": "in"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}], "ports": [{"port": "http"}]}],
        },
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

/// What the kernel holds of policies, in a form that can be compared.
fn written(config: &DataplaneConfig) -> Vec<String> {
    let maps = Maps::pinned(&config.bpf_root).unwrap();
    let rules = maps.rules.iter().map(|entry| {
        let (key, rule) = entry.unwrap();
        format!("{} {:?} {rule:?}", key.prefix_len(), key.data())
    });
    let v4 = maps.v4.identities.iter().map(|entry| {
        let (key, identity) = entry.unwrap();
        format!("{} {:?} {identity:?}", key.prefix_len(), key.data())
    });
    let v6 = maps.v6.identities.iter().map(|entry| {
        let (key, identity) = entry.unwrap();
        format!("{} {:?} {identity:?}", key.prefix_len(), key.data())
    });
    let endpoints = maps.v4.endpoints.iter().map(|entry| {
        let (address, endpoint) = entry.unwrap();
        format!("{address:?} {} {}", endpoint.flags, endpoint.policy)
    });
    let mut all: Vec<String> = rules.chain(v4).chain(v6).chain(endpoints).collect();
    all.sort();
    all
}

#[test]
fn a_policy_is_in_force_before_the_first_packet_and_across_a_restart() {
    let node = Namespace::new("npn");
    let outside = Namespace::new("npo");
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip("link set eth0 up");
    outside.ip("link set eth0 up");
    node.ip("addr add 172.31.0.11/24 dev eth0");
    node.ip("addr add fd00:31::11/64 dev eth0 nodad");
    let mut config = Settings::new("policies");
    config.service_cidrs.clear();
    node.enter();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    // The runtime's own threads were made inside the namespace.
    runtime.block_on(scenario(&node, &config));
}

async fn scenario(node: &Namespace, config: &DataplaneConfig) {
    let (tell, events) = mpsc::channel(16);
    let (dataplane, _fake) = start(config, events).await;
    let (mut web, mut client, mut other) = (Pod::new("web"), Pod::new("client"), Pod::new("other"));

    // Nobody is connected before policies are known.
    let early = tokio::time::timeout(Duration::from_millis(200), dataplane.attach_pod(&web.attachment)).await;
    assert!(early.is_err(), "the policies are not known yet");
    let lists = |pods: Vec<policies::Pod>, list: Vec<Arc<NetworkPolicy>>| {
        [
            PolicyEvent::Policy(Update::All(list)),
            PolicyEvent::Namespace(Update::All(Vec::new())),
            PolicyEvent::Pod(Update::All(pods)),
        ]
    };
    for event in lists(Vec::new(), vec![policy(json!("client"))]) {
        tell.send(event).await.unwrap();
    }
    for pod in [&mut web, &mut client, &mut other] {
        pod.addresses = dataplane.attach_pod(&pod.attachment).await.unwrap();
    }
    for address in &web.addresses {
        web.namespace.serve_tcp(*address, PORT, "web");
        client
            .namespace
            .serve_tcp(client.addresses[usize::from(address.is_ipv6())], PORT, "client");
    }
    // The server is isolated although no cache has heard of it; nobody's address is known to be allowed.
    assert!(!client.reaches(&web, 0) && !other.reaches(&web, 1));
    assert!(other.reaches(&client, 0), "no policy is about the client");
    let host = node.ask(
        None,
        &format!("tcp {} 1", SocketAddr::new(web.addresses[0], PORT)),
    );
    assert!(host.starts_with("web"), "a node reaches its pods: {host}");

    for pod in [&web, &client, &other] {
        tell.send(PolicyEvent::Pod(Update::Put(pod.known())))
            .await
            .unwrap();
    }
    until("the client is allowed", || client.reaches(&web, 0));
    assert!(client.reaches(&web, 1));
    assert!(!other.reaches(&web, 0) && !other.reaches(&web, 1));

    // A new agent that cannot reach the API server enforces what its predecessor did.
    let before = written(config);
    assert!(!before.is_empty());
    drop(dataplane);
    let (tell, events) = mpsc::channel(16);
    let (dataplane, _fake) = start(config, events).await;
    assert_eq!(written(config), before);
    assert!(client.reaches(&web, 0) && !other.reaches(&web, 0));
    assert_eq!(
        dataplane.attach_pod(&web.attachment).await.unwrap(),
        web.addresses
    );
    let pods = || [&web, &client, &other].map(Pod::known).to_vec();
    for event in lists(pods(), vec![policy(json!("client"))]) {
        tell.send(event).await.unwrap();
    }
    // A pod that is connected after this has been judged after this.
    let late = Pod::new("late");
    dataplane.attach_pod(&late.attachment).await.unwrap();
    dataplane.detach_pod(&late.attachment.uid).await.unwrap();
    assert_eq!(
        written(config),
        before,
        "the same cluster gives the same tables and numbers"
    );

    tell.send(PolicyEvent::Policy(Update::Put(policy(json!("other")))))
        .await
        .unwrap();
    until("the other is allowed", || other.reaches(&web, 1));
    assert!(!client.reaches(&web, 0) && !client.reaches(&web, 1));

    tell.send(PolicyEvent::Policy(Update::Remove("shop/in".into())))
        .await
        .unwrap();
    until("everybody is allowed", || client.reaches(&web, 0));
    let after = written(config);
    assert!(
        after.iter().all(|line| line.ends_with(" 0 0")),
        "nothing is left: {after:?}"
    );
}
