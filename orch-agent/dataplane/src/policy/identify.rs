//! Who addresses are, as far as the rules in force can tell them apart.
//!
//! An identity is the set of the rules' pod selectors that match a pod, the numbers of those of its ports that egress
//! rules name, and the innermost network of the rules' `ipBlock`s around the address. A pod that no selector matches
//! has no entry of its own: its address is in the networks like any other. So there are as many identities as the
//! rules make differences, not as many as there are pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use orch_cluster::policies::{NamedPort, Namespace, Pod};

use super::{
    compile::{Namespaces, Peers, PodPeer, Port, RuleSet, host},
    numbers::Counted,
};

/// What the rules in force can tell of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The rules' pod selectors that match it.
    pub peers: BTreeSet<Arc<PodPeer>>,
    /// Its ports that egress rules name.
    pub ports: BTreeSet<NamedPort>,
    /// The innermost of the rules' networks around it.
    pub prefix: Option<IpNet>,
}

impl Identity {
    /// Whether it is no more than that of the network around it.
    fn is_plain(&self) -> bool {
        self.peers.is_empty() && self.ports.is_empty()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = self.peers.iter().map(|peer| {
            let namespaces = match &peer.namespaces {
                Namespaces::Only(name) => name.clone(),
                Namespaces::Selected(selector) => format!("[{selector}]"),
            };
            format!("pods {namespaces}/[{}]", peer.pods)
        });
        let ports = self
            .ports
            .iter()
            .map(|port| format!("with port {}={}", port.name, port.port));
        let prefix = self.prefix.iter().map(|prefix| format!("in {prefix}"));
        f.write_str(&peers.chain(ports).chain(prefix).collect::<Vec<_>>().join(" "))
    }
}

#[derive(Debug)]
struct Known {
    pod: Arc<Pod>,
    peers: BTreeSet<Arc<PodPeer>>,
}

/// A network whose identity has changed: what it was, and what it is.
pub type Change = (IpNet, Option<Arc<Identity>>, Option<Arc<Identity>>);

/// All pods and namespaces, what rules ask about them, and the identity of each address that has one.
#[derive(Debug, Default)]
pub struct Identifier {
    namespaces: HashMap<String, BTreeMap<String, String>>,
    pods: HashMap<String, Known>,
    by_namespace: HashMap<String, HashSet<String>>,
    /// Who has an address; should it be more than one for a moment, the last one counts.
    owners: HashMap<IpAddr, Vec<String>>,
    peers: Counted<Arc<PodPeer>>,
    /// The peers in force that ask for one namespace by name, and those that do not.
    peers_only: HashMap<String, HashSet<Arc<PodPeer>>>,
    peers_selected: HashSet<Arc<PodPeer>>,
    prefixes: Counted<IpNet>,
    names: Counted<(u8, String)>,
    /// What is to be looked at again.
    stale: HashSet<IpNet>,
    entries: HashMap<IpNet, Arc<Identity>>,
}

