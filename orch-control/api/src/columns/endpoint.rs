//! Columns of Endpoints and EndpointSlices.

use serde_json::Value;

use super::{AGE, Column, NAME, or, string};
use crate::value::{list, text};

/// How many addresses or ports a cell names before it says how many more there are.
const SHOWN: usize = 3;

/// core/v1 Endpoints.
pub const ENDPOINTS: &[Column] = &[
    NAME,
    string("Endpoints", "The ready addresses with their ports.", |o, _| {
        endpoints(o).into()
    }),
    AGE,
];

/// discovery.k8s.io/v1 EndpointSlice.
pub const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    string("AddressType", "IPv4, IPv6 or FQDN.", |o, _| {
        text(o, &["addressType"]).into()
    }),
    string("Ports", "The ports of every endpoint.", |o, _| {
        let ports = list(o, &["ports"]).iter();
        let name = |p: &Value| {
            p["port"]
                .as_i64()
                .map_or_else(|| "*".to_owned(), |n| n.to_string())
        };
        if list(o, &["ports"]).is_empty() {
            "<unset>".into()
        } else {
            shortened(ports.map(name).collect()).into()
        }
    }),
    string("Endpoints", "The addresses.", |o, _| {
        let of = |e: &Value| {
            list(e, &["addresses"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let addresses: Vec<String> = list(o, &["endpoints"]).iter().flat_map(of).collect();
        if addresses.is_empty() {
            "<unset>".into()
        } else {
            shortened(addresses).into()
        }
    }),
    AGE,
];

fn shortened(parts: Vec<String>) -> String {
    let more = parts.len().saturating_sub(SHOWN);
    let shown = parts.into_iter().take(SHOWN).collect::<Vec<_>>().join(",");
    if more > 0 {
        format!("{shown} + {more} more...")
    } else {
        shown
    }
}

fn endpoints(obj: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(obj, &["subsets"]) {
        for address in list(subset, &["addresses"]) {
            let ip = text(address, &["ip"]);
            let ports = list(subset, &["ports"]);
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| {
                let port = p["port"].as_i64().unwrap_or(0);
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            }));
        }
    }
    let text = or(&shortened(all), "<none>");
    text.as_str().unwrap_or_default().to_owned()
}
