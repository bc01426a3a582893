//! The allocator, write by write.

use super::*;

fn allocator() -> Arc<Allocator> {
    Allocator::new(&["10.96.0.0/16".parse().unwrap()], &[], 30000..=32767)
}

fn dual() -> Arc<Allocator> {
    let networks = ["10.96.0.0/16", "fd00:10:96::/112"].map(|n| n.parse().unwrap());
    Allocator::new(&networks, &[], 30000..=32767)
}

fn service(kind: &str, ports: Value) -> Value {
    json!({ "metadata": { "name": "s" }, "spec": { "type": kind, "selector": { "a": "b" }, "ports": ports } })
}

/// What a refusal says.
fn words(refusal: Option<Refusal>) -> String {
    match refusal {
        Some(Refusal::Invalid(errors)) => errors[0].to_string(),
        Some(Refusal::Exhausted(why)) => why,
        None => String::new(),
    }
}

#[test]
fn what_fails_or_goes_is_free_again() {
    let allocator = allocator();
    let mut first = service("NodePort", json!([{ "port": 80, "nodePort": 30080 }]));
    drop(allocator.reserve(&mut first, None).unwrap());
    allocator.reserve(&mut first, None).unwrap().keep();
    let mut second = service("NodePort", json!([{ "port": 80, "nodePort": 30080 }]));
    assert_eq!(
        words(allocator.reserve(&mut second, None).err()),
        "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
    );
    let mut third = json!({ "spec": { "clusterIP": first["spec"]["clusterIP"], "ports": [] } });
    let ip = first["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(
        words(allocator.reserve(&mut third, None).err()),
        format!(
            "spec.clusterIPs: Invalid value: [{ip:?}]: failed to allocate IP {ip}: provided IP is already allocated"
        )
    );
    allocator.release(&first);
    second["spec"].as_object_mut().unwrap().remove("clusterIP");
    second["spec"].as_object_mut().unwrap().remove("clusterIPs");
    allocator.reserve(&mut third, None).unwrap().keep();
    allocator.reserve(&mut second, None).unwrap().keep();
}

#[test]
fn ranges_are_kept() {
    let allocator = allocator();
    let mut low = service("NodePort", json!([{ "port": 80, "nodePort": 80 }]));
    assert!(
        words(allocator.reserve(&mut low, None).err())
            .ends_with("provided port is not in the valid range. The range of valid ports is 30000-32767")
    );
    let mut far = json!({ "spec": { "clusterIP": "10.97.0.1" } });
    assert!(words(allocator.reserve(&mut far, None).err()).contains(
        "the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16"
    ));
}

#[test]
fn a_type_change_keeps_the_address_and_drops_the_ports() {
    let allocator = allocator();
    let mut old = service("NodePort", json!([{ "port": 80 }]));
    allocator.reserve(&mut old, None).unwrap().keep();
    let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let mut new = old.clone();
    new["spec"]["type"] = json!("ClusterIP");
    allocator.reserve(&mut new, Some(&old)).unwrap().keep();
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert!(new["spec"]["ports"][0].get("nodePort").is_none());
    let mut other = service("NodePort", json!([{ "port": 80, "nodePort": port }]));
    allocator.reserve(&mut other, None).unwrap().keep();
}

