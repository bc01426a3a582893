//! Which endpoints of a service answer, seen from one node.

use std::{borrow::Borrow, collections::BTreeMap};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use orch_ebpf::{
    Address,
    service::{BACKEND_LOCAL, Backend},
};

use super::{NodeInfo, View};

/// A service's endpoints of one family.
pub struct Endpoints<'a, A> {
    slices: Vec<&'a EndpointSlice>,
    all: Vec<Parsed<A>>,
}

/// An endpoint, read once for all ports.
#[derive(Clone, Copy)]
struct Parsed<A> {
    slice: usize,
    address: A,
    node: A,
    state: State,
    local: bool,
    /// Whether its node answers this one, or is not known to be silent.
    answers: bool,
    /// Whether its hints name any node, and this one.
    node_hint: Hint,
    /// Whether its hints name any zone, and this node's.
    zone_hint: Hint,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Answers nobody.
    Silent,
    /// Still serves while it terminates.
    Leaving,
    /// Takes connections.
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    Absent,
    Elsewhere,
    Here,
}

/// The endpoints of one port to which connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen<A> {
    /// Sorted, each address and port once.
    pub backends: Vec<Backend<A>>,
    /// Whether they are terminating ones, taken because no other is left.
    pub fallback: bool,
}

/// The endpoints of one port.
pub struct OfPort<A>(Vec<(Parsed<A>, Backend<A>)>);

impl<'a, A: Address> Endpoints<'a, A> {
    /// Reads the slices of the family.
    pub fn read<S: Borrow<EndpointSlice>>(slices: &'a [S], view: &View<'_>) -> Self {
        let family = if A::BITS == 32 { "IPv4" } else { "IPv6" };
        let slices: Vec<&EndpointSlice> = slices
            .iter()
            .map(Borrow::borrow)
            .filter(|slice| slice.address_type == family)
            .collect();
        let mut all = Vec::with_capacity(
            slices
                .iter()
                .map(|slice| slice.endpoints.iter().flatten().count())
                .sum(),
        );
        for (index, slice) in slices.iter().enumerate() {
            all.extend(
                slice
                    .endpoints
                    .iter()
                    .flatten()
                    .filter_map(|endpoint| parse(index, endpoint, view)),
            );
        }
        Self { slices, all }
    }

    /// The endpoints that carry the service port of this name and protocol, an address and port once: the readiest.
    pub fn of_port(&self, name: &str, protocol: (u8, &str)) -> OfPort<A> {
        let (number, protocol) = protocol;
        let ports: Vec<Option<u16>> = self
            .slices
            .iter()
            .map(|slice| {
                slice
                    .ports
                    .iter()
                    .flatten()
                    .filter(|port| port.name.as_deref().unwrap_or("") == name)
                    .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol)
                    .find_map(|port| port.port.and_then(|number| u16::try_from(number).ok()))
            })
            .collect();
        let mut found: BTreeMap<(A, u16), Parsed<A>> = BTreeMap::new();
        for parsed in &self.all {
            let Some(port) = ports.get(parsed.slice).copied().flatten() else {
                continue;
            };
            let known = found.entry((parsed.address, port)).or_insert(*parsed);
            if known.state < parsed.state {
                *known = *parsed;
            }
        }
        OfPort(
            found
                .into_iter()
                .map(|((address, port), parsed)| {
                    let backend = Backend {
                        address,
                        port,
                        protocol: number,
                        flags: if parsed.local { BACKEND_LOCAL } else { 0 },
                        node: parsed.node,
                    };
                    (parsed, backend)
                })
                .collect(),
        )
    }

    /// How many different endpoints on this node are ready.
    pub fn local_ready(&self) -> impl Iterator<Item = A> {
        self.all
            .iter()
            .filter(|parsed| parsed.local && parsed.state == State::Ready)
            .map(|parsed| parsed.address)
    }
}

impl<A: Address> OfPort<A> {
    /// Whether any endpoint answers anywhere.
    pub fn any(&self) -> bool {
        self.0.iter().any(|(parsed, _)| parsed.state != State::Silent)
    }

    /// The endpoints under the policy `Cluster`: the ready ones that topology hints allow, or where none is ready
    /// those that still serve while they terminate. Those on nodes that do not answer are as if they were not, as
    /// they will be once the control plane has noticed, unless nobody else is left.
    pub fn cluster(&self) -> Chosen<A> {
        if self.0.iter().any(|(parsed, _)| !parsed.answers) {
            let answering = self.0.iter().filter(|(parsed, _)| parsed.answers);
            let chosen = Self(answering.copied().collect()).whoever_answers();
            if !chosen.backends.is_empty() {
                return chosen;
            }
        }
        self.whoever_answers()
    }

