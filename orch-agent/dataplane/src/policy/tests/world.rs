//! A model over a simulated kernel, and connections that are judged as the programs judge them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use orch_cluster::policies::{NamedPort, Namespace, Pod, PolicyEvent, Update};
use orch_ebpf::{
    endpoint::{ISOLATED_EGRESS, ISOLATED_INGRESS},
    policy::{EGRESS, IDENTITY_ANY, IDENTITY_WORLD, INGRESS},
};
use serde_json::{Value, json};

use crate::policy::{
    compile::Subject,
    model::Model,
    ports::RulePrefix,
    tables::{Kernel, Tables, Verdict},
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;

/// One change of the simulated kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Allow(RulePrefix),
    Disallow(RulePrefix),
    Identify(IpNet, Option<u32>),
    Enforce(String, Verdict),
}

/// What the kernel holds.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub rules: HashSet<RulePrefix>,
    pub networks: HashMap<IpNet, u32>,
    pub endpoints: HashMap<String, Verdict>,
}

impl State {
    pub fn run(&mut self, op: &Op) {
        match op {
            Op::Allow(rule) => assert!(self.rules.insert(*rule), "a rule is added once"),
            Op::Disallow(rule) => assert!(self.rules.remove(rule), "a rule that is there is removed"),
            Op::Identify(network, Some(number)) => {
                self.networks.insert(*network, *number);
            }
            Op::Identify(network, None) => {
                self.networks.remove(network).unwrap();
            }
            Op::Enforce(uid, verdict) => {
                self.endpoints.insert(uid.clone(), *verdict);
            }
        }
    }

    fn identity(&self, address: IpAddr) -> u32 {
        self.networks
            .iter()
            .filter(|(network, _)| network.contains(&address))
            .max_by_key(|(network, _)| network.prefix_len())
            .map_or(IDENTITY_WORLD, |(_, number)| *number)
    }

    /// The trie's lookup: whether a prefix covers the key.
    fn listed(&self, policy: u32, identity: u32, direction: u8, protocol: u8, port: u16) -> bool {
        // The key's bits from the protocol on; those before it are always compared.
        let tail = |protocol: u8, port: u16| u32::from(protocol) << 24 | u32::from(port) << 8;
        self.rules.iter().any(|rule| {
            let key = rule.key;
            let held = tail(key.protocol, u16::from_be_bytes([key.port_high, key.port_low]));
            (key.policy, key.identity, key.direction) == (policy, identity, direction)
                && u64::from(tail(protocol, port) ^ held) >> (112 - rule.bits) == 0
        })
    }

    /// One side of a connection, as `datapath::policy::allow` judges it.
    pub fn side(&self, uid: &str, direction: u8, peer: IpAddr, protocol: u8, port: u16) -> bool {
        let verdict = self.endpoints.get(uid).copied().unwrap_or_default();
        let isolated = if direction == INGRESS {
            ISOLATED_INGRESS
        } else {
            ISOLATED_EGRESS
        };
        verdict.flags & isolated == 0
            || self.listed(verdict.policy, self.identity(peer), direction, protocol, port)
            || self.listed(verdict.policy, IDENTITY_ANY, direction, protocol, port)
    }
}

/// Carries changes out and remembers them.
#[derive(Debug, Default)]
pub struct Recorder {
    pub state: State,
    pub ops: Vec<Op>,
    /// After how many changes the kernel refuses everything.
    pub room: Option<usize>,
}

impl Recorder {
    fn run(&mut self, op: Op) -> Result<(), &'static str> {
        if let Some(room) = &mut self.room {
            *room = room.checked_sub(1).ok_or("no room")?;
        }
        self.state.run(&op);
        self.ops.push(op);
        Ok(())
    }
}

impl Kernel for Recorder {
    type Error = &'static str;

    fn allow(&mut self, rule: &RulePrefix) -> Result<(), &'static str> {
        self.run(Op::Allow(*rule))
    }

    fn disallow(&mut self, rule: &RulePrefix) -> Result<(), &'static str> {
        self.run(Op::Disallow(*rule))
    }

    fn identify(&mut self, network: IpNet, identity: Option<u32>) -> Result<(), &'static str> {
        self.run(Op::Identify(network, identity))
    }

    fn enforce(&mut self, verdicts: &[(String, Verdict)]) -> Result<(), &'static str> {
        verdicts
            .iter()
            .try_for_each(|(uid, verdict)| self.run(Op::Enforce(uid.clone(), *verdict)))
    }
}

/// A cluster whose every pod is subject and peer.
pub struct World {
    pub model: Model,
    pub kernel: Recorder,
    pub pods: BTreeMap<String, Pod>,
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub policies: BTreeMap<String, Arc<NetworkPolicy>>,
}

pub fn labels(text: &str) -> BTreeMap<String, String> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A pod of TCP port `http` 8080 and UDP port `dns` 5353 at these addresses; its uid is `namespace/name`.
pub fn pod(namespace: &str, name: &str, with: &str, addresses: &[&str]) -> Pod {
    let port = |name: &str, protocol, port| NamedPort {
        name: name.to_owned(),
        protocol,
        port,
    };
    Pod {
        uid: format!("{namespace}/{name}"),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: Arc::new(labels(with)),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![port("http", TCP, 8080), port("dns", UDP, 5353)],
    }
}

