//! Which events a monitor wants. The agent decides, so that a narrow monitor is not slowed down by what it skips.

use std::net::IpAddr;

use ipnet::IpNet;
use orch_ebpf::{
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    config::{CONFIG_DROPS, CONFIG_FLOWS},
    event::Event,
};
use serde::{Deserialize, Serialize};

use super::record::{self, Kind, Message, Peer, Record, Verdict};

/// Everything given must hold; what is not given holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Any of these kinds; empty for all.
    pub types: Vec<Kind>,
    /// This pod, as NAMESPACE/NAME, at either end, as backend, or at the interface.
    pub pod: Option<String>,
    /// A pod or a service in this namespace, at either end.
    pub namespace: Option<String>,
    /// This service, as NAMESPACE/NAME.
    pub service: Option<String>,
    /// An address in this network, at either end or as backend.
    pub ip: Option<IpNet>,
    /// This port, at either end or as the backend's.
    pub port: Option<u16>,
    /// This protocol.
    pub protocol: Option<Protocol>,
    /// A reason that contains this text, in whatever case.
    pub reason: Option<String>,
    /// This outcome.
    pub verdict: Option<Verdict>,
}

/// A protocol that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of either family.
    Icmp,
}

impl Protocol {
    fn holds(self, number: u8) -> bool {
        match self {
            Self::Tcp => number == PROTOCOL_TCP,
            Self::Udp => number == PROTOCOL_UDP,
            Self::Sctp => number == PROTOCOL_SCTP,
            Self::Icmp => matches!(number, PROTOCOL_ICMP | PROTOCOL_ICMPV6),
        }
    }
}

impl Filter {
    fn wants(&self, kind: Kind) -> bool {
        let outcome = if kind == Kind::Drop {
            Verdict::Denied
        } else {
            Verdict::Allowed
        };
        (self.types.is_empty() || self.types.contains(&kind))
            && self.verdict.is_none_or(|verdict| verdict == outcome)
    }

    /// The flags of [`orch_ebpf::config::Config`] that the programs need for the events that this filter may let
    /// pass.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let drops = if self.wants(Kind::Drop) { CONFIG_DROPS } else { 0 };
        let flows = if self.wants(Kind::Flow) || self.wants(Kind::Verdict) {
            CONFIG_FLOWS
        } else {
            0
        };
        drops | flows
    }

    /// Whether the event passes as far as that can be said without names: cheap.
    #[must_use]
    pub fn admits(&self, event: &Event) -> bool {
        let addresses = || {
            [event.source, event.destination, event.becomes]
                .into_iter()
                .filter_map(record::address)
        };
        let ports = [event.source_port, event.destination_port, event.becomes_port];
        record::kind(event).is_some_and(|kind| self.wants(kind))
            && self
                .protocol
                .is_none_or(|protocol| protocol.holds(event.protocol))
            && self.port.is_none_or(|port| ports.contains(&port))
            && self
                .ip
                .is_none_or(|net| addresses().any(|ip: IpAddr| net.contains(&ip)))
    }

    /// Whether an admitted event passes, judged by its names.
    #[must_use]
    pub fn passes(&self, message: &Message) -> bool {
        let (Message::Drop(record) | Message::Flow(record) | Message::Verdict(record)) = message else {
            return true;
        };
        self.pod
            .as_ref()
            .is_none_or(|pod| pods(record).any(|it| it == pod))
            && self
                .service
                .as_ref()
                .is_none_or(|service| services(record).any(|it| it == service))
            && self.namespace.as_ref().is_none_or(|namespace| {
                let within = |name: &str| name.split_once('/').is_some_and(|(it, _)| it == namespace);
                pods(record).chain(services(record)).any(within)
            })
            && self
                .reason
                .as_ref()
                .is_none_or(|reason| record.reason.to_lowercase().contains(&reason.to_lowercase()))
    }
}

fn peers(record: &Record) -> impl Iterator<Item = &Peer> {
    [&record.source, &record.destination]
        .into_iter()
        .chain(&record.backend)
}

fn pods(record: &Record) -> impl Iterator<Item = &str> {
    let interface = record
        .interface
        .as_ref()
        .and_then(|interface| interface.pod.as_deref());
    peers(record)
        .filter_map(|peer| peer.pod.as_deref())
        .chain(interface)
}

fn services(record: &Record) -> impl Iterator<Item = &str> {
    peers(record).filter_map(|peer| peer.service.as_deref())
}
