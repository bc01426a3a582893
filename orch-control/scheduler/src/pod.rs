//! [`PodInfo`]: what the scheduler keeps of a pod, read once.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    NodeAffinity, ObjectReference, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt};
use orch_shared::pods::{controller_of, node_name};

use crate::resources::{Resources, requests, scoring_requests};

/// Labels, as objects carry them.
pub type Labels = BTreeMap<String, String>;

/// A port on the node's own addresses that a pod occupies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The address; `0.0.0.0` means all of them.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port's number.
    pub port: i32,
}

impl HostPort {
    /// Whether the two cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// One affinity or anti-affinity term, ready to match.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    selector: Selector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
    /// The node label whose values are the domains.
    pub topology_key: String,
}

impl Term {
    fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut selector = selector(term.label_selector.as_ref());
        let own = |keys: &Option<Vec<String>>, make: fn(String, BTreeSet<String>) -> Expression| {
            let keys = keys.clone().unwrap_or_default();
            keys.into_iter()
                .filter_map(|key| labels.get(&key).map(|value| make(key, [value.clone()].into())))
                .collect::<Vec<_>>()
        };
        selector.extend(own(&term.match_label_keys, Expression::In));
        selector.extend(own(&term.mismatch_label_keys, Expression::NotIn));
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            selector,
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| self::selector(Some(s))),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term speaks of `pod`, whose namespace has `namespace_labels`.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        (self.namespaces.contains(&pod.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(namespace_labels)))
            && self.selector.matches(&pod.labels)
    }
}

/// A selector that can match: none given, or one that cannot be read, matches nothing.
pub fn selector(given: Option<&LabelSelector>) -> Selector {
    given
        .and_then(|s| Selector::try_from(s.clone()).ok())
        .unwrap_or_else(|| Expression::In(String::new(), BTreeSet::new()).into())
}

/// A topology spread constraint, ready to count with.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// The node label whose values are the domains.
    pub topology_key: String,
    /// By how much the fullest domain may exceed the emptiest.
    pub max_skew: i64,
    /// How many domains there must be before an empty one is no longer assumed.
    pub min_domains: i64,
    /// `DoNotSchedule` rather than `ScheduleAnyway`.
    pub hard: bool,
    /// Which pods count.
    pub selector: Selector,
    /// Whether nodes that the pod's own affinity excludes do not count.
    pub honor_affinity: bool,
    /// Whether nodes with taints the pod does not tolerate do not count.
    pub honor_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = selector(constraint.label_selector.as_ref());
        let keys = constraint.match_label_keys.clone().unwrap_or_default();
        selector.extend(
            keys.into_iter()
                .filter_map(|key| labels.get(&key).map(|v| Expression::Equal(key, v.clone()))),
        );
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: constraint.max_skew.into(),
            min_domains: constraint.min_domains.unwrap_or(1).into(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector,
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// What only a pod that still waits for a node needs; freed for the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Labels that the node must have.
    pub node_selector: Labels,
    /// Required and preferred node terms.
    pub node_affinity: Option<NodeAffinity>,
    /// Taints the pod puts up with.
    pub tolerations: Vec<Toleration>,
    /// Images of all containers.
    pub images: Vec<String>,
    /// Topology spread constraints.
    pub spread: Vec<Spread>,
    /// Something the pod needs that no plug-in can give, in words.
    pub unsupported: Option<String>,
    /// The name of the scheduler the pod waits for.
    pub scheduler_name: String,
    /// Whether a scheduling gate is still closed.
    pub gated: bool,
}

/// What the scheduler knows of one pod. Two are equal if they are scheduled alike: status does not count.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInfo {
    /// The pod's uid: the key everywhere.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its priority; higher goes first.
    pub priority: i32,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// The node it is bound to.
    pub node_name: Option<String>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// The uid of its controller.
    pub owner: Option<String>,
    /// What it asks for.
    pub requests: Resources,
    /// CPU (thousandths) and memory (bytes) with the defaults used for comparing nodes.
    pub scoring: (i64, i64),
    /// The node's ports it occupies.
    pub host_ports: Vec<HostPort>,
    /// Required affinity.
    pub affinity: Vec<Term>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<Term>,
    /// Preferred terms with their weights; anti-affinity has negative ones.
    pub preferred: Vec<(i64, Term)>,
    /// What it wishes for, unless it is bound.
    pub wishes: Box<Wishes>,
}

impl PodInfo {
    /// Reads `pod`.
    pub fn new(pod: &Pod) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let term = |t: &PodAffinityTerm| Term::new(t, &namespace, &labels);
        let near = spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
        let far = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Option<Vec<PodAffinityTerm>>>| {
            terms
                .into_iter()
                .flatten()
                .flatten()
                .map(term)
                .collect::<Vec<_>>()
        };
        let mut preferred = Vec::new();
        for p in near.iter().flat_map(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
        }) {
            preferred.push((i64::from(p.weight), term(&p.pod_affinity_term)));
        }
        for p in far.iter().flat_map(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
        }) {
            preferred.push((-i64::from(p.weight), term(&p.pod_affinity_term)));
        }
        let bound = node_name(pod).map(str::to_owned);
        let wishes = if bound.is_some() {
            Wishes::default()
        } else {
            wishes(spec, &labels)
        };
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            created: pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            node_name: bound,
            deleting: pod.metadata.deletion_timestamp.is_some(),
            owner: controller_of(&pod.metadata).map(|o| o.uid.clone()),
            requests: requests(spec),
            scoring: scoring_requests(spec),
            host_ports: host_ports(spec),
            affinity: required(near.map(|a| &a.required_during_scheduling_ignored_during_execution)),
            anti_affinity: required(far.map(|a| &a.required_during_scheduling_ignored_during_execution)),
            preferred,
            wishes: Box::new(wishes),
            namespace,
            labels,
        }
    }

    /// How events refer to the pod.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

fn wishes(spec: &PodSpec, labels: &Labels) -> Wishes {
    Wishes {
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        node_affinity: spec.affinity.as_ref().and_then(|a| a.node_affinity.clone()),
        tolerations: spec.tolerations.clone().unwrap_or_default(),
        images: spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .filter_map(|c| c.image.clone())
            .collect(),
        spread: spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .map(|c| Spread::new(c, labels))
            .collect(),
        unsupported: unsupported(spec),
        scheduler_name: spec.scheduler_name.clone().unwrap_or_default(),
        gated: spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty()),
    }
}

fn unsupported(spec: &PodSpec) -> Option<String> {
    let claims =
        |v: &k8s_openapi::api::core::v1::Volume| v.persistent_volume_claim.is_some() || v.ephemeral.is_some();
    if let Some(volume) = spec.volumes.iter().flatten().find(|v| claims(v)) {
        return Some(format!(
            "volume \"{}\" needs a persistent volume, which orch does not bind yet",
            volume.name
        ));
    }
    let claim = spec.resource_claims.iter().flatten().next()?;
    Some(format!(
        "resource claim \"{}\" is of a kind that orch does not allocate yet",
        claim.name
    ))
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut out = Vec::new();
    for port in spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
    {
        if let Some(number) = port.host_port.filter(|p| *p > 0) {
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty());
            out.push(HostPort {
                ip: ip.unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            });
        }
    }
    out
}
