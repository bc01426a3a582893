//! A monitor's lines as a person reads them.

use std::{fmt::Write as _, net::IpAddr};

use super::record::{Message, Peer, Record};

/// One line, without its end. Times are shown in `zone`.
#[must_use]
pub fn line(message: &Message, zone: &jiff::tz::TimeZone) -> String {
    match message {
        Message::Ready { node } => format!("listening on {node}"),
        Message::Drop(record) => event("drop", record, zone),
        Message::Flow(record) => event("flow", record, zone),
        Message::Verdict(record) => event("verdict", record, zone),
        Message::Lost { count } => format!("{count} events lost: they came faster than they could be shown"),
        Message::Error { message } => message.clone(),
    }
}

fn event(kind: &str, record: &Record, zone: &jiff::tz::TimeZone) -> String {
    let time = record.time.parse::<jiff::Timestamp>().map_or_else(
        |_| record.time.clone(),
        |time| time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
    );
    // At a socket there is no packet yet; elsewhere, one that could not be read.
    let nobody = if record.interface.is_none() {
        "a socket"
    } else {
        "?"
    };
    let mut line = format!(
        "{time} {kind} {} {} -> {}",
        record.protocol,
        peer(&record.source, nobody),
        peer(&record.destination, nobody)
    );
    if let Some(backend) = &record.backend {
        let _ = write!(line, " => {}", peer(backend, nobody));
    }
    let _ = write!(line, " {}", record.reason);
    if let Some(direction) = &record.direction {
        let _ = write!(line, " {direction}");
    }
    let interface = record.interface.as_ref();
    if let Some(at) = interface.and_then(|interface| interface.pod.as_ref().or(interface.role.as_ref())) {
        let _ = write!(line, " at {at}");
    }
    line
}

fn peer(peer: &Peer, nobody: &str) -> String {
    let address = match (peer.ip, peer.port) {
        (None, _) => nobody.to_owned(),
        (Some(ip), None) => ip.to_string(),
        (Some(IpAddr::V4(ip)), Some(port)) => format!("{ip}:{port}"),
        (Some(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
    };
    let identity = || peer.labels.as_ref().map(|labels| format!("{{{labels}}}"));
    let name = peer.pod.clone().or_else(|| peer.service.clone());
    match name
        .or_else(|| peer.node.as_ref().map(|node| format!("node {node}")))
        .or_else(identity)
    {
        Some(name) => format!("{name} ({address})"),
        None => address,
    }
}
