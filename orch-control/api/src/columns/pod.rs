//! Columns of pods.

use serde_json::Value;

use super::pod_status::{Summary, summarise};
use super::{AGE, Column, NAME, or, string, wide};
use crate::value::{list, text};

/// core/v1 Pod.
pub const POD: &[Column] = &[
    NAME,
    string("Ready", "Ready containers of all.", |o, now| {
        let Summary { ready, total, .. } = summarise(o, now);
        format!("{ready}/{total}").into()
    }),
    string("Status", "What the pod is doing, or why it is not.", |o, now| {
        summarise(o, now).status.into()
    }),
    string(
        "Restarts",
        "How often containers restarted, and when last.",
        |o, now| summarise(o, now).restarts.into(),
    ),
    AGE,
    wide("IP", "The pod's address.", |o, _| or(ip(o), "<none>")),
    wide("Node", "Where the pod runs.", |o, _| {
        or(text(o, &["spec", "nodeName"]), "<none>")
    }),
    wide(
        "Nominated Node",
        "Where room is being made for the pod.",
        |o, _| or(text(o, &["status", "nominatedNodeName"]), "<none>"),
    ),
    wide(
        "Readiness Gates",
        "Conditions that hold of those that readiness needs.",
        |o, _| gates(o),
    ),
];

fn ip(pod: &Value) -> &str {
    list(pod, &["status", "podIPs"])
        .first()
        .map_or_else(|| text(pod, &["status", "podIP"]), |i| text(i, &["ip"]))
}

fn gates(pod: &Value) -> Value {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let holds = |gate: &&Value| {
        let conditions = list(pod, &["status", "conditions"]);
        conditions
            .iter()
            .any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len()).into()
}
