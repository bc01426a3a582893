//! What an update keeps that its writer did not name, and loses that its new type has no place for.
//!
//! Clients write back what they know, and old ones know less than the server gave: what was allocated is taken over
//! where the update is silent (`patchAllocatedValues`, `normalizeClusterIPs`). The other way, what was allocated
//! goes with the type that needed it unless the writer changed it, which validation then refuses
//! (`dropTypeDependentFields`).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{needs_cluster_ip, needs_health_check, same, service_type, uses_node_ports};
use crate::value::{child_mut, is_empty, list, list_mut, object_mut, text};

/// Applies both to `new`, about to replace `old` (or to be created). Idempotent.
pub fn carry_over(new: &mut Value, old: Option<&Value>) {
    match old {
        Some(old) => {
            keep_allocations(new, old);
            match_cluster_ips(new, old);
            drop_what_is_not_of_the_type(new, old);
        }
        None => {
            let ip = text(new, &["spec", "clusterIP"]).to_owned();
            if !ip.is_empty() && list(new, &["spec", "clusterIPs"]).is_empty() {
                child_mut(new, "spec").insert("clusterIPs".to_owned(), json!([ip]));
            }
        }
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn keep_allocations(new: &mut Value, old: &Value) {
    let both = |test: fn(&Value) -> bool| test(new) && test(old);
    let (addresses, ports, health) = (
        both(needs_cluster_ip),
        both(uses_node_ports),
        both(needs_health_check),
    );
    if addresses && text(new, &["spec", "clusterIP"]).is_empty() {
        copy(new, old, "clusterIP");
    }
    if addresses && list(new, &["spec", "clusterIPs"]).is_empty() && same(new, old, "clusterIP") {
        copy(new, old, "clusterIPs");
    }
    if ports {
        let mut used: BTreeSet<i64> = list(new, &["spec", "ports"])
            .iter()
            .map(|p| number(&p["nodePort"]))
            .collect();
        let protocol = |port: &Value| match text(port, &["protocol"]) {
            "" => "TCP".to_owned(),
            other => other.to_owned(),
        };
        for port in list_mut(&mut new["spec"], "ports") {
            let twin = list(old, &["spec", "ports"])
                .iter()
                .find(|o| o["port"] == port["port"] && protocol(o) == protocol(port));
            let before = twin.map_or(0, |o| number(&o["nodePort"]));
            if number(&port["nodePort"]) == 0 && before != 0 && used.insert(before) {
                object_mut(port).insert("nodePort".to_owned(), before.into());
            }
        }
    }
    if health && number(&new["spec"]["healthCheckNodePort"]) == 0 {
        copy(new, old, "healthCheckNodePort");
    }
}

/// Brings `clusterIP` and `clusterIPs` in line where a client that knows only one of them changed that one.
fn match_cluster_ips(new: &mut Value, old: &Value) {
    if same(new, old, "clusterIP") || !same(new, old, "clusterIPs") {
        return;
    }
    let ip = text(new, &["spec", "clusterIP"]).to_owned();
    if ip.is_empty() {
        remove(new, "clusterIPs");
    } else {
        child_mut(new, "spec").insert("clusterIPs".to_owned(), json!([ip]));
    }
}

fn drop_what_is_not_of_the_type(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if same(new, old, "clusterIP") && same(new, old, "clusterIPs") {
            remove(new, "clusterIP");
            remove(new, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(new, old, field) {
                remove(new, field);
            }
        }
    }
    if uses_node_ports(old) && !uses_node_ports(new) {
        let ports = |service: &Value| -> BTreeSet<i64> {
            let all = list(service, &["spec", "ports"]).iter();
            all.map(|p| number(&p["nodePort"])).filter(|p| *p != 0).collect()
        };
        if ports(new).is_subset(&ports(old)) {
            for port in list_mut(&mut new["spec"], "ports") {
                object_mut(port).remove("nodePort");
            }
        }
    }
    let was_balancer = service_type(old) == "LoadBalancer" && service_type(new) != "LoadBalancer";
    let gone = [
        (
            "healthCheckNodePort",
            needs_health_check(old) && !needs_health_check(new),
        ),
        ("allocateLoadBalancerNodePorts", was_balancer),
        ("loadBalancerClass", was_balancer),
        (
            "externalTrafficPolicy",
            super::is_externally_accessible(old) && !super::is_externally_accessible(new),
        ),
    ];
    for (field, gone) in gone {
        if gone && same(new, old, field) {
            remove(new, field);
        }
    }
}

fn copy(new: &mut Value, old: &Value, field: &str) {
    let before = &old["spec"][field];
    if !is_empty(before) {
        child_mut(new, "spec").insert(field.to_owned(), before.clone());
    }
}

fn remove(service: &mut Value, field: &str) {
    child_mut(service, "spec").remove(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer() -> Value {
        json!({ "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b",
            "ports": [{ "port": 53, "protocol": "TCP", "nodePort": 30053 },
                      { "port": 53, "protocol": "UDP", "nodePort": 30053 }],
        } })
    }

    #[test]
    fn a_silent_update_keeps_all_that_was_allocated() {
        let old = balancer();
        let mut new = old.clone();
        for field in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
            remove(&mut new, field);
        }
        object_mut(&mut new["spec"]["ports"][1]).remove("nodePort");
        let mut want = old.clone();
        // Another port of the update has the number already: the second is the allocator's to choose.
        object_mut(&mut want["spec"]["ports"][1]).remove("nodePort");
        carry_over(&mut new, Some(&old));
        assert_eq!(new, want);
        object_mut(&mut new["spec"]["ports"][0]).remove("nodePort");
        carry_over(&mut new, Some(&old));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30053);
    }

    #[test]
    fn what_the_new_type_has_no_place_for_goes() {
        let old = balancer();
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        carry_over(&mut new, Some(&old));
        assert_eq!(new["spec"]["clusterIPs"], old["spec"]["clusterIPs"]);
        for field in [
            "healthCheckNodePort",
            "allocateLoadBalancerNodePorts",
            "loadBalancerClass",
            "externalTrafficPolicy",
        ] {
            assert!(new["spec"].get(field).is_none(), "{field}");
        }
        assert_eq!(new["spec"]["ports"][0], json!({ "port": 53, "protocol": "TCP" }));
        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        carry_over(&mut external, Some(&old));
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            assert!(external["spec"].get(field).is_none(), "{field}");
        }
    }

    #[test]
    fn what_the_writer_changed_stays_for_validation_to_refuse() {
        let old = balancer();
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        new["spec"]["ports"][0]["nodePort"] = json!(30054);
        new["spec"]["externalTrafficPolicy"] = json!("Cluster");
        carry_over(&mut new, Some(&old));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30054);
        assert_eq!(new["spec"]["externalTrafficPolicy"], "Cluster");
    }

    #[test]
    fn a_client_that_knows_one_address_changes_both_fields() {
        let old = balancer();
        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.96.0.10");
        carry_over(&mut new, Some(&old));
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.10"]));
        let mut created = json!({ "spec": { "clusterIP": "10.96.0.10" } });
        carry_over(&mut created, None);
        assert_eq!(created["spec"]["clusterIPs"], json!(["10.96.0.10"]));
    }
}
