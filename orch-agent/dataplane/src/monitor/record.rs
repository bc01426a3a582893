//! An event with its names: what a monitor is sent, one JSON object a line. The fields are documented in
//! `orch-ebpf/README.md`; they are only ever added to.

use std::net::IpAddr;

use orch_ebpf::{
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    conntrack::{KIND_DIRECT, KIND_MASQUERADE, KIND_SERVICE},
    event::{DropReason, EVENT_DROP, EVENT_FLOW, Event},
    policy::{EGRESS, IDENTITY_HOST, IDENTITY_WORLD, INGRESS},
};
use serde::{Deserialize, Serialize};

/// What a line of the monitor says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Message {
    /// The agent listens to the programs from here on.
    Ready {
        /// Name of the agent's node.
        node: String,
    },
    /// A packet or a connection was refused.
    Drop(Record),
    /// A service's address was translated, or a pod's masqueraded, for a new flow.
    Flow(Record),
    /// A policy let a flow's first packet pass.
    Verdict(Record),
    /// Events that this reader was too slow for.
    Lost {
        /// How many.
        count: u64,
    },
    /// The agent refuses to go on.
    Error {
        /// Why.
        message: String,
    },
}

/// The kinds of events that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// [`Message::Drop`].
    Drop,
    /// [`Message::Flow`].
    Flow,
    /// [`Message::Verdict`].
    Verdict,
}

/// How it ended for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed.
    Allowed,
    /// It was dropped, or its connection refused.
    Denied,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// Name of the node that saw it.
    pub node: String,
    /// Whether it passed.
    pub verdict: Verdict,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or another protocol's number.
    pub protocol: String,
    /// Who sent the packet or opened the connection.
    pub source: Peer,
    /// Whom it was sent to: for a client of a service, the service.
    pub destination: Peer,
    /// The backend that was chosen for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Peer>,
    /// Of a drop, why: [`DropReason::text`]. Of a flow, `service`, `direct` or `masquerade`. Of a verdict, `policy`.
    pub reason: String,
    /// `ingress` or `egress`, for what a policy decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Where the packet was seen; none at a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// The packet's length in bytes; none at a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
}

/// One end of a flow, with every name that is known for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address; none for a socket that has no address yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Its port; none for protocols without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The pod that has the address, as NAMESPACE/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The service that has the address and port, as NAMESPACE/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The node that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Number of its identity, where a policy decided about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    /// What the identity stands for: labels of a pod, a network, `world` or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
}

/// The interface that a packet was seen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its index in the node's network namespace.
    pub index: u32,
    /// The pod that it belongs to, as NAMESPACE/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `uplink` or `tunnel`, where it is one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// Where the names come from.
pub trait Names {
    /// The node that all this happens on.
    fn node(&self) -> &str;
    /// The pod with this address.
    fn pod(&self, ip: IpAddr) -> Option<String>;
    /// The service with this address, or with this port of a node.
    fn service(&self, ip: IpAddr, port: u16) -> Option<String>;
    /// The node with this address.
    fn node_at(&self, ip: IpAddr) -> Option<String>;
    /// What an identity stands for.
    fn identity(&self, number: u32) -> Option<String>;
    /// The pod at this interface.
    fn pod_at(&self, ifindex: u32) -> Option<String>;
    /// The interface's role: `uplink` or `tunnel`.
    fn role(&self, ifindex: u32) -> Option<&'static str>;
}

/// An address in its wide form; `None` for all zero, which stands for "none".
#[must_use]
pub fn address(wide: [u8; 16]) -> Option<IpAddr> {
    let ip = IpAddr::from(wide).to_canonical();
    (!ip.is_unspecified()).then_some(ip)
}

/// The kind of an event; `None` for one that this agent does not know.
#[must_use]
pub fn kind(event: &Event) -> Option<Kind> {
    Some(match event.kind {
        EVENT_DROP => Kind::Drop,
        EVENT_FLOW => Kind::Flow,
        orch_ebpf::event::EVENT_VERDICT => Kind::Verdict,
        _ => return None,
    })
}

