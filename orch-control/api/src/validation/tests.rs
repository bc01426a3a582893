//! Validation, case by case: a good object with one thing changed, and what is said about it.

mod networking;

use serde_json::{Value, json};

use crate::Kind;

fn kind(plural: &str) -> &'static Kind {
    crate::KINDS.iter().find(|k| k.plural == plural).unwrap()
}

/// A valid object of a kind, defaulted.
fn good(plural: &str) -> Value {
    let pod = json!({"containers": [{"name": "a", "image": "i"}]});
    let mut obj = match plural {
        "pods" => json!({"spec": pod}),
        "deployments" | "replicasets" => json!({"spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}}),
        "replicationcontrollers" => {
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}})
        }
        "services" => json!({"spec": {"ports": [{"port": 80}]}}),
        "endpointslices" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
        }
        "endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        "events" => json!({"involvedObject": {"namespace": "n"}}),
        "networkpolicies" => json!({"spec": {}}),
        "ingresses" => {
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
        }
        "ingressclasses" => json!({"spec": {"controller": "a.io/b"}}),
        "ipaddresses" => {
            json!({"spec": {"parentRef": {"group": "", "resource": "services", "namespace": "n", "name": "s"}}})
        }
        "servicecidrs" => json!({"spec": {"cidrs": ["10.0.0.0/24"]}}),
        _ => json!({}),
    };
    // An IPAddress's name is the address.
    let name = if plural == "ipaddresses" { "10.0.0.1" } else { "x" };
    obj["metadata"] = json!({"name": name});
    if kind(plural).namespaced {
        obj["metadata"]["namespace"] = json!("n");
    }
    kind(plural).strategy.default(&mut obj);
    obj
}

/// Sets the value at a JSON pointer, making what is missing on the way.
fn set(obj: &mut Value, pointer: &str, value: Value) {
    let mut at = obj;
    for part in pointer.split('/').skip(1).map(|p| p.replace("~1", "/")) {
        at = match part.parse::<usize>() {
            Ok(i) if at.is_array() => {
                let items = at.as_array_mut().unwrap();
                if i == items.len() {
                    items.push(Value::Null);
                }
                &mut items[i]
            }
            _ => &mut at[part],
        };
    }
    *at = value;
}

#[track_caller]
pub(super) fn check(plural: &str, changes: &[(&str, Value)], want: &[&str]) {
    let mut obj = good(plural);
    for (pointer, value) in changes {
        set(&mut obj, pointer, value.clone());
    }
    let got: Vec<String> = kind(plural)
        .strategy
        .validate(&obj)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got.len(), want.len(), "{got:#?}");
    for (got, want) in got.iter().zip(want) {
        assert!(got.starts_with(want), "got  {got}\nwant {want}");
    }
}

#[track_caller]
pub(super) fn check_update(plural: &str, before: &[(&str, Value)], changes: &[(&str, Value)], want: &[&str]) {
    let mut old = good(plural);
    for (pointer, value) in before {
        set(&mut old, pointer, value.clone());
    }
    let mut new = old.clone();
    for (pointer, value) in changes {
        set(&mut new, pointer, value.clone());
    }
    let got: Vec<String> = kind(plural)
        .strategy
        .validate_update(&new, &old)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got.len(), want.len(), "{got:#?}");
    for (got, want) in got.iter().zip(want) {
        assert!(got.starts_with(want), "got  {got}\nwant {want}");
    }
}

#[test]
fn good_objects_pass() {
    for kind in crate::KINDS
        .iter()
        .filter(|k| k.is_stored() && k.group != "events.k8s.io")
    {
        check(kind.plural, &[], &[]);
        check_update(kind.plural, &[], &[], &[]);
    }
}

#[test]
fn hooks_bear_any_shape() {
    for kind in crate::KINDS {
        for odd in [
            json!({}),
            json!([]),
            json!("x"),
            json!({"metadata": [], "spec": "x", "status": 1}),
            Value::Null,
        ] {
            let mut obj = odd.clone();
            let s = kind.strategy;
            s.default(&mut obj);
            s.prepare_create(&mut obj);
            s.prepare_update(&mut obj, &odd);
            s.prepare_status_update(&mut obj, &odd);
            let _ = (s.validate(&obj), s.validate_update(&obj, &odd), s.fields(&obj));
        }
    }
}

