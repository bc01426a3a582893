//! Cluster IPs, families and who may come in: the rules that need no knowledge of the cluster.

use std::net::IpAddr;

use serde_json::Value;

use super::{ONLY_LOAD_BALANCER, faults};
use crate::field::{FieldError, Path};
use crate::service::{Family, families, is_headless, needs_cluster_ip, service_type};
use crate::validation::address::{address_fault, range, range_faults};
use crate::value::{list, text};

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const ONCE: &str = "may not change once set";
/// The annotation that `loadBalancerSourceRanges` had before it was a field.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, by themselves and together.
pub(crate) fn cluster_ips(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !needs_cluster_ip(obj) {
        return errors;
    }
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let ips_path = path.child("clusterIPs");
    let (primary, ips) = (text(spec, &["clusterIP"]), list(spec, &["clusterIPs"]));
    let all = || spec["clusterIPs"].clone();
    match (primary, ips.first()) {
        ("", Some(_)) => {
            let why = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(&ips_path, all(), why));
        }
        ("", None) => {}
        (_, None) => errors.push(FieldError::required(&ips_path, "")),
        (primary, Some(first)) if first != primary => {
            errors.push(FieldError::invalid(
                &ips_path,
                all(),
                "first value must match `clusterIP`",
            ));
        }
        _ => {}
    }
    let mut seen = Vec::new();
    for (i, family) in list(spec, &["ipFamilies"]).iter().enumerate() {
        let path = path.child("ipFamilies").index(i);
        if !family.as_str().is_some_and(|f| FAMILIES.contains(&f)) {
            errors.push(FieldError::not_supported(&path, family.clone(), &FAMILIES));
        }
        if seen.contains(&family) {
            errors.push(FieldError::duplicate(&path, family.clone()));
        }
        seen.push(family);
    }
    super::one_of(
        &path.child("ipFamilyPolicy"),
        &spec["ipFamilyPolicy"],
        &POLICIES,
        false,
        &mut errors,
    );
    let mut parsed: Vec<IpAddr> = Vec::new();
    let mut unreadable = false;
    for (i, ip) in ips.iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if i == 0 && ip == "None" {
            if ips.len() > 1 {
                unreadable = true;
                let why = "'None' must be the first and only value";
                errors.push(FieldError::invalid(&ips_path, all(), why));
            }
            continue;
        }
        match address_fault(ip) {
            Some(fault) => {
                unreadable = true;
                errors.push(FieldError::invalid(&ips_path.index(i), ip, fault));
            }
            None => parsed.extend(ip.parse::<IpAddr>()),
        }
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(
            &ips_path,
            all(),
            "may only hold up to 2 values",
        ));
    }
    // What can't be read would only be said twice by what follows.
    if unreadable {
        return errors;
    }
    if parsed.len() > 1
        && FAMILIES
            .iter()
            .any(|f| !parsed.iter().any(|ip| Family::of(*ip).as_str() == *f))
    {
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(&ips_path, all(), why));
    }
    for (i, (ip, family)) in parsed.iter().zip(families(obj)).enumerate() {
        if Family::of(*ip) != family {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(&ips_path.index(i), ips[i].clone(), why));
        }
    }
    errors
}

/// From one family to two and back is allowed, another first one is not.
pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !needs_cluster_ip(new) || !needs_cluster_ip(old) {
        return errors;
    }
    if !(is_headless(new) && is_headless(old)) {
        list_update(new, old, "clusterIPs", "clusterIP", &mut errors);
    }
    if !is_headless(new) && !is_headless(old) {
        list_update(new, old, "ipFamilies", "ipFamily", &mut errors);
    }
    errors
}

fn list_update(new: &Value, old: &Value, field: &str, singular: &str, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec").child(field);
    let (now, before) = (list(new, &["spec", field]), list(old, &["spec", field]));
    let shown = || new["spec"][field].clone();
    for (i, (now, before)) in now.iter().zip(before).enumerate() {
        if now != before {
            errors.push(FieldError::invalid(&path.index(i), shown(), ONCE));
        }
    }
    if now.is_empty() && !before.is_empty() {
        let why = format!("primary {singular} can not be unset");
        errors.push(FieldError::invalid(&path.index(0), shown(), why));
    }
    if now.len() == 1 && before.len() > 1 && text(new, &["spec", "ipFamilyPolicy"]) != "SingleStack" {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {singular}");
        errors.push(FieldError::invalid(
            &Path::new("spec").child("ipFamilyPolicy"),
            new["spec"]["ipFamilyPolicy"].clone(),
            why,
        ));
    }
}

/// `loadBalancerSourceRanges`, or the annotation that it had before it was a field.
pub(super) fn source_ranges(obj: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let is_balancer = service_type(obj) == "LoadBalancer";
    let ranges = list(obj, &["spec", "loadBalancerSourceRanges"]);
    if !ranges.is_empty() {
        let path = path.child("loadBalancerSourceRanges");
        if !is_balancer {
            errors.push(FieldError::forbidden(&path, ONLY_LOAD_BALANCER));
        }
        for (i, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            faults(&path.index(i), range, range_faults(range), errors);
        }
    } else if let Some(annotation) = obj["metadata"]["annotations"][SOURCE_RANGES].as_str() {
        let path = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !is_balancer {
            errors.push(FieldError::forbidden(&path, ONLY_LOAD_BALANCER));
        }
        let annotation = annotation.trim();
        if !annotation.is_empty() && !annotation.split(',').all(|one| range(one.trim()).is_some()) {
            let why = "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24";
            errors.push(FieldError::invalid(&path, annotation, why));
        }
    }
}