/// The protocol as a word.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        PROTOCOL_TCP => "tcp".to_owned(),
        PROTOCOL_UDP => "udp".to_owned(),
        PROTOCOL_SCTP => "sctp".to_owned(),
        PROTOCOL_ICMP => "icmp".to_owned(),
        PROTOCOL_ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Why a packet was refused, as text.
#[must_use]
pub fn drop_reason(number: u32) -> String {
    DropReason::from_number(number)
        .map_or_else(|| format!("reason {number}"), |reason| reason.text().to_owned())
}

/// Which policy's direction the event is about.
#[must_use]
pub fn direction(event: &Event) -> Option<u8> {
    const POLICY_INGRESS: u32 = DropReason::PolicyIngress as u32;
    const POLICY_EGRESS: u32 = DropReason::PolicyEgress as u32;
    match (kind(event)?, event.reason) {
        (Kind::Drop, POLICY_INGRESS) => Some(INGRESS),
        (Kind::Drop, POLICY_EGRESS) => Some(EGRESS),
        (Kind::Verdict, direction) if direction == u32::from(INGRESS) => Some(INGRESS),
        (Kind::Verdict, direction) if direction == u32::from(EGRESS) => Some(EGRESS),
        _ => None,
    }
}

/// Puts names to an event that happened at `time`; `None` for a kind that this agent does not know.
pub fn describe(event: &Event, time: String, names: &impl Names) -> Option<Message> {
    let kind = kind(event)?;
    let ports = matches!(event.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP);
    let peer = |wide, port| {
        let ip = address(wide);
        Peer {
            ip,
            port: ports.then_some(port).filter(|port| *port != 0),
            pod: ip.and_then(|ip| names.pod(ip)),
            service: ip.and_then(|ip| names.service(ip, port)),
            node: ip.and_then(|ip| names.node_at(ip)),
            ..Peer::default()
        }
    };
    let mut source = peer(event.source, event.source_port);
    let mut destination = peer(event.destination, event.destination_port);
    // A port of the node is a service's only for who is sent to.
    source.service = None;
    let decided = direction(event);
    if let Some(decided) = decided {
        // Of what comes in, the peer that the policy names is the source.
        let peer = if decided == INGRESS {
            &mut source
        } else {
            &mut destination
        };
        peer.identity = Some(event.identity);
        peer.labels = match event.identity {
            IDENTITY_WORLD => Some("world".to_owned()),
            IDENTITY_HOST => Some("host".to_owned()),
            number => names.identity(number),
        };
    }
    let translated = (event.becomes, event.becomes_port) != (event.destination, event.destination_port);
    let record = Record {
        time,
        node: names.node().to_owned(),
        verdict: if kind == Kind::Drop {
            Verdict::Denied
        } else {
            Verdict::Allowed
        },
        protocol: protocol(event.protocol),
        source,
        destination,
        backend: (translated && address(event.becomes).is_some()).then(|| Peer {
            service: None,
            ..peer(event.becomes, event.becomes_port)
        }),
        reason: match kind {
            Kind::Drop => drop_reason(event.reason),
            Kind::Flow if event.reason == u32::from(KIND_SERVICE) => "service".to_owned(),
            Kind::Flow if event.reason == u32::from(KIND_DIRECT) => "direct".to_owned(),
            Kind::Flow if event.reason == u32::from(KIND_MASQUERADE) => "masquerade".to_owned(),
            Kind::Flow => format!("kind {}", event.reason),
            Kind::Verdict => "policy".to_owned(),
        },
        direction: decided.map(|decided| if decided == INGRESS { "ingress" } else { "egress" }.to_owned()),
        interface: (event.ifindex != 0).then(|| Interface {
            index: event.ifindex,
            pod: names.pod_at(event.ifindex),
            role: names.role(event.ifindex).map(str::to_owned),
        }),
        length: (event.length != 0).then_some(event.length),
    };
    Some(match kind {
        Kind::Drop => Message::Drop(record),
        Kind::Flow => Message::Flow(record),
        Kind::Verdict => Message::Verdict(record),
    })
}