#[test]
fn metadata() {
    check(
        "configmaps",
        &[("/metadata/name", json!("A_b"))],
        &[r#"metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must"#],
    );
    check(
        "configmaps",
        &[("/metadata/name", json!(""))],
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(
        "services",
        &[("/metadata/name", json!("a.b"))],
        &[r#"metadata.name: Invalid value: "a.b": a lowercase RFC 1123 label must"#],
    );
    check(
        "configmaps",
        &[("/metadata/labels", json!({"a b": "c"}))],
        &[r#"metadata.labels: Invalid value: "a b": name part must"#],
    );
    check(
        "configmaps",
        &[("/metadata/labels", json!({"a": "-"}))],
        &[r#"metadata.labels[a]: Invalid value: "-""#],
    );
    let huge = "x".repeat(300_000);
    check(
        "configmaps",
        &[("/metadata/annotations", json!({"a": huge}))],
        &["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
    check(
        "nodes",
        &[("/metadata/namespace", json!("n"))],
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
    check_update(
        "configmaps",
        &[],
        &[("/metadata/uid", json!("u"))],
        &[r#"metadata.uid: Invalid value: "u": field is immutable"#],
    );
}

#[test]
fn pods() {
    let c = |field: &str| format!("/spec/containers/0/{field}");
    check(
        "pods",
        &[("/spec/containers", json!([]))],
        &["spec.containers: Required value"],
    );
    check(
        "pods",
        &[(&c("image"), json!(""))],
        &["spec.containers[0].image: Required value"],
    );
    check(
        "pods",
        &[(&c("name"), json!("A"))],
        &[r#"spec.containers[0].name: Invalid value: "A""#],
    );
    let twin = good("pods")["spec"]["containers"][0].clone();
    check(
        "pods",
        &[("/spec/containers/1", twin)],
        &[r#"spec.containers[1].name: Duplicate value: "a""#],
    );
    check(
        "pods",
        &[(&c("imagePullPolicy"), json!("x"))],
        &[
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "x": supported values: "Always", "IfNotPresent", "Never""#,
        ],
    );
    check(
        "pods",
        &[(&c("ports"), json!([{"containerPort": 70000, "protocol": "TCP"}]))],
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
    check(
        "pods",
        &[(&c("env"), json!([{"name": "a=b"}]))],
        &[r#"spec.containers[0].env[0].name: Invalid value: "a=b""#],
    );
    check(
        "pods",
        &[(&c("volumeMounts"), json!([{"name": "v", "mountPath": "/v"}]))],
        &[r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#],
    );
    check(
        "pods",
        &[(
            &c("resources"),
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
        )],
        &[
            r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        ],
    );
    check(
        "pods",
        &[(&c("livenessProbe"), json!({"httpGet": {"path": "/", "port": 0}}))],
        &["spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0"],
    );
    check(
        "pods",
        &[(&c("livenessProbe"), json!({}))],
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        "pods",
        &[("/spec/restartPolicy", json!("Sometimes"))],
        &[r#"spec.restartPolicy: Unsupported value: "Sometimes""#],
    );
    check(
        "pods",
        &[(
            "/spec/volumes",
            json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
        )],
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        "pods",
        &[("/spec/tolerations", json!([{"operator": "Equal"}]))],
        &["spec.tolerations[0].operator: Invalid value"],
    );
}

#[test]
fn pod_updates() {
    check_update("pods", &[], &[("/spec/containers/0/image", json!("j"))], &[]);
    check_update(
        "pods",
        &[],
        &[("/spec/tolerations", json!([{"key": "k", "operator": "Exists"}]))],
        &[],
    );
    check_update(
        "pods",
        &[],
        &[("/spec/containers/0/command", json!(["x"]))],
        &["spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"],
    );
    check_update(
        "pods",
        &[],
        &[("/spec/containers/1", json!({"name": "b", "image": "i"}))],
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    check_update(
        "pods",
        &[("/spec/activeDeadlineSeconds", json!(5))],
        &[("/spec/activeDeadlineSeconds", json!(9))],
        &["spec.activeDeadlineSeconds: Invalid value: 9: must be less than or equal to previous value 5"],
    );
}

#[test]
fn workloads() {
    check(
        "deployments",
        &[("/spec/selector/matchLabels", json!({"a": "c"}))],
        &[
            r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#,
        ],
    );
    check(
        "deployments",
        &[("/spec/selector", Value::Null)],
        &["spec.selector: Required value"],
    );
    check(
        "deployments",
        &[("/spec/replicas", json!(-1))],
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check(
        "replicasets",
        &[("/spec/template/spec/restartPolicy", json!("Never"))],
        &[r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#],
    );
    check(
        "deployments",
        &[(
            "/spec/strategy/rollingUpdate",
            json!({"maxSurge": 0, "maxUnavailable": 0}),
        )],
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
    );
    check(
        "deployments",
        &[("/spec/strategy/rollingUpdate/maxSurge", json!("a"))],
        &[r#"spec.strategy.rollingUpdate.maxSurge: Invalid value: "a": a valid percent"#],
    );
    check_update(
        "deployments",
        &[],
        &[
            ("/spec/selector/matchLabels", json!({"a": "c"})),
            ("/spec/template/metadata/labels", json!({"a": "c"})),
        ],
        &[r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#],
    );
}

#[test]
fn replication_controllers() {
    let controller = good("replicationcontrollers");
    assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
    assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(controller["spec"]["replicas"], 1);
    check(
        "replicationcontrollers",
        &[("/spec/selector", json!({"a": "c"}))],
        &[r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match"#],
    );
    check(
        "replicationcontrollers",
        &[("/spec/selector", json!({})), ("/spec/replicas", json!(-1))],
        &[
            "spec.selector: Required value",
            "spec.replicas: Invalid value: -1",
        ],
    );
    // Unlike a ReplicaSet's, its selector may change.
    let labels = json!({"a": "b", "c": "d"});
    check_update(
        "replicationcontrollers",
        &[],
        &[
            ("/spec/selector", labels.clone()),
            ("/spec/template/metadata/labels", labels),
        ],
        &[],
    );
}

#[test]
fn the_others() {
    check(
        "configmaps",
        &[("/data", json!({"a/b": "c"}))],
        &[r#"data[a/b]: Invalid value: "a/b": a valid config key"#],
    );
    check_update(
        "configmaps",
        &[("/immutable", json!(true))],
        &[("/data", json!({"a": "b"}))],
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    check(
        "secrets",
        &[("/type", json!("kubernetes.io/tls"))],
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    check_update(
        "secrets",
        &[],
        &[("/type", json!("x"))],
        &[r#"type: Invalid value: "x": field is immutable"#],
    );
    check(
        "endpointslices",
        &[("/endpoints/0/addresses/0", json!("::1"))],
        &[r#"endpoints[0].addresses[0]: Invalid value: "::1": must be an IPv4 address"#],
    );
    let zones: Vec<Value> = (0..9).map(|i| json!({"name": format!("z{}", i % 8)})).collect();
    check(
        "endpointslices",
        &[
            (
                "/endpoints/0/hints",
                json!({"forZones": zones, "forNodes": [{"name": "N"}]}),
            ),
            ("/endpoints/0/hostname", json!("a.b")),
            ("/ports/0/port", json!(0)),
        ],
        &[
            r#"endpoints[0].hostname: Invalid value: "a.b": a lowercase RFC 1123 label"#,
            "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items",
            r#"endpoints[0].hints.forZones[8].name: Duplicate value: "z0""#,
            r#"endpoints[0].hints.forNodes[0].name: Invalid value: "N": a lowercase RFC 1123 subdomain"#,
            "ports[0].port: Invalid value: 0: must be between 1 and 65535",
        ],
    );
    check(
        "events",
        &[("/involvedObject/namespace", json!("m"))],
        &[r#"involvedObject.namespace: Invalid value: "m": does not match event.namespace"#],
    );
    check(
        "leases",
        &[("/spec/leaseDurationSeconds", json!(0))],
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
    check(
        "nodes",
        &[("/spec/taints", json!([{"key": "k", "effect": "x"}]))],
        &[r#"spec.taints[0].effect: Unsupported value: "x""#],
    );
    check_update(
        "nodes",
        &[("/spec/podCIDRs", json!(["10.0.0.0/24"]))],
        &[("/spec/podCIDRs", json!(["10.0.1.0/24"]))],
        &["spec.podCIDRs: Forbidden: node updates may not change podCIDR"],
    );
}
