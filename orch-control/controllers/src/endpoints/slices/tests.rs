//! Slices, change by change.

use super::super::plan::{Place, endpoints};
use super::*;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

fn service() -> Service {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "s" },
        "spec": { "clusterIP": "10.96.0.9", "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] },
    }))
    .unwrap()
}

fn pod(i: usize, ready: bool, port: i32) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "name": format!("p{i}"), "namespace": "ns", "uid": format!("u{i}") },
            "spec": { "nodeName": "n", "containers": [{ "name": "c",
                "ports": [{ "name": "web", "containerPort": port }] }] },
            "status": { "podIP": format!("10.244.{}.{}", i / 250, i % 250 + 1), "phase": "Running",
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
        }))
        .unwrap(),
    )
}

fn made(steps: Steps) -> Vec<Arc<EndpointSlice>> {
    let named = |(i, mut s): (usize, EndpointSlice)| {
        s.metadata.name = Some(format!("web-{i}"));
        s.metadata.uid = Some(format!("slice{i}"));
        Arc::new(s)
    };
    steps.create.into_iter().enumerate().map(named).collect()
}

fn slices_of(pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Steps {
    plan(
        &service(),
        endpoints(&service(), pods, |_| Place::In(Some("z".into()))),
        existing,
        None,
    )
}

#[test]
fn no_pods_means_one_slice_that_says_so_and_stays() {
    let there = made(slices_of(&[], &[]));
    assert_eq!(there.len(), 1);
    let again = slices_of(&[], &there);
    assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
    let first = slices_of(&[pod(1, true, 80)], &there);
    assert_eq!(
        (first.create.len(), first.update.len(), first.delete.len()),
        (1, 0, 1)
    );
}

#[test]
fn one_pod_changes_one_slice() {
    let mut pods: Vec<_> = (0..250).map(|i| pod(i, true, 8080)).collect();
    let there = made(slices_of(&pods, &[]));
    assert_eq!(
        there
            .iter()
            .map(|s| s.endpoints.as_ref().unwrap().len())
            .collect::<Vec<_>>(),
        [100, 100, 50]
    );
    assert_eq!(there[0].ports.as_ref().unwrap()[0].port, Some(8080));
    pods[120] = pod(120, false, 8080);
    let steps = slices_of(&pods, &there);
    assert_eq!(
        (steps.create.len(), steps.update.len(), steps.delete.len()),
        (0, 1, 0)
    );
    assert_eq!(steps.update[0].name_any(), "web-1");
    pods.push(pod(250, true, 8080));
    let steps = slices_of(&pods, &there);
    assert_eq!((steps.create.len(), steps.update.len()), (0, 2));
}

#[test]
fn a_pod_that_is_going_is_terminating_at_once() {
    let mut going = Pod::clone(&pod(1, true, 80));
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        Timestamp::UNIX_EPOCH,
    ));
    let wanted = endpoints(&service(), &[Arc::new(going)], |_| Place::In(None));
    let conditions = wanted[0].endpoint.conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
}

#[test]
fn pods_whose_named_port_differs_get_slices_of_their_own() {
    let there = made(slices_of(&[pod(1, true, 80), pod(2, true, 81)], &[]));
    assert_eq!(there.len(), 2);
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut service = service();
    service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
    let mut pod = Pod::clone(&pod(1, true, 80));
    let ips = json!([{ "ip": "10.244.0.2" }, { "ip": "fd00::2" }]);
    pod.status.as_mut().unwrap().pod_ips = serde_json::from_value(ips).unwrap();
    let pods = [Arc::new(pod)];
    let there = made(plan(
        &service,
        endpoints(&service, &pods, |_| Place::In(None)),
        &[],
        None,
    ));
    let mut said: Vec<_> = there
        .iter()
        .map(|s| {
            (
                s.address_type.as_str(),
                s.endpoints.as_ref().unwrap()[0].addresses[0].as_str(),
            )
        })
        .collect();
    said.sort_unstable();
    assert_eq!(said, [("IPv4", "10.244.0.2"), ("IPv6", "fd00::2")]);
    // The service gives up a family: its slice goes.
    service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into()]);
    let steps = plan(
        &service,
        endpoints(&service, &pods, |_| Place::In(None)),
        &there,
        None,
    );
    assert_eq!((steps.update.len(), steps.create.len()), (0, 0));
    assert_eq!(steps.delete[0].address_type, "IPv4");
}

