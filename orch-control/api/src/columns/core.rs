//! Columns of the small kinds of the core group, leases and services.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, count, integer, map_selector, or, since, string, wide};
use crate::value::{at, entries, list, text};

/// Kinds without columns of their own.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// core/v1 ConfigMap.
pub const CONFIG_MAP: &[Column] = &[
    NAME,
    integer("Data", "How many keys the object has.", |o, _| {
        (entries(o, &["data"]).count() + entries(o, &["binaryData"]).count()).into()
    }),
    AGE,
];

/// core/v1 Secret.
pub const SECRET: &[Column] = &[
    NAME,
    string("Type", "The form of the data.", |o, _| text(o, &["type"]).into()),
    integer("Data", "How many keys the object has.", |o, _| {
        entries(o, &["data"]).count().into()
    }),
    AGE,
];

/// core/v1 ServiceAccount.
pub const SERVICE_ACCOUNT: &[Column] = &[
    NAME,
    integer("Secrets", "How many secrets the account may use.", |o, _| {
        list(o, &["secrets"]).len().into()
    }),
    AGE,
];

/// core/v1 Namespace.
pub const NAMESPACE: &[Column] = &[
    NAME,
    string("Status", "Whether the namespace is in use or going.", |o, _| {
        text(o, &["status", "phase"]).into()
    }),
    AGE,
];

/// coordination.k8s.io/v1 Lease.
pub const LEASE: &[Column] = &[
    NAME,
    string("Holder", "Who holds the lease.", |o, _| {
        text(o, &["spec", "holderIdentity"]).into()
    }),
    AGE,
];

/// core/v1 Service.
pub const SERVICE: &[Column] = &[
    NAME,
    string("Type", "How the service is reached.", |o, _| {
        text(o, &["spec", "type"]).into()
    }),
    string("Cluster-IP", "The address inside the cluster.", |o, _| {
        or(text(o, &["spec", "clusterIP"]), "<none>")
    }),
    string("External-IP", "Addresses outside the cluster.", |o, _| {
        external_ips(o).into()
    }),
    string("Port(s)", "Ports, with node ports behind a colon.", |o, _| {
        ports(o).into()
    }),
    AGE,
    wide(
        "Selector",
        "The labels of the pods behind the service.",
        |o, _| map_selector(at(o, &["spec", "selector"])),
    ),
];

fn external_ips(service: &Value) -> String {
    let strings = |path: &[&str]| {
        list(service, path)
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
    };
    let given: Vec<String> = strings(&["spec", "externalIPs"]).collect();
    let none = || "<none>".to_owned();
    match text(service, &["spec", "type"]) {
        "ExternalName" => text(service, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            let ingress = list(service, &["status", "loadBalancer", "ingress"])
                .iter()
                .map(|i| {
                    let ip = text(i, &["ip"]);
                    if ip.is_empty() {
                        text(i, &["hostname"]).to_owned()
                    } else {
                        ip.to_owned()
                    }
                });
            let all: Vec<String> = ingress.chain(given).collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ if given.is_empty() => none(),
        _ => given.join(","),
    }
}

fn ports(service: &Value) -> String {
    let parts: Vec<String> = list(service, &["spec", "ports"])
        .iter()
        .map(|p| {
            let (port, protocol) = (p["port"].as_i64().unwrap_or(0), text(p, &["protocol"]));
            match p["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(node) => format!("{port}:{node}/{protocol}"),
                None => format!("{port}/{protocol}"),
            }
        })
        .collect();
    if parts.is_empty() {
        "<none>".to_owned()
    } else {
        parts.join(",")
    }
}

/// core/v1 Event.
pub const EVENT: &[Column] = &[
    string("Last Seen", "When the event was last seen.", |o, now| {
        last_seen(o, now).into()
    }),
    string("Type", "Normal or Warning.", |o, _| text(o, &["type"]).into()),
    string("Reason", "Why the event came about, in one word.", |o, _| {
        text(o, &["reason"]).into()
    }),
    string("Object", "What the event is about.", |o, _| {
        object(o, "involvedObject").into()
    }),
    wide("Subobject", "The part of the object.", |o, _| {
        text(o, &["involvedObject", "fieldPath"]).into()
    }),
    wide("Source", "Who reported the event.", |o, _| {
        source(o, "source", "reportingComponent").into()
    }),
    string("Message", "What happened.", |o, _| {
        text(o, &["message"]).trim().into()
    }),
    wide("First Seen", "When the event was first seen.", |o, now| {
        first_seen(o, now).into()
    }),
    wide("Count", "How often the event was seen.", |o, _| times(o).into()),
    Column { priority: 1, ..NAME },
];

/// events.k8s.io/v1 Event.
pub const EVENTS_V1: &[Column] = &[
    string("Last Seen", "When the event was last seen.", |o, now| {
        last_seen(o, now).into()
    }),
    string("Type", "Normal or Warning.", |o, _| text(o, &["type"]).into()),
    string("Reason", "Why the event came about, in one word.", |o, _| {
        text(o, &["reason"]).into()
    }),
    string("Object", "What the event is about.", |o, _| {
        object(o, "regarding").into()
    }),
    wide("Subobject", "The part of the object.", |o, _| {
        text(o, &["regarding", "fieldPath"]).into()
    }),
    wide("Source", "Who reported the event.", |o, _| {
        source(o, "deprecatedSource", "reportingController").into()
    }),
    string("Message", "What happened.", |o, _| {
        text(o, &["note"]).trim().into()
    }),
    wide("First Seen", "When the event was first seen.", |o, now| {
        first_seen(o, now).into()
    }),
    wide("Count", "How often the event was seen.", |o, _| times(o).into()),
    Column { priority: 1, ..NAME },
];

fn first<'a>(obj: &'a Value, paths: &[&[&str]]) -> &'a str {
    paths
        .iter()
        .map(|p| text(obj, p))
        .find(|t| !t.is_empty())
        .unwrap_or_default()
}

const FIRST: &[&[&str]] = &[
    &["firstTimestamp"],
    &["deprecatedFirstTimestamp"],
    &["eventTime"],
    &["metadata", "creationTimestamp"],
];

fn first_seen(event: &Value, now: Timestamp) -> String {
    since(first(event, FIRST), now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    let last: &[&[&str]] = &[
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["deprecatedLastTimestamp"],
    ];
    match first(event, last) {
        "" => first_seen(event, now),
        time => since(time, now),
    }
}

fn times(event: &Value) -> String {
    let seen = [&["series", "count"][..], &["count"], &["deprecatedCount"]];
    let times = seen.iter().find_map(|p| at(event, p).as_i64().filter(|n| *n > 0));
    times.unwrap_or(1).to_string()
}

fn object(event: &Value, key: &str) -> String {
    let kind = text(event, &[key, "kind"]).to_lowercase();
    let name = text(event, &[key, "name"]);
    if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    }
}

fn source(event: &Value, key: &str, reporter: &str) -> String {
    let component = match text(event, &[key, "component"]) {
        "" => text(event, &[reporter]),
        component => component,
    };
    let host = match text(event, &[key, "host"]) {
        "" => text(event, &["reportingInstance"]),
        host => host,
    };
    if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    }
}

/// The replicas that a workload's status counts, for columns of counts.
pub(super) fn status_count(obj: &Value, key: &str) -> Value {
    count(obj, &["status", key])
}
