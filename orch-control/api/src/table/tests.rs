//! Tables, kind by kind.

use super::*;

const NOW: &str = "2026-01-01T12:00:00Z";

/// The cells of `obj`, by heading.
fn cells(plural: &str, obj: Value) -> Map<String, Value> {
    let kind = crate::KINDS.iter().find(|k| k.plural == plural).unwrap();
    let table = render(kind, &[&obj], IncludeObject::Metadata, NOW.parse().unwrap());
    assert_eq!(table["rows"][0]["object"]["metadata"], obj["metadata"]);
    let names = table["columnDefinitions"].as_array().unwrap().iter();
    let cells = table["rows"][0]["cells"].as_array().unwrap().clone();
    names
        .map(|c| c["name"].as_str().unwrap().to_owned())
        .zip(cells)
        .collect()
}

#[track_caller]
fn check(plural: &str, obj: Value, want: &[(&str, Value)]) {
    let got = cells(plural, obj);
    for (name, value) in want {
        assert_eq!(&got[*name], value, "{name} of {got:?}");
    }
}

fn pod(status: Value) -> Value {
    json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T11:55:00Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}, "status": status})
}

#[track_caller]
fn pod_shows(status: Value, ready: &str, word: &str, restarts: &str) {
    check(
        "pods",
        pod(status),
        &[
            ("Ready", json!(ready)),
            ("Status", json!(word)),
            ("Restarts", json!(restarts)),
            ("Age", json!("5m")),
        ],
    );
}

#[test]
fn pods_in_every_state() {
    let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
    let waiting = |reason: &str| {
        json!({"ready": false, "restartCount": 2, "state": {"waiting": {"reason": reason}},
        "lastState": {"terminated": {"finishedAt": "2026-01-01T11:59:00Z"}}})
    };
    let done = |code: i64, reason: &str| json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code, "reason": reason}}});
    pod_shows(json!({"phase": "Pending"}), "0/2", "Pending", "0");
    pod_shows(
        json!({"phase": "Running", "containerStatuses": [running, running]}),
        "2/2",
        "Running",
        "0",
    );
    pod_shows(
        json!({"phase": "Running", "containerStatuses": [running, waiting("CrashLoopBackOff")]}),
        "1/2",
        "CrashLoopBackOff",
        "2 (60s ago)",
    );
    pod_shows(
        json!({"phase": "Succeeded", "containerStatuses": [done(0, "Completed"), done(0, "Completed")]}),
        "0/2",
        "Completed",
        "0",
    );
    pod_shows(
        json!({"phase": "Failed", "containerStatuses": [done(3, ""), running]}),
        "1/2",
        "ExitCode:3",
        "0",
    );
    pod_shows(
        json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}),
        "0/2",
        "Init:0/1",
        "0",
    );
    pod_shows(
        json!({"phase": "Pending", "initContainerStatuses": [waiting("ImagePullBackOff")]}),
        "0/2",
        "Init:ImagePullBackOff",
        "2 (60s ago)",
    );
    pod_shows(
        json!({"phase": "Pending", "initContainerStatuses": [done(1, "Error")]}),
        "0/2",
        "Init:Error",
        "0",
    );
    let mut going = pod(json!({"phase": "Running", "containerStatuses": [running, running]}));
    going["metadata"]["deletionTimestamp"] = json!(NOW);
    check(
        "pods",
        going,
        &[("Status", json!("Terminating")), ("Node", json!("<none>"))],
    );
}

#[test]
fn services_nodes_and_workloads() {
    check(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.2", "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        &[
            ("Port(s)", json!("80:30080/TCP,53/UDP")),
            ("External-IP", json!("<none>")),
            ("Age", json!("<unknown>")),
            ("Selector", json!("a=b")),
        ],
    );
    check(
        "services",
        json!({"spec": {"type": "LoadBalancer"}, "metadata": {}}),
        &[("External-IP", json!("<pending>"))],
    );
    check(
        "nodes",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
        &[
            ("Status", json!("Ready,SchedulingDisabled")),
            ("Roles", json!("control-plane")),
            ("Internal-IP", json!("1.2.3.4")),
        ],
    );
    check(
        "deployments",
        json!({"metadata": {}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"readyReplicas": 2}}),
        &[
            ("Ready", json!("2/3")),
            ("Up-to-date", json!(0)),
            ("Images", json!("i")),
            ("Selector", json!("a=b")),
        ],
    );
}

#[test]
fn events_and_endpoints() {
    check(
        "events",
        json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2026-01-01T11:59:50Z",
            "message": "m\n", "count": 4}),
        &[
            ("Last Seen", json!("10s")),
            ("Object", json!("pod/p")),
            ("Message", json!("m")),
            ("Count", json!("4")),
        ],
    );
    let addresses: Vec<Value> = (1..6).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
    check(
        "endpoints",
        json!({"metadata": {}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
        &[(
            "Endpoints",
            json!("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."),
        )],
    );
}

#[test]
fn networking() {
    check(
        "networkpolicies",
        json!({"metadata": {"name": "n"}, "spec": {"podSelector": {"matchLabels": {"a": "b"}}}}),
        &[("Pod-Selector", json!("a=b"))],
    );
    let rules: Vec<Value> = (1..5).map(|i| json!({"host": format!("h{i}.io")})).collect();
    check(
        "ingresses",
        json!({"metadata": {}, "spec": {"rules": rules, "tls": [{}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "a.io"}]}}}),
        &[
            ("Class", json!("<none>")),
            ("Hosts", json!("h1.io,h2.io,h3.io + 1 more...")),
            ("Address", json!("1.2.3.4,a.io")),
            ("Ports", json!("80, 443")),
        ],
    );
    check(
        "ingressclasses",
        json!({"metadata": {}, "spec": {"controller": "a.io/b", "parameters": {"apiGroup": "x.io", "kind": "K", "name": "n"}}}),
        &[("Parameters", json!("K.x.io/n"))],
    );
    check(
        "ipaddresses",
        json!({"metadata": {}, "spec": {"parentRef": {"group": "", "resource": "services", "namespace": "default", "name": "s"}}}),
        &[("ParentRef", json!("services/default/s"))],
    );
    check(
        "servicecidrs",
        json!({"metadata": {}, "spec": {"cidrs": ["10.0.0.0/16", "fd00::/112"]}}),
        &[("CIDRs", json!("10.0.0.0/16,fd00::/112"))],
    );
}

#[test]
fn every_kind_renders_anything() {
    for kind in crate::KINDS {
        for obj in [
            Value::Null,
            json!({}),
            json!({"metadata": {}, "spec": {}, "status": {}}),
        ] {
            let table = render(kind, &[&obj], IncludeObject::None, NOW.parse().unwrap());
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns);
            assert!(columns > 1, "{kind:?}");
        }
    }
}