#[test]
fn an_external_name_gives_all_back_and_gets_it_anew() {
    let allocator = dual();
    let mut old = service("ClusterIP", json!([{ "port": 80 }]));
    old["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    allocator.reserve(&mut old, None).unwrap().keep();
    let mut external = old.clone();
    external["spec"]["type"] = json!("ExternalName");
    allocator.reserve(&mut external, Some(&old)).unwrap().keep();
    assert!(external["spec"].get("clusterIPs").is_none());
    let mut other = service("ClusterIP", json!([{ "port": 80 }]));
    for field in ["clusterIP", "clusterIPs"] {
        other["spec"][field] = old["spec"][field].clone();
    }
    other["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    allocator.reserve(&mut other, None).unwrap().keep();
    let mut back = external.clone();
    back["spec"]["type"] = json!("ClusterIP");
    allocator.reserve(&mut back, Some(&external)).unwrap().keep();
    assert!(back["spec"]["clusterIP"].is_string());
    assert_ne!(back["spec"]["clusterIP"], old["spec"]["clusterIP"]);
}

#[test]
fn one_service_may_use_a_port_for_two_protocols_and_another_none() {
    let allocator = allocator();
    let ports =
        json!([{ "port": 53, "protocol": "TCP" }, { "port": 53, "protocol": "UDP", "nodePort": 30053 }]);
    let mut dns = service("NodePort", ports);
    allocator.reserve(&mut dns, None).unwrap().keep();
    assert_eq!(dns["spec"]["ports"][0]["nodePort"], 30053);
    let mut other = service(
        "NodePort",
        json!([{ "port": 53, "protocol": "SCTP", "nodePort": 30053 }]),
    );
    assert!(words(allocator.reserve(&mut other, None).err()).contains("already allocated"));
    // One protocol less: the number is still in use; none left: it is free.
    let mut less = dns.clone();
    less["spec"]["ports"].as_array_mut().unwrap().pop();
    allocator.reserve(&mut less, Some(&dns)).unwrap().keep();
    assert!(allocator.reserve(&mut other, None).is_err());
    allocator.release(&less);
    assert!(allocator.reserve(&mut other, None).is_ok());
}

#[test]
fn a_second_family_is_taken_and_given_back() {
    let allocator = dual();
    let mut single = service("ClusterIP", json!([{ "port": 80 }]));
    allocator.reserve(&mut single, None).unwrap().keep();
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut both = single.clone();
    both["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    drop(allocator.reserve(&mut both.clone(), Some(&single)).unwrap());
    allocator.reserve(&mut both, Some(&single)).unwrap().keep();
    assert_eq!(both["spec"]["clusterIPs"][0], single["spec"]["clusterIP"]);
    let second = both["spec"]["clusterIPs"][1].as_str().unwrap().to_owned();
    assert!(second.starts_with("fd00:10:96::"), "{second}");
    let mut other = json!({ "spec": { "clusterIP": second, "ports": [] } });
    assert!(allocator.reserve(&mut other.clone(), None).is_err());
    let mut again = both.clone();
    again["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    allocator.reserve(&mut again, Some(&both)).unwrap().keep();
    assert_eq!(again["spec"]["clusterIPs"], single["spec"]["clusterIPs"]);
    allocator.reserve(&mut other, None).unwrap().keep();
}

#[test]
fn a_load_balancer_gets_node_ports_if_it_wants_and_a_health_port_if_it_needs() {
    let allocator = allocator();
    let mut plain = service("LoadBalancer", json!([{ "port": 80 }]));
    plain["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    allocator.reserve(&mut plain, None).unwrap().keep();
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    let mut local = plain.clone();
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["healthCheckNodePort"] = json!(30999);
    allocator.reserve(&mut local, Some(&plain)).unwrap().keep();
    let mut other = service("NodePort", json!([{ "port": 80, "nodePort": 30999 }]));
    assert!(allocator.reserve(&mut other.clone(), None).is_err());
    // Silence keeps it, another policy gives it back.
    let mut silent = local.clone();
    silent["spec"]
        .as_object_mut()
        .unwrap()
        .remove("healthCheckNodePort");
    allocator.reserve(&mut silent, Some(&local)).unwrap().keep();
    assert_eq!(silent["spec"]["healthCheckNodePort"], 30999);
    let mut cluster = local.clone();
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    allocator.reserve(&mut cluster, Some(&local)).unwrap().keep();
    assert!(cluster["spec"].get("healthCheckNodePort").is_none());
    allocator.reserve(&mut other, None).unwrap().keep();
}

#[test]
fn headless_has_no_address() {
    let allocator = allocator();
    let mut headless = json!({ "spec": { "clusterIP": "None" } });
    allocator.reserve(&mut headless, None).unwrap().keep();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
}

#[test]
fn what_two_have_by_an_older_mistake_is_free_when_both_are_gone() {
    let allocator = allocator();
    let ports = json!([{ "port": 80, "nodePort": 30080 }]);
    let mut one = service("NodePort", ports);
    one["spec"]["clusterIP"] = json!("10.96.0.9");
    one["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
    allocator.adopt(&one);
    allocator.adopt(&one);
    let mut port = service("NodePort", json!([{ "port": 1, "nodePort": 30080 }]));
    let mut ip = json!({ "spec": { "clusterIP": "10.96.0.9" } });
    allocator.release(&one);
    assert!(allocator.reserve(&mut port.clone(), None).is_err());
    assert!(allocator.reserve(&mut ip.clone(), None).is_err());
    allocator.release(&one);
    allocator.reserve(&mut port, None).unwrap().keep();
    allocator.reserve(&mut ip, None).unwrap().keep();
}
