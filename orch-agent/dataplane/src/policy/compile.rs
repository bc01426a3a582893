//! Policies, compiled, and what the policies of one pod come to: a set of rules that knows no API object.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use orch_cluster::policies::{Labels, NamedPort, protocol_number};

use super::{
    ports::{PortRange, Ports},
    selector::Selector,
};

/// Where the pods of a peer are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// In this namespace.
    Only(String),
    /// In those that this selects.
    Selected(Selector),
}

/// Pods as peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPeer {
    /// Where they are.
    pub namespaces: Namespaces,
    /// Which they are.
    pub pods: Selector,
}

/// A network as peer, without the networks inside it that are excepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The network.
    pub network: IpNet,
    /// What of it does not count.
    pub except: BTreeSet<IpNet>,
}

impl Block {
    /// Whether every address of `prefix` is in it. `prefix` is inside or outside each of its networks as a whole.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.network.contains(prefix) && !self.except.iter().any(|except| except.contains(prefix))
    }

    /// The networks whose borders it has.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.except.iter().copied().chain([self.network])
    }
}

/// Who may speak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    Any,
    /// Pods or addresses of any of these.
    Of {
        /// Pods.
        pods: BTreeSet<PodPeer>,
        /// Networks.
        blocks: BTreeSet<Block>,
    },
}

/// A port as a rule has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// By number.
    Number(Ports),
    /// By protocol and the name that the pod that is spoken to has for it.
    Name(u8, String),
}

/// Whom a policy allows on which ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Whom.
    pub peers: Peers,
    /// Where; never empty.
    pub ports: BTreeSet<Port>,
}

/// A compiled policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which pods of its namespace it isolates.
    pub subjects: Selector,
    /// What may come in; None where it says nothing about that.
    pub ingress: Option<Vec<Rule>>,
    /// What may go out.
    pub egress: Option<Vec<Rule>>,
}

/// What the policies that select a pod come to. Pods with equal ones share a policy number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RuleSet {
    /// What may come in; None where nothing isolates the pod. It has no ports by name.
    pub ingress: Option<BTreeSet<Rule>>,
    /// What may go out.
    pub egress: Option<BTreeSet<Rule>>,
}

impl Policy {
    /// Compiles a policy. What is wrong in a rule is left out of it, so that it allows less, and told to `complain`;
    /// the API server lets no such policy in.
    ///
    /// # Errors
    /// When nobody could say whom the policy selects.
    pub fn new(policy: &NetworkPolicy, complain: &mut impl FnMut(String)) -> Result<Self, String> {
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let spec = policy.spec.clone().unwrap_or_default();
        let subjects = select(spec.pod_selector.as_ref())?;
        // "If no policyTypes are specified, Ingress is always set and Egress if there are any egress rules."
        let has = |kind: &str, default: bool| match &spec.policy_types {
            Some(types) if !types.is_empty() => types.iter().any(|one| one == kind),
            _ => default,
        };
        let has_egress_rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let ingress = has("Ingress", true).then(|| {
            spec.ingress
                .iter()
                .flatten()
                .filter_map(|each| rule(&namespace, each.from.as_deref(), each.ports.as_deref(), complain))
                .collect()
        });
        let egress = has("Egress", has_egress_rules).then(|| {
            spec.egress
                .iter()
                .flatten()
                .filter_map(|each| rule(&namespace, each.to.as_deref(), each.ports.as_deref(), complain))
                .collect()
        });
        Ok(Self {
            subjects,
            ingress,
            egress,
        })
    }
}

impl RuleSet {
    /// What `policies`, all of which select the pod with these named ports, come to.
    pub fn of<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>, ports: &[NamedPort]) -> Self {
        let mut set = Self::default();
        for policy in policies {
            if let Some(rules) = &policy.ingress {
                set.ingress
                    .get_or_insert_default()
                    .extend(rules.iter().filter_map(|rule| resolve(rule, ports)));
            }
            if let Some(rules) = &policy.egress {
                set.egress.get_or_insert_default().extend(rules.iter().cloned());
            }
        }
        set
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flatten()
    }

    /// Whether no policy selects the pod.
    pub fn is_open(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// The numbers that a name stands for among named ports.
pub fn numbers_of<'a>(
    ports: &'a [NamedPort],
    protocol: u8,
    name: &'a str,
) -> impl Iterator<Item = Ports> + 'a {
    ports
        .iter()
        .filter(move |port| port.protocol == protocol && port.name == name)
        .map(|port| one(port.protocol, port.port))
}

