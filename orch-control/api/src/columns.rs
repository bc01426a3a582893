//! The columns that `kubectl get` shows for each kind, as Kubernetes' own printers have them.

mod core;
pub(crate) mod duration;
mod endpoint;
mod networking;
mod node;
mod pod;
mod pod_status;
mod workload;

pub use self::core::{
    CONFIG_MAP, EVENT, EVENTS_V1, LEASE, NAME_AND_AGE, NAMESPACE, SECRET, SERVICE, SERVICE_ACCOUNT,
};
pub use endpoint::{ENDPOINT_SLICE, ENDPOINTS};
pub use networking::{INGRESS, INGRESS_CLASS, IP_ADDRESS, NETWORK_POLICY, SERVICE_CIDR};
pub use node::NODE;
pub use pod::POD;
pub use workload::{DEPLOYMENT, REPLICA_SET, REPLICATION_CONTROLLER};

use jiff::Timestamp;
use serde_json::Value;

use crate::selector::LabelSelector;
use crate::value::{at, entries, list, text};

/// The cell of a column for an object at a moment.
pub type Cell = fn(&Value, Timestamp) -> Value;

/// One column of a table.
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string`, `integer`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the primary column.
    pub format: &'static str,
    /// What the column says.
    pub description: &'static str,
    /// 0 for always shown, 1 for `-o wide`.
    pub priority: u8,
    /// The cell.
    pub cell: Cell,
}

/// A column of text that is always shown.
const fn string(name: &'static str, description: &'static str, cell: Cell) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// A column of counts that is always shown.
const fn integer(name: &'static str, description: &'static str, cell: Cell) -> Column {
    Column {
        kind: "integer",
        ..string(name, description, cell)
    }
}

/// A column of text for `-o wide`.
const fn wide(name: &'static str, description: &'static str, cell: Cell) -> Column {
    Column {
        priority: 1,
        ..string(name, description, cell)
    }
}

/// The first column of every kind.
const NAME: Column = Column {
    format: "name",
    ..string(
        "Name",
        "The name of the object, unique within its namespace.",
        name,
    )
};

/// The last column of most kinds.
const AGE: Column = string("Age", "How long ago the object was created.", age);

fn name(obj: &Value, _: Timestamp) -> Value {
    text(obj, &["metadata", "name"]).into()
}

fn age(obj: &Value, now: Timestamp) -> Value {
    since(text(obj, &["metadata", "creationTimestamp"]), now).into()
}

/// How long ago an RFC 3339 time was, or `<unknown>`.
fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => duration::human(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// The count at a path, zero if absent.
fn count(obj: &Value, path: &[&str]) -> Value {
    at(obj, path).as_i64().unwrap_or(0).into()
}

/// `text`, or what stands for none.
fn or(text: &str, none: &str) -> Value {
    if text.is_empty() { none.into() } else { text.into() }
}

/// The names of the containers of a pod spec.
fn container_names(spec: &Value) -> Value {
    joined(spec, "name")
}

/// The images of the containers of a pod spec.
fn container_images(spec: &Value) -> Value {
    joined(spec, "image")
}

fn joined(spec: &Value, key: &str) -> Value {
    let parts: Vec<&str> = list(spec, &["containers"])
        .iter()
        .map(|c| text(c, &[key]))
        .collect();
    parts.join(",").into()
}

/// A plain map of labels as a selector, or `<none>`.
fn map_selector(labels: &Value) -> Value {
    let parts: Vec<String> = entries(labels, &[])
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    or(&parts.join(","), "<none>")
}

/// A `metav1.LabelSelector` in the form of the query parameter.
fn label_selector(selector: &Value) -> Value {
    let Ok(parsed) = LabelSelector::from_value(selector) else {
        return "<error>".into();
    };
    or(&parsed.to_string(), "<none>")
}