/// Where the node's DNS server answers.
fn dns() -> Vec<IpAddr> {
    ["10.96.0.10", "fd00:96::10"].map(|ip| ip.parse().unwrap()).into()
}

/// A policy of this `spec`.
pub fn policy(namespace: &str, name: &str, spec: Value) -> Arc<NetworkPolicy> {
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

impl World {
    /// Namespaces `shop` (team=a) and `ops` (team=b) without pods or policies, all listed.
    pub fn new() -> Self {
        let mut world = Self {
            model: Model::new(Tables::default(), HashMap::new()).with_dns(&dns()),
            kernel: Recorder::default(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        world.tell(PolicyEvent::Policy(Update::All(Vec::new())));
        world.tell(PolicyEvent::Namespace(Update::All(Vec::new())));
        world.tell(PolicyEvent::Pod(Update::All(Vec::new())));
        for (name, with) in [("shop", "team=a"), ("ops", "team=b")] {
            world.namespace(name, with);
        }
        world
    }

    fn tell(&mut self, event: PolicyEvent) {
        self.model.apply(event);
        self.model.sync(&mut self.kernel).unwrap();
    }

    pub fn namespace(&mut self, name: &str, with: &str) {
        let namespace = Namespace {
            name: name.to_owned(),
            labels: labels(with),
        };
        self.namespaces.insert(name.to_owned(), namespace.labels.clone());
        self.tell(PolicyEvent::Namespace(Update::Put(namespace)));
    }

    /// Puts a pod, which is on this node too.
    pub fn pod(&mut self, pod: Pod) {
        if self.pods.insert(pod.uid.clone(), pod.clone()).is_none() {
            let subject = Subject {
                namespace: pod.namespace.clone(),
                labels: Arc::clone(&pod.labels),
                ports: pod.ports.clone(),
            };
            self.model.add_local(&pod.uid, subject);
        }
        self.tell(PolicyEvent::Pod(Update::Put(pod)));
    }

    pub fn remove_pod(&mut self, uid: &str) {
        self.pods.remove(uid);
        self.kernel.state.endpoints.remove(uid);
        self.model.remove_local(uid);
        self.tell(PolicyEvent::Pod(Update::Remove(uid.to_owned())));
    }

    pub fn policy(&mut self, policy: Arc<NetworkPolicy>) {
        let key = orch_cluster::policies::policy_key(&policy);
        self.policies.insert(key, Arc::clone(&policy));
        self.tell(PolicyEvent::Policy(Update::Put(policy)));
    }

    pub fn remove_policy(&mut self, key: &str) {
        self.policies.remove(key);
        self.tell(PolicyEvent::Policy(Update::Remove(key.to_owned())));
    }

    /// A new agent over the same kernel, which then reads the same cluster.
    pub fn restart(&mut self) -> Vec<Op> {
        self.model = self.successor();
        self.kernel.ops.clear();
        self.list();
        std::mem::take(&mut self.kernel.ops)
    }

    /// A model that has read back what the kernel holds.
    pub fn successor(&self) -> Model {
        let mut tables = Tables::default();
        for rule in &self.kernel.state.rules {
            let pair = (rule.key.policy, rule.key.identity);
            tables.rules.entry(pair).or_default().insert(*rule);
        }
        tables.networks.clone_from(&self.kernel.state.networks);
        Model::new(tables, self.kernel.state.endpoints.clone()).with_dns(&dns())
    }

    /// Lists everything, policies first.
    pub fn list(&mut self) {
        self.tell(PolicyEvent::Policy(Update::All(
            self.policies.values().cloned().collect(),
        )));
        let namespaces = self.namespaces.iter().map(|(name, labels)| Namespace {
            name: name.clone(),
            labels: labels.clone(),
        });
        let namespaces = namespaces.collect();
        self.tell(PolicyEvent::Namespace(Update::All(namespaces)));
        self.tell(PolicyEvent::Pod(Update::All(
            self.pods.values().cloned().collect(),
        )));
    }

    /// Whether a pod or address may open a connection to another.
    pub fn connects(&self, from: &str, to: &str, protocol: u8, port: u16) -> bool {
        let like = [from, to].into_iter().find_map(|who| who.parse::<IpAddr>().ok());
        let (source, destination) = (self.address(from, like), self.address(to, like));
        let (state, pods) = (&self.kernel.state, &self.pods);
        // A pod is never kept from itself.
        source == destination
            || (!pods.contains_key(from) || state.side(from, EGRESS, destination, protocol, port))
                && (!pods.contains_key(to) || state.side(to, INGRESS, source, protocol, port))
    }

    /// A pod's address, of the same family as `like`.
    fn address(&self, who: &str, like: Option<IpAddr>) -> IpAddr {
        match self.pods.get(who) {
            Some(pod) => *pod
                .addresses
                .iter()
                .find(|address| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4()))
                .unwrap(),
            None => who.parse().unwrap(),
        }
    }
}