/// A rule with the subject's numbers in the place of names; None if nothing is left of it.
fn resolve(rule: &Rule, subject: &[NamedPort]) -> Option<Rule> {
    let ports: BTreeSet<Port> = rule
        .ports
        .iter()
        .flat_map(|port| match port {
            Port::Number(_) => vec![port.clone()],
            Port::Name(protocol, name) => numbers_of(subject, *protocol, name).map(Port::Number).collect(),
        })
        .collect();
    (!ports.is_empty()).then(|| Rule {
        peers: rule.peers.clone(),
        ports,
    })
}

fn one(protocol: u8, port: u16) -> Ports {
    Ports::Range(
        protocol,
        PortRange {
            first: port,
            last: port,
        },
    )
}

fn select(selector: Option<&LabelSelector>) -> Result<Selector, String> {
    selector.map_or_else(|| Ok(Selector::default()), Selector::new)
}

/// Compiles a rule; None if it allows nothing.
fn rule(
    namespace: &str,
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    complain: &mut impl FnMut(String),
) -> Option<Rule> {
    let peers = match peers {
        None | Some([]) => Peers::Any,
        Some(peers) => {
            let (mut pods, mut blocks) = (BTreeSet::new(), BTreeSet::new());
            for peer in peers {
                let result = match &peer.ip_block {
                    Some(given) => block(given).map(|block| {
                        blocks.insert(block);
                    }),
                    None => pod_peer(namespace, peer).map(|peer| {
                        pods.insert(peer);
                    }),
                };
                if let Err(reason) = result {
                    complain(reason);
                }
            }
            if pods.is_empty() && blocks.is_empty() {
                return None;
            }
            Peers::Of { pods, blocks }
        }
    };
    let ports = match ports {
        None | Some([]) => BTreeSet::from([Port::Number(Ports::All)]),
        Some(ports) => ports
            .iter()
            .filter_map(|given| port(given).map_err(&mut *complain).ok())
            .collect(),
    };
    (!ports.is_empty()).then_some(Rule { peers, ports })
}

fn pod_peer(namespace: &str, peer: &NetworkPolicyPeer) -> Result<PodPeer, String> {
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return Err("a peer without any selector".to_owned());
    }
    Ok(PodPeer {
        namespaces: match &peer.namespace_selector {
            Some(selector) => Namespaces::Selected(Selector::new(selector)?),
            None => Namespaces::Only(namespace.to_owned()),
        },
        pods: select(peer.pod_selector.as_ref())?,
    })
}

fn block(block: &IPBlock) -> Result<Block, String> {
    let network = |text: &str| {
        text.parse::<IpNet>()
            .map(|network| network.trunc())
            .map_err(|_| format!("{text:?} is no CIDR"))
    };
    Ok(Block {
        network: network(&block.cidr)?,
        except: block
            .except
            .iter()
            .flatten()
            .map(|text| network(text))
            .collect::<Result<_, _>>()?,
    })
}

fn port(port: &NetworkPolicyPort) -> Result<Port, String> {
    let protocol = protocol_number(port.protocol.as_deref())
        .ok_or_else(|| format!("unknown protocol {:?}", port.protocol))?;
    let number = |number: i32| u16::try_from(number).map_err(|_| format!("{number} is no port"));
    Ok(match &port.port {
        None => Port::Number(Ports::Protocol(protocol)),
        Some(IntOrString::Int(first)) => {
            let first = number(*first)?;
            let last = port.end_port.map_or(Ok(first), number)?;
            if last < first {
                return Err(format!("no port from {first} to {last}"));
            }
            Port::Number(Ports::Range(protocol, PortRange { first, last }))
        }
        Some(IntOrString::String(name)) => Port::Name(protocol, name.clone()),
    })
}

/// A pod of this node as the subject of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
}

/// The network that holds nothing but an address.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
