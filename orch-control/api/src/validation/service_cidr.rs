//! Rules of ServiceCIDRs and IPAddresses.

use ipnet::IpNet;
use serde_json::Value;

use super::{IMMUTABLE, address, faults, immutable, ingress::segment, metadata, names};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

/// networking.k8s.io/v1 IPAddress. Its name is the address.
pub(crate) fn ip_address(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, false, address::canonical_address_faults);
    let path = Path::new("spec").child("parentRef");
    let parent = &obj["spec"]["parentRef"];
    if parent.is_null() {
        errors.push(FieldError::required(&path, ""));
        return errors;
    }
    let group = text(parent, &["group"]);
    if !group.is_empty() {
        faults(
            &path.child("group"),
            group,
            names::dns_subdomain_faults(group),
            &mut errors,
        );
    }
    for (key, required) in [("resource", true), ("name", true), ("namespace", false)] {
        segment(parent, key, required, &path, &mut errors);
    }
    errors
}

/// An update of an IPAddress: whose it is may not change.
pub(crate) fn ip_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let path = Path::new("spec").child("parentRef");
    let (now, before) = (&new["spec"]["parentRef"], &old["spec"]["parentRef"]);
    immutable(&path, now, before, &mut errors);
    errors
}

/// networking.k8s.io/v1 ServiceCIDR.
pub(crate) fn service_cidr(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, false, names::dns_subdomain_faults);
    let path = Path::new("spec").child("cidrs");
    let ranges = list(obj, &["spec", "cidrs"]);
    if ranges.is_empty() {
        errors.push(FieldError::required(&path, "at least one CIDR required"));
    }
    if ranges.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(&path, obj["spec"].clone(), why));
        return errors;
    }
    for (i, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default();
        faults(
            &path.index(i),
            range,
            address::canonical_range_faults(range),
            &mut errors,
        );
    }
    let parsed: Vec<IpNet> = ranges
        .iter()
        .filter_map(|r| address::range(r.as_str().unwrap_or_default()))
        .collect();
    if let [IpNet::V4(_), IpNet::V4(_)] | [IpNet::V6(_), IpNet::V6(_)] = parsed.as_slice() {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(&path, obj["spec"]["cidrs"].clone(), why));
    }
    errors
}

/// An update of a ServiceCIDR: all it may do is to add the second family.
pub(crate) fn service_cidr_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let path = Path::new("spec").child("cidrs");
    let (now, before) = (list(new, &["spec", "cidrs"]), list(old, &["spec", "cidrs"]));
    let grown = before.len() == 1 && now.len() == 2;
    if !grown && now.len() != before.len() {
        errors.push(FieldError::invalid(
            &path,
            new["spec"]["cidrs"].clone(),
            IMMUTABLE,
        ));
        return errors;
    }
    for (i, (now, before)) in now.iter().zip(before).enumerate() {
        immutable(&path.index(i), now, before, &mut errors);
    }
    errors
}