impl Identifier {
    /// The pod with a uid.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(uid).map(|known| &known.pod)
    }

    /// Every pod that is known.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|known| &known.pod)
    }

    /// The identity of each network and address that has one, as of the last [`Self::settle`].
    pub fn entries(&self) -> &HashMap<IpNet, Arc<Identity>> {
        &self.entries
    }

    /// Puts a pod.
    pub fn put_pod(&mut self, pod: Pod) {
        if self.pods.get(&pod.uid).is_some_and(|known| *known.pod == pod) {
            return;
        }
        self.remove_pod(&pod.uid);
        for address in &pod.addresses {
            self.owners.entry(*address).or_default().push(pod.uid.clone());
            self.stale.insert(host(*address));
        }
        self.by_namespace
            .entry(pod.namespace.clone())
            .or_default()
            .insert(pod.uid.clone());
        let peers = self.matching(&pod);
        self.pods.insert(
            pod.uid.clone(),
            Known {
                pod: Arc::new(pod),
                peers,
            },
        );
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, uid: &str) {
        let Some(known) = self.pods.remove(uid) else {
            return;
        };
        for address in &known.pod.addresses {
            if let Some(owners) = self.owners.get_mut(address) {
                owners.retain(|owner| owner != uid);
                if owners.is_empty() {
                    self.owners.remove(address);
                }
            }
            self.stale.insert(host(*address));
        }
        if let Some(uids) = self.by_namespace.get_mut(&known.pod.namespace) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_namespace.remove(&known.pod.namespace);
            }
        }
    }

    /// Every pod's uid.
    pub fn uids(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// Puts a namespace; None removes it.
    pub fn put_namespace(&mut self, name: &str, namespace: Option<Namespace>) {
        let labels = namespace.map(|namespace| namespace.labels);
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        for uid in self.uids_in(name) {
            self.look_again(&uid);
        }
    }

    /// Every namespace's name.
    pub fn namespace_names(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }

    /// Makes it answer what these rules ask.
    pub fn acquire(&mut self, rules: &RuleSet) {
        for rule in rules.rules() {
            for port in &rule.ports {
                if let Port::Name(protocol, name) = port
                    && self.names.add((*protocol, name.clone()))
                {
                    self.names_changed(*protocol, name);
                }
            }
            let Peers::Of { pods, blocks } = &rule.peers else {
                continue;
            };
            for peer in pods {
                let peer = Arc::new(peer.clone());
                if self.peers.add(Arc::clone(&peer)) {
                    self.peer_came(&peer);
                }
            }
            for prefix in blocks.iter().flat_map(|block| block.prefixes()) {
                if self.prefixes.add(prefix) {
                    self.prefix_changed(prefix);
                }
            }
        }
    }

    /// The opposite of [`Self::acquire`].
    pub fn release(&mut self, rules: &RuleSet) {
        for rule in rules.rules() {
            for port in &rule.ports {
                if let Port::Name(protocol, name) = port
                    && self.names.remove(&(*protocol, name.clone()))
                {
                    self.names_changed(*protocol, name);
                }
            }
            let Peers::Of { pods, blocks } = &rule.peers else {
                continue;
            };
            for peer in pods {
                let peer = Arc::new(peer.clone());
                if self.peers.remove(&peer) {
                    self.peer_went(&peer);
                }
            }
            for prefix in blocks.iter().flat_map(|block| block.prefixes()) {
                if self.prefixes.remove(&prefix) {
                    self.prefix_changed(prefix);
                }
            }
        }
    }

    /// Brings the entries up to date and tells which changed.
    pub fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for net in std::mem::take(&mut self.stale) {
            let is = self.identify(net).map(Arc::new);
            let was = match &is {
                Some(is) => self.entries.insert(net, Arc::clone(is)),
                None => self.entries.remove(&net),
            };
            if was != is {
                changes.push((net, was, is));
            }
        }
        changes
    }

    fn identify(&self, net: IpNet) -> Option<Identity> {
        let owner = (net.prefix_len() == net.max_prefix_len())
            .then(|| self.owners.get(&net.addr()).and_then(|owners| owners.last()))
            .flatten()
            .and_then(|uid| self.pods.get(uid));
        if let Some(known) = owner {
            let identity = Identity {
                peers: known.peers.clone(),
                ports: known
                    .pod
                    .ports
                    .iter()
                    .filter(|port| self.names.contains(&(port.protocol, port.name.clone())))
                    .cloned()
                    .collect(),
                prefix: self.innermost(net.addr()),
            };
            if !identity.is_plain() {
                return Some(identity);
            }
        }
        self.prefixes.contains(&net).then(|| Identity {
            prefix: Some(net),
            ..Identity::default()
        })
    }

    fn innermost(&self, address: IpAddr) -> Option<IpNet> {
        let whole = host(address);
        (0..=whole.prefix_len()).rev().find_map(|length| {
            let net = IpNet::new(address, length).ok()?.trunc();
            self.prefixes.contains(&net).then_some(net)
        })
    }

    fn matches(&self, peer: &PodPeer, pod: &Pod) -> bool {
        let here = match &peer.namespaces {
            Namespaces::Only(name) => *name == pod.namespace,
            Namespaces::Selected(selector) => self
                .namespaces
                .get(&pod.namespace)
                .is_some_and(|labels| selector.matches(labels)),
        };
        here && peer.pods.matches(&pod.labels)
    }

    fn matching(&self, pod: &Pod) -> BTreeSet<Arc<PodPeer>> {
        self.peers_only
            .get(&pod.namespace)
            .into_iter()
            .flatten()
            .chain(&self.peers_selected)
            .filter(|peer| self.matches(peer, pod))
            .cloned()
            .collect()
    }

    fn uids_in(&self, namespace: &str) -> Vec<String> {
        self.by_namespace
            .get(namespace)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn look_again(&mut self, uid: &str) {
        let Some(pod) = self.pod(uid).cloned() else {
            return;
        };
        let peers = self.matching(&pod);
        if let Some(known) = self.pods.get_mut(uid)
            && known.peers != peers
        {
            known.peers = peers;
            self.stale.extend(pod.addresses.iter().copied().map(host));
        }
    }

    /// The pods that a peer may match.
    fn candidates(&self, peer: &PodPeer) -> Vec<String> {
        match &peer.namespaces {
            Namespaces::Only(name) => self.uids_in(name),
            Namespaces::Selected(selector) => self
                .namespaces
                .iter()
                .filter(|(_, labels)| selector.matches(labels))
                .flat_map(|(name, _)| self.uids_in(name))
                .collect(),
        }
    }

    fn peer_came(&mut self, peer: &Arc<PodPeer>) {
        match &peer.namespaces {
            Namespaces::Only(name) => self.peers_only.entry(name.clone()).or_default(),
            Namespaces::Selected(_) => &mut self.peers_selected,
        }
        .insert(Arc::clone(peer));
        for uid in self.candidates(peer) {
            if let Some(known) = self.pods.get_mut(&uid)
                && peer.pods.matches(&known.pod.labels)
            {
                known.peers.insert(Arc::clone(peer));
                self.stale.extend(known.pod.addresses.iter().copied().map(host));
            }
        }
    }

    fn peer_went(&mut self, peer: &Arc<PodPeer>) {
        match &peer.namespaces {
            Namespaces::Only(name) => {
                if let Some(peers) = self.peers_only.get_mut(name) {
                    peers.remove(peer);
                    if peers.is_empty() {
                        self.peers_only.remove(name);
                    }
                }
            }
            Namespaces::Selected(_) => {
                self.peers_selected.remove(peer);
            }
        }
        for uid in self.candidates(peer) {
            if let Some(known) = self.pods.get_mut(&uid)
                && known.peers.remove(peer)
            {
                self.stale.extend(known.pod.addresses.iter().copied().map(host));
            }
        }
    }

    fn prefix_changed(&mut self, prefix: IpNet) {
        self.stale.insert(prefix);
        // Of the addresses inside, only those with an entry of their own hold their network.
        let inside = self.owners.keys().filter(|address| prefix.contains(*address));
        self.stale.extend(inside.copied().map(host));
    }

    fn names_changed(&mut self, protocol: u8, name: &str) {
        for known in self.pods.values() {
            if known
                .pod
                .ports
                .iter()
                .any(|port| port.protocol == protocol && port.name == name)
            {
                self.stale.extend(known.pod.addresses.iter().copied().map(host));
            }
        }
    }
}
