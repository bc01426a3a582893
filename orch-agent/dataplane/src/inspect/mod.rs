//! The pinned maps in a person's terms, as text or JSON: `orch-agent bpf …`.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use orch_ebpf::{
    PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    config::{NODE_LOCAL, NODES_MAP},
    conntrack::{
        CONNTRACK_MAP, DIRECTION_REPLY, KIND_MASQUERADE, SEEN_FIN, SEEN_RST, SEEN_SYN, SEEN_TRAFFIC, Tuple,
    },
    endpoint::ENDPOINTS_MAP,
    event::{DropReason, METRICS_MAP, METRICS_PATHS, Path as Way},
    service::{
        ANY_ADDRESS, BACKEND_LOCAL, BACKENDS_MAP, Backend, BackendKey, SCOPE_EXTERNAL, SERVICES_MAP, SlotKey,
    },
};
use serde_json::{Value, json};

use crate::{
    DataplaneError,
    maps::{Maps, failed},
};

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Services with their backends.
    Services,
    /// Backends.
    Backends,
    /// Pods of this node.
    Endpoints,
    /// Translated flows.
    Conntrack,
    /// Addresses of nodes.
    Nodes,
    /// Counters.
    Metrics,
}

impl std::str::FromStr for View {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "services" => Self::Services,
            "backends" => Self::Backends,
            "endpoints" => Self::Endpoints,
            "conntrack" => Self::Conntrack,
            "nodes" => Self::Nodes,
            "metrics" => Self::Metrics,
            _ => {
                return Err(format!(
                    "{text:?} is none of services, backends, endpoints, conntrack, nodes, metrics"
                ));
            }
        })
    }
}

