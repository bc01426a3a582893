//! The defaults that Kubernetes documents, one function a kind. All are idempotent.

mod networking;
mod pod;
mod service;

pub(crate) use networking::{ingress_class, network_policy};
pub(crate) use pod::{pod, pod_spec, qos_class};
pub(crate) use service::service;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::value::{at, child_mut, is_empty, list_mut, metadata_mut, object_mut, set_default, text};

/// apps/v1 Deployment.
pub(crate) fn deployment(obj: &mut Value) {
    let spec = child_mut(obj, "spec");
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    let strategy = object_mut(spec.entry("strategy").or_insert(Value::Null));
    set_default(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = object_mut(strategy.entry("rollingUpdate").or_insert(Value::Null));
        set_default(rolling, "maxUnavailable", "25%");
        set_default(rolling, "maxSurge", "25%");
    }
    template(obj);
}

/// apps/v1 ReplicaSet.
pub(crate) fn replica_set(obj: &mut Value) {
    set_default(child_mut(obj, "spec"), "replicas", 1);
    template(obj);
}

/// core/v1 ReplicationController: without labels of its own it takes its template's, also to select by.
pub(crate) fn replication_controller(obj: &mut Value) {
    set_default(child_mut(obj, "spec"), "replicas", 1);
    let labels = at(obj, &["spec", "template", "metadata", "labels"]).clone();
    if !is_empty(&labels) {
        let spec = child_mut(obj, "spec");
        if spec.get("selector").is_none_or(is_empty) {
            spec.insert("selector".to_owned(), labels.clone());
        }
        let metadata = metadata_mut(obj);
        if metadata.get("labels").is_none_or(is_empty) {
            metadata.insert("labels".to_owned(), labels);
        }
    }
    template(obj);
}

/// The pod template of a workload.
fn template(obj: &mut Value) {
    let template = object_mut(child_mut(obj, "spec").entry("template").or_insert(Value::Null));
    object_mut(template.entry("metadata").or_insert(Value::Null));
    let spec = template.entry("spec").or_insert(Value::Null);
    pod_spec(spec);
}

/// core/v1 Namespace: the phase, and the label that carries the name.
pub(crate) fn namespace(obj: &mut Value) {
    set_default(child_mut(obj, "status"), "phase", "Active");
    let name = text(obj, &["metadata", "name"]).to_owned();
    if !name.is_empty() {
        let labels = object_mut(metadata_mut(obj).entry("labels").or_insert(Value::Null));
        set_default(labels, "kubernetes.io/metadata.name", name);
    }
}

/// core/v1 Secret: the type.
pub(crate) fn secret(obj: &mut Value) {
    set_default(object_mut(obj), "type", "Opaque");
    let Some(Value::Object(plain)) = object_mut(obj).remove("stringData") else {
        return;
    };
    let data = child_mut(obj, "data");
    for (key, value) in plain {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        data.insert(key, Value::String(encoded));
    }
}

/// core/v1 Node: resources that can be handed out are all there are, unless said otherwise, and the pod network is
/// the first of the pod networks.
pub(crate) fn node(obj: &mut Value) {
    let spec = child_mut(obj, "spec");
    let first = spec.get("podCIDRs").and_then(|all| all.get(0)).cloned();
    match (spec.get("podCIDR").filter(|one| !is_empty(one)).cloned(), first) {
        (None, Some(first)) => drop(spec.insert("podCIDR".to_owned(), first)),
        (Some(one), first) if first.as_ref() != Some(&one) => {
            spec.insert("podCIDRs".to_owned(), json!([one]));
        }
        _ => {}
    }
    let capacity = at(obj, &["status", "capacity"]).clone();
    let status = child_mut(obj, "status");
    if !capacity.is_null() {
        set_default(status, "allocatable", capacity);
    }
}

/// core/v1 Endpoints.
pub(crate) fn endpoints(obj: &mut Value) {
    for subset in list_mut(obj, "subsets") {
        for port in list_mut(subset, "ports") {
            set_default(object_mut(port), "protocol", "TCP");
        }
    }
}

/// discovery.k8s.io/v1 EndpointSlice.
pub(crate) fn endpoint_slice(obj: &mut Value) {
    for port in list_mut(obj, "ports") {
        let port = object_mut(port);
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
    // The Go type always prints the list.
    let slice = object_mut(obj);
    if slice.get("endpoints").is_none_or(Value::is_null) {
        slice.insert("endpoints".to_owned(), json!([]));
    }
}

#[cfg(test)]
mod tests {
    use crate::Kind;
    use serde_json::{Value, json};

    /// Checks that `given` becomes at least `want`, and that defaulting again changes nothing.
    #[track_caller]
    fn check(plural: &str, given: Value, want: Value) {
        let kind = crate::KINDS
            .iter()
            .find(|k| k.plural == plural)
            .unwrap_or_else(|| panic!("{plural}"));
        let kind = Kind::find(kind.group, kind.version, plural).unwrap();
        let mut got = given;
        kind.strategy.default(&mut got);
        assert!(covers(&got, &want), "{plural}: got {got:#}\nwant {want:#}");
        let once = got.clone();
        kind.strategy.default(&mut got);
        assert_eq!(got, once);
    }

    fn covers(got: &Value, want: &Value) -> bool {
        match (got, want) {
            (Value::Object(g), Value::Object(w)) => {
                w.iter().all(|(k, w)| g.get(k).is_some_and(|g| covers(g, w)))
            }
            (Value::Array(g), Value::Array(w)) => {
                g.len() == w.len() && g.iter().zip(w).all(|(g, w)| covers(g, w))
            }
            _ => got == want,
        }
    }

    #[test]
    fn pods() {
        check(
            "pods",
            json!({"spec": {"containers": [
                {"name": "a", "image": "x", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
                 "livenessProbe": {"httpGet": {"port": 80}}},
                {"name": "b", "image": "x:1"},
            ]}}),
            json!({"spec": {
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "schedulerName": "default-scheduler", "securityContext": {}, "enableServiceLinks": true,
            "containers": [
                {"imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                 "terminationMessagePolicy": "File", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                 "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                 "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                     "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}},
                {"imagePullPolicy": "IfNotPresent", "resources": {}},
            ]}}),
        );
    }

    #[test]
    fn image_tags() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            (
                "nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "IfNotPresent",
            ),
        ] {
            check(
                "pods",
                json!({"spec": {"containers": [{"image": image}]}}),
                json!({"spec": {"containers": [{"imagePullPolicy": policy}]}}),
            );
        }
    }

    #[test]
    fn others() {
        check(
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}),
            json!({"spec": {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "template": {"spec": {"restartPolicy": "Always"}}}}),
        );
        check(
            "deployments",
            json!({"spec": {"replicas": 0}}),
            json!({"spec": {"replicas": 0}}),
        );
        check(
            "services",
            json!({"spec": {"ports": [{"port": 80}]}}),
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}}),
        );
        check(
            "secrets",
            json!({"stringData": {"a": "b"}}),
            json!({"type": "Opaque", "data": {"a": "Yg=="}}),
        );
        check(
            "namespaces",
            json!({"metadata": {"name": "n"}}),
            json!({"metadata": {"labels": {"kubernetes.io/metadata.name": "n"}}, "status": {"phase": "Active"}}),
        );
    }
}