#[test]
fn a_pod_on_a_node_that_is_gone_is_no_endpoint() {
    let pods = [pod(1, true, 80)];
    assert!(endpoints(&service(), &pods, |_| Place::Nowhere).is_empty());
    let mut service = service();
    service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    assert_eq!(endpoints(&service, &pods, |_| Place::Nowhere).len(), 1);
}

#[test]
fn what_is_written_says_what_caused_it() {
    let at = Some(Timestamp::UNIX_EPOCH);
    let wanted = || endpoints(&service(), &[pod(1, true, 80)], |_| Place::In(None));
    let there = made(plan(&service(), wanted(), &[], at));
    assert_eq!(there[0].annotations()[LAST_CHANGE], "1970-01-01T00:00:00Z");
    // What is right stays as it was; what is written for no known cause says none.
    assert!(plan(&service(), wanted(), &there, at).update.is_empty());
    let not_ready = endpoints(&service(), &[pod(1, false, 80)], |_| Place::In(None));
    let steps = plan(&service(), not_ready, &there, None);
    assert!(steps.update[0].annotations().is_empty());
}

#[test]
fn a_headless_service_without_ports_names_its_pods() {
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "db", "namespace": "ns", "labels": { "tier": "data" } },
        "spec": { "clusterIP": "None", "selector": { "app": "db" }, "publishNotReadyAddresses": true },
    }))
    .unwrap();
    let named = |subdomain: &str| {
        let mut pod = Pod::clone(&pod(1, false, 80));
        let spec = pod.spec.as_mut().unwrap();
        (spec.hostname, spec.subdomain) = (Some("db-0".into()), Some(subdomain.into()));
        Arc::new(pod)
    };
    let slice_of = |pod| {
        let wanted = endpoints(&service, &[pod], |_| Place::In(Some("z".into())));
        made(plan(&service, wanted, &[], None)).remove(0)
    };
    let slice = slice_of(named("db"));
    assert_eq!(slice.ports, Some(Vec::new()));
    assert_eq!(slice.labels()[HEADLESS], "");
    assert_eq!(slice.labels()["tier"], "data");
    let endpoint = &slice.endpoints.as_ref().unwrap()[0];
    let conditions = endpoint.conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(true), Some(false), Some(false))
    );
    assert_eq!(
        (
            endpoint.hostname.as_deref(),
            endpoint.node_name.as_deref(),
            endpoint.zone.as_deref()
        ),
        (Some("db-0"), Some("n"), Some("z"))
    );
    // Another service's name is none of this one's.
    let other = slice_of(named("other"));
    assert_eq!(other.endpoints.as_ref().unwrap()[0].hostname, None);
}

#[test]
fn a_port_is_of_its_protocol() {
    let mut service = service();
    let ports = json!([
        { "name": "s", "port": 9, "protocol": "SCTP", "targetPort": "sig", "appProtocol": "x.io/a" },
        { "name": "t", "port": 9, "protocol": "TCP", "targetPort": "sig" },
    ]);
    service.spec.as_mut().unwrap().ports = serde_json::from_value(ports).unwrap();
    let mut pod = Pod::clone(&pod(1, true, 80));
    let ports = json!([{ "name": "sig", "containerPort": 9000, "protocol": "SCTP" }]);
    pod.spec.as_mut().unwrap().containers[0].ports = serde_json::from_value(ports).unwrap();
    let wanted = endpoints(&service, &[Arc::new(pod)], |_| Place::In(None));
    let slice = made(plan(&service, wanted, &[], None)).remove(0);
    // The pod has no TCP port of that name: the service's second port leads nowhere on it.
    let [port] = &slice.ports.as_ref().unwrap()[..] else {
        panic!("{:?}", slice.ports);
    };
    assert_eq!(
        (
            port.name.as_deref(),
            port.protocol.as_deref(),
            port.port,
            port.app_protocol.as_deref()
        ),
        (Some("s"), Some("SCTP"), Some(9000), Some("x.io/a"))
    );
}