/// Rows under column names; every value is text or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// The table as JSON objects.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            self.columns
                .iter()
                .map(|column| (*column).to_owned())
                .zip(row.iter().cloned())
                .collect::<serde_json::Map<_, _>>()
        });
        rows.map(Value::Object).collect()
    }

    /// The table as aligned text with a heading.
    #[must_use]
    pub fn text(&self) -> String {
        let heading: Vec<String> = self.columns.iter().map(|column| column.to_uppercase()).collect();
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(cell).collect::<Vec<String>>());
        let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
        let mut widths = vec![0; self.columns.len()];
        for line in &lines {
            for (width, word) in widths.iter_mut().zip(line) {
                *width = (*width).max(word.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            let words: Vec<String> = line
                .iter()
                .zip(&widths)
                .map(|(word, width)| format!("{word:<width$}"))
                .collect();
            text.push_str(words.join("   ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.is_empty() => "<none>".to_owned(),
        Value::Array(parts) => parts.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Reads one view from the maps pinned under `bpf_root`.
///
/// # Errors
/// When the maps are not there or cannot be read.
pub fn read(bpf_root: &Path, view: View) -> Result<Table, DataplaneError> {
    let maps = Maps::pinned(bpf_root)?;
    match view {
        View::Services => services(&maps),
        View::Backends => backends(&maps),
        View::Endpoints => endpoints(&maps),
        View::Conntrack => conntrack(&maps),
        View::Nodes => nodes(&maps),
        View::Metrics => metrics(&maps),
    }
}

fn protocol(number: u8) -> String {
    match number {
        PROTOCOL_TCP => "TCP".to_owned(),
        PROTOCOL_UDP => "UDP".to_owned(),
        PROTOCOL_ICMP => "ICMP".to_owned(),
        other => other.to_string(),
    }
}

fn socket(address: [u8; 4], port: u16) -> String {
    if address == ANY_ADDRESS {
        format!("node:{port}")
    } else {
        format!("{}:{port}", Ipv4Addr::from(address))
    }
}

fn backend_text(backend: &Backend) -> String {
    socket(backend.address, backend.port)
}

fn services(maps: &Maps) -> Result<Table, DataplaneError> {
    let backends: BTreeMap<BackendKey, Backend> = maps
        .backends
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(BACKENDS_MAP))?;
    let mut services: Vec<_> = maps
        .services
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(SERVICES_MAP))?;
    services.sort_by_key(|(key, _)| *key);
    let rows = services.iter().map(|(key, service)| {
        let slots = (0..service.count).map(|slot| {
            let slot = maps
                .slots
                .get(
                    &SlotKey {
                        pool: service.pool,
                        slot,
                    },
                    0,
                )
                .ok();
            let backend = slot.and_then(|slot| backends.get(&BackendKey { id: slot.backend }));
            json!(backend.map_or_else(|| "missing".to_owned(), backend_text))
        });
        vec![
            json!(socket(key.address, key.port)),
            json!(protocol(key.protocol)),
            json!(if key.scope == SCOPE_EXTERNAL {
                "outside"
            } else {
                "cluster"
            }),
            json!(service.pool),
            json!(service.affinity_seconds),
            slots.collect(),
        ]
    });
    Ok(Table {
        columns: vec!["service", "protocol", "clients", "pool", "affinity", "backends"],
        rows: rows.collect(),
    })
}

fn backends(maps: &Maps) -> Result<Table, DataplaneError> {
    let backends: BTreeMap<BackendKey, Backend> = maps
        .backends
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(BACKENDS_MAP))?;
    let rows = backends.iter().map(|(key, backend)| {
        vec![
            json!(key.id),
            json!(backend_text(backend)),
            json!(protocol(backend.protocol)),
            json!(if backend.flags & BACKEND_LOCAL != 0 {
                "this"
            } else {
                "other"
            }),
        ]
    });
    Ok(Table {
        columns: vec!["id", "backend", "protocol", "node"],
        rows: rows.collect(),
    })
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn endpoints(maps: &Maps) -> Result<Table, DataplaneError> {
    let mut all: Vec<_> = maps
        .endpoints
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(ENDPOINTS_MAP))?;
    all.sort_by_key(|(address, _)| *address);
    let rows = all.iter().map(|(address, endpoint)| {
        let uid = String::from_utf8_lossy(&endpoint.uid);
        vec![
            json!(Ipv4Addr::from(*address)),
            json!(endpoint.ifindex),
            json!(mac(endpoint.pod_mac)),
            json!(uid.trim_end_matches('\0')),
        ]
    });
    Ok(Table {
        columns: vec!["address", "interface", "mac", "pod"],
        rows: rows.collect(),
    })
}

fn flow(tuple: &Tuple) -> String {
    format!(
        "{} > {}",
        socket(tuple.source, tuple.source_port),
        socket(tuple.destination, tuple.destination_port)
    )
}

fn conntrack(maps: &Maps) -> Result<Table, DataplaneError> {
    let mut all: Vec<_> = maps
        .conntrack
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(CONNTRACK_MAP))?;
    all.sort_by_key(|(tuple, _)| *tuple);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    let rows = all.iter().map(|(tuple, entry)| {
        let flags = [
            (SEEN_SYN, "SYN"),
            (SEEN_TRAFFIC, "TRAFFIC"),
            (SEEN_FIN, "FIN"),
            (SEEN_RST, "RST"),
        ];
        let seen = flags
            .iter()
            .filter(|(flag, _)| entry.seen & flag != 0)
            .map(|(_, name)| json!(name));
        let idle = now
            .saturating_sub(std::time::Duration::from_nanos(entry.last_seen))
            .as_secs();
        vec![
            json!(protocol(tuple.protocol)),
            json!(flow(tuple)),
            json!(flow(&entry.becomes)),
            json!(if entry.kind == KIND_MASQUERADE {
                "masquerade"
            } else {
                "service"
            }),
            json!(if entry.direction == DIRECTION_REPLY {
                "reply"
            } else {
                "original"
            }),
            seen.collect(),
            json!(idle),
        ]
    });
    let columns = vec![
        "protocol",
        "flow",
        "becomes",
        "kind",
        "direction",
        "seen",
        "idle_seconds",
    ];
    Ok(Table {
        columns,
        rows: rows.collect(),
    })
}

fn nodes(maps: &Maps) -> Result<Table, DataplaneError> {
    let mut all: Vec<_> = maps
        .nodes
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(NODES_MAP))?;
    all.sort_by_key(|(address, _)| *address);
    let rows = all.iter().map(|(address, node)| {
        vec![
            json!(Ipv4Addr::from(*address)),
            json!(if node.kind == NODE_LOCAL { "this" } else { "other" }),
        ]
    });
    Ok(Table {
        columns: vec!["address", "node"],
        rows: rows.collect(),
    })
}

fn metrics(maps: &Maps) -> Result<Table, DataplaneError> {
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (*reason as u32, "dropped", reason.text()));
    let ways = Way::ALL
        .iter()
        .map(|way| (METRICS_PATHS + *way as u32, "forwarded", way.text()));
    let mut rows = Vec::new();
    for (index, verdict, what) in drops.chain(ways) {
        let values = maps.metrics.get(&index, 0).map_err(failed(METRICS_MAP))?;
        let (packets, bytes) = values.iter().fold((0, 0), |(packets, bytes), one| {
            (packets + one.packets, bytes + one.bytes)
        });
        rows.push(vec![json!(verdict), json!(what), json!(packets), json!(bytes)]);
    }
    Ok(Table {
        columns: vec!["verdict", "what", "count", "bytes"],
        rows,
    })
}