    fn whoever_answers(&self) -> Chosen<A> {
        let allowed = self.hinted();
        self.choose(|parsed| allowed(parsed), |_| true)
    }

    /// The endpoints under the policy `Local`; this node need not ask itself.
    pub fn local(&self) -> Chosen<A> {
        self.choose(|parsed| parsed.local, |parsed| parsed.local)
    }

    fn choose(&self, ready: impl Fn(&Parsed<A>) -> bool, leaving: impl Fn(&Parsed<A>) -> bool) -> Chosen<A> {
        let pick = |state: State, which: &dyn Fn(&Parsed<A>) -> bool| -> Vec<Backend<A>> {
            self.0
                .iter()
                .filter(|(parsed, _)| parsed.state == state && which(parsed))
                .map(|(_, backend)| *backend)
                .collect()
        };
        let backends = pick(State::Ready, &ready);
        if !backends.is_empty() {
            return Chosen {
                backends,
                fallback: false,
            };
        }
        let backends = pick(State::Leaving, &leaving);
        Chosen {
            fallback: !backends.is_empty(),
            backends,
        }
    }

    /// Kubernetes' rule: hints count only when every ready endpoint has one and at least one names this node, or
    /// else this node's zone.
    fn hinted(&self) -> impl Fn(&Parsed<A>) -> bool + use<A> {
        let counts = |hint: fn(&Parsed<A>) -> Hint| {
            let mut ready = self
                .0
                .iter()
                .map(|(parsed, _)| parsed)
                .filter(|parsed| parsed.state == State::Ready);
            ready.clone().all(|parsed| hint(parsed) != Hint::Absent)
                && ready.any(|parsed| hint(parsed) == Hint::Here)
        };
        let by_node = counts(|parsed| parsed.node_hint);
        let by_zone = !by_node && counts(|parsed| parsed.zone_hint);
        move |parsed| {
            (!by_node || parsed.node_hint == Hint::Here) && (!by_zone || parsed.zone_hint == Hint::Here)
        }
    }
}

/// "Consumers should use the first address" (`Endpoint.addresses`).
fn parse<A: Address>(slice: usize, endpoint: &Endpoint, view: &View<'_>) -> Option<Parsed<A>> {
    let address = A::from_ip(endpoint.addresses.first()?.parse().ok()?)?;
    let node_name = endpoint.node_name.as_deref();
    let local = node_name == Some(view.node_name);
    let node = node_name
        .and_then(|name| view.nodes.get(name))
        .map_or(A::ANY, NodeInfo::address);
    let hints = endpoint.hints.as_ref();
    let nodes = hints
        .and_then(|hints| hints.for_nodes.as_deref())
        .unwrap_or_default();
    let zones = hints
        .and_then(|hints| hints.for_zones.as_deref())
        .unwrap_or_default();
    let zone = view
        .nodes
        .get(view.node_name)
        .and_then(|node| node.zone.as_deref());
    Some(Parsed {
        slice,
        address,
        node,
        state: state(endpoint),
        local,
        answers: node_name.is_none_or(|name| !view.left_out.contains(name)),
        node_hint: hint(nodes.iter().map(|node| node.name.as_str()), Some(view.node_name)),
        zone_hint: hint(zones.iter().map(|zone| zone.name.as_str()), zone),
    })
}

fn hint<'a>(names: impl Iterator<Item = &'a str>, here: Option<&str>) -> Hint {
    let mut found = Hint::Absent;
    for name in names {
        if Some(name) == here {
            return Hint::Here;
        }
        found = Hint::Elsewhere;
    }
    found
}

/// "A nil value should be interpreted as true" (`EndpointConditions.ready`, `serving`).
fn state(endpoint: &Endpoint) -> State {
    let Some(conditions) = &endpoint.conditions else {
        return State::Ready;
    };
    if conditions.ready.unwrap_or(true) {
        State::Ready
    } else if conditions.terminating == Some(true) && conditions.serving.unwrap_or(true) {
        State::Leaving
    } else {
        State::Silent
    }
}

/// Whether the endpoint takes connections, be it only while it terminates and no other is left.
pub fn serves(endpoint: &Endpoint) -> bool {
    state(endpoint) != State::Silent
}

/// Names of the nodes on which the service has an endpoint that is ready, or where none is, one that still serves.
pub fn nodes_with<S: Borrow<EndpointSlice>>(slices: &[S], family: &str) -> Vec<String> {
    let of = |wanted: State| -> Vec<String> {
        let mut names: Vec<String> = slices
            .iter()
            .map(Borrow::borrow)
            .filter(|slice| slice.address_type == family)
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|endpoint| state(endpoint) == wanted)
            .filter_map(|endpoint| endpoint.node_name.clone())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let ready = of(State::Ready);
    if ready.is_empty() {
        of(State::Leaving)
    } else {
        ready
    }
}
