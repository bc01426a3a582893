//! What a load balancer may say of itself in a Service's status.

use std::net::IpAddr;

use serde_json::Value;

use super::{faults, names};
use crate::field::{FieldError, Path};
use crate::service::service_type;
use crate::validation::address::address_fault;
use crate::value::{list, text};

const MODES: [&str; 2] = ["Proxy", "VIP"];

/// `status.loadBalancer`.
pub(super) fn load_balancer(obj: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = list(obj, &["status", "loadBalancer", "ingress"]);
    if service_type(obj) != "LoadBalancer" {
        if !ingress.is_empty() {
            let why = "may only be used when `spec.type` is 'LoadBalancer'";
            errors.push(FieldError::forbidden(&path, why));
        }
        return;
    }
    for (i, one) in ingress.iter().enumerate() {
        let path = path.index(i);
        let (ip, mode, host) = (
            text(one, &["ip"]),
            one["ipMode"].as_str(),
            text(one, &["hostname"]),
        );
        if let Some(fault) = address_fault(ip).filter(|_| !ip.is_empty()) {
            errors.push(FieldError::invalid(&path.child("ip"), ip, fault));
        }
        let mode_path = path.child("ipMode");
        match mode {
            None if !ip.is_empty() => errors.push(FieldError::required(
                &mode_path,
                "must be specified when `ip` is set",
            )),
            Some(_) if ip.is_empty() => errors.push(FieldError::forbidden(
                &mode_path,
                "may not be specified when `ip` is not set",
            )),
            Some(mode) if !MODES.contains(&mode) => {
                errors.push(FieldError::not_supported(&mode_path, mode, &MODES));
            }
            _ => {}
        }
        if !host.is_empty() {
            let path = path.child("hostname");
            faults(&path, host, names::dns_subdomain_faults(host), errors);
            if host.parse::<IpAddr>().is_ok() {
                errors.push(FieldError::invalid(
                    &path,
                    host,
                    "must be a DNS name, not an IP address",
                ));
            }
        }
    }
}
