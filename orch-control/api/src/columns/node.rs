//! Columns of nodes.

use serde_json::Value;

use super::{AGE, Column, NAME, or, string, wide};
use crate::value::{entries, list, text};

/// core/v1 Node.
pub const NODE: &[Column] = &[
    NAME,
    string("Status", "Whether the node is ready.", |o, _| status(o).into()),
    string("Roles", "The roles that labels give the node.", |o, _| roles(o)),
    AGE,
    string("Version", "The agent's version.", |o, _| {
        text(o, &["status", "nodeInfo", "kubeletVersion"]).into()
    }),
    wide("Internal-IP", "The node's address in the cluster.", |o, _| {
        address(o, "InternalIP")
    }),
    wide("External-IP", "The node's address outside.", |o, _| {
        address(o, "ExternalIP")
    }),
    wide("OS-Image", "The operating system.", |o, _| info(o, "osImage")),
    wide("Kernel-Version", "The kernel.", |o, _| info(o, "kernelVersion")),
    wide("Container-Runtime", "What runs the containers.", |o, _| {
        info(o, "containerRuntimeVersion")
    }),
];

fn info(node: &Value, key: &str) -> Value {
    or(text(node, &["status", "nodeInfo", key]), "<unknown>")
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list(node, &["status", "addresses"])
        .iter()
        .find(|a| a["type"] == kind);
    or(found.map_or("", |a| text(a, &["address"])), "<none>")
}

fn status(node: &Value) -> String {
    let ready = list(node, &["status", "conditions"])
        .iter()
        .find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| text(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> Value {
    let mut roles: Vec<&str> = entries(node, &["metadata", "labels"])
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or(&roles.join(","), "<none>")
}
