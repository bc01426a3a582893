//! Connection tracking and fragments.

use orch_ebpf::conntrack::{
    DIRECTION_REPLY, FRAGMENTS_MAP, Fragment, FragmentKey, HOP_PASS, HOP_REFLECT, KIND_DIRECT,
    KIND_MASQUERADE, KIND_POLICY, KIND_SERVICE, SEEN_FIN, SEEN_RST, SEEN_SYN, SEEN_TRAFFIC, Tuple,
};

use super::{Pins, Table, both, flags, seconds_since, socket, table::row};
use crate::{
    DataplaneError,
    maps::{self, MapAddress},
    monitor::protocol,
};

pub(super) fn conntrack(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let columns = [
        "protocol",
        "flow",
        "becomes",
        "kind",
        "direction",
        "backend_id",
        "seen",
        "xdp",
        "idle_seconds",
    ];
    both!(Table::new(&columns), conntrack_of, pins)
}

fn flow<A: MapAddress>(tuple: &Tuple<A>) -> String {
    format!(
        "{} > {}",
        socket(tuple.source, tuple.source_port),
        socket(tuple.destination, tuple.destination_port)
    )
}

fn conntrack_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let read = maps::pinned_flows::<A>(&maps::folder(pins.0))?
        .open()
        .and_then(|flows| flows.all());
    let mut all = read.map_err(|source| DataplaneError::Syscall {
        call: "read the table of flows".to_owned(),
        source,
    })?;
    all.sort_unstable_by_key(|(tuple, _)| *tuple);
    for (tuple, entry) in all {
        let kind = match entry.kind {
            KIND_SERVICE => "service",
            KIND_MASQUERADE => "masquerade",
            KIND_POLICY => "policy",
            KIND_DIRECT => "direct",
            _ => "unknown",
        };
        let seen = [
            (SEEN_SYN, "SYN"),
            (SEEN_TRAFFIC, "TRAFFIC"),
            (SEEN_FIN, "FIN"),
            (SEEN_RST, "RST"),
        ];
        let hop = match entry.hop {
            HOP_REFLECT => Some("reflect"),
            HOP_PASS => Some("pass"),
            _ => None,
        };
        table.push(row![
            protocol(tuple.protocol),
            flow(&tuple),
            (entry.becomes != tuple).then(|| flow(&entry.becomes)),
            kind,
            if entry.direction == DIRECTION_REPLY {
                "reply"
            } else {
                "original"
            },
            (entry.backend != 0).then_some(entry.backend),
            flags(
                u32::from(entry.seen),
                seen.map(|(flag, name)| (u32::from(flag), name))
            ),
            hop,
            seconds_since(entry.last_seen),
        ]);
    }
    Ok(())
}

pub(super) fn fragments(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let columns = [
        "protocol",
        "source",
        "destination",
        "identification",
        "source_port",
        "destination_port",
    ];
    both!(Table::new(&columns), fragments_of, pins)
}

fn fragments_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let rank = |key: &FragmentKey<A>, _: &Fragment| (key.source, key.destination, key.identification);
    for (key, ports) in pins.hash::<FragmentKey<A>, Fragment, _>(FRAGMENTS_MAP, A::SUFFIX, rank)? {
        table.push(row![
            u8::try_from(key.protocol).map_or_else(|_| key.protocol.to_string(), protocol),
            key.source.ip(),
            key.destination.ip(),
            u32::from_be(key.identification),
            ports.source_port,
            ports.destination_port,
        ]);
    }
    Ok(())
}
