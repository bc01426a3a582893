//! Columns of networking.k8s.io.

use serde_json::Value;

use super::{AGE, Column, NAME, label_selector, or, string};
use crate::value::{list, text};

/// How many hosts a cell names before it says how many more there are.
const SHOWN: usize = 3;

/// networking.k8s.io/v1 NetworkPolicy.
pub const NETWORK_POLICY: &[Column] = &[
    NAME,
    string("Pod-Selector", "The pods that it applies to.", |o, _| {
        label_selector(&o["spec"]["podSelector"])
    }),
    AGE,
];

/// networking.k8s.io/v1 Ingress.
pub const INGRESS: &[Column] = &[
    NAME,
    string("Class", "The class that serves it.", |o, _| {
        or(text(o, &["spec", "ingressClassName"]), "<none>")
    }),
    string("Hosts", "The hosts that it is for.", |o, _| hosts(o).into()),
    string("Address", "Where it is served.", |o, _| addresses(o).into()),
    string("Ports", "The ports that it is served at.", |o, _| {
        let plain = list(o, &["spec", "tls"]).is_empty();
        if plain { "80".into() } else { "80, 443".into() }
    }),
    AGE,
];

/// networking.k8s.io/v1 IngressClass.
pub const INGRESS_CLASS: &[Column] = &[
    NAME,
    string("Controller", "Who serves ingresses of the class.", |o, _| {
        text(o, &["spec", "controller"]).into()
    }),
    string("Parameters", "The object with more settings.", |o, _| {
        let parameters = &o["spec"]["parameters"];
        if parameters.is_null() {
            return "<none>".into();
        }
        let group = text(parameters, &["apiGroup"]);
        let dot = if group.is_empty() { "" } else { "." };
        let (kind, name) = (text(parameters, &["kind"]), text(parameters, &["name"]));
        format!("{kind}{dot}{group}/{name}").into()
    }),
    AGE,
];

/// networking.k8s.io/v1 IPAddress.
pub const IP_ADDRESS: &[Column] = &[
    NAME,
    string("ParentRef", "The object that has the address.", |o, _| {
        parent(&o["spec"]["parentRef"])
    }),
    AGE,
];

/// networking.k8s.io/v1 ServiceCIDR.
pub const SERVICE_CIDR: &[Column] = &[
    NAME,
    string("CIDRs", "The ranges of addresses.", |o, _| {
        let ranges: Vec<&str> = list(o, &["spec", "cidrs"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        ranges.join(",").into()
    }),
    AGE,
];

fn hosts(ingress: &Value) -> String {
    let all: Vec<&str> = list(ingress, &["spec", "rules"])
        .iter()
        .map(|r| text(r, &["host"]))
        .filter(|host| !host.is_empty())
        .collect();
    let shown = all.iter().take(SHOWN).copied().collect::<Vec<_>>().join(",");
    match all.len() {
        0 => "*".to_owned(),
        n if n > SHOWN => format!("{shown} + {} more...", n - SHOWN),
        _ => shown,
    }
}

fn addresses(ingress: &Value) -> String {
    let all: Vec<&str> = list(ingress, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|point| match text(point, &["ip"]) {
            "" => text(point, &["hostname"]),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    all.join(",")
}

/// `RESOURCE[.GROUP]/[NAMESPACE/]NAME`.
fn parent(reference: &Value) -> Value {
    if reference.is_null() {
        return "<none>".into();
    }
    let part = |key: &str| text(reference, &[key]);
    let dot = if part("group").is_empty() { "" } else { "." };
    let slash = if part("namespace").is_empty() { "" } else { "/" };
    format!(
        "{}{dot}{}/{}{slash}{}",
        part("resource"),
        part("group"),
        part("namespace"),
        part("name")
    )
    .into()
}
