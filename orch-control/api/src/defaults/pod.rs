//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;
use crate::value::{at, child_mut, entries, list, list_mut, object_mut, set_default};

/// Fills in a PodSpec.
pub(crate) fn pod_spec(spec: &mut Value) {
    let fields = object_mut(spec);
    set_default(fields, "restartPolicy", "Always");
    set_default(fields, "dnsPolicy", "ClusterFirst");
    set_default(fields, "terminationGracePeriodSeconds", 30);
    set_default(fields, "schedulerName", "default-scheduler");
    set_default(fields, "securityContext", json!({}));
    let host_network = fields.get("hostNetwork") == Some(&Value::Bool(true));
    if let Some(account) = fields.get("serviceAccountName").cloned() {
        set_default(fields, "serviceAccount", account);
    } else if let Some(account) = fields.get("serviceAccount").cloned() {
        set_default(fields, "serviceAccountName", account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for each in list_mut(spec, list) {
            container(object_mut(each), host_network, list != "ephemeralContainers");
        }
    }
    for each in list_mut(spec, "volumes") {
        volume(object_mut(each));
    }
    for each in list_mut(spec, "topologySpreadConstraints") {
        let each = object_mut(each);
        set_default(each, "nodeAffinityPolicy", "Honor");
        set_default(each, "nodeTaintsPolicy", "Ignore");
    }
}

/// Fills in a Pod: as a template's spec, and what only a pod itself gets (`SetDefaults_Pod`).
pub(crate) fn pod(obj: &mut Value) {
    pod_spec(object_mut(obj).entry("spec").or_insert(Value::Null));
    let spec = child_mut(obj, "spec");
    set_default(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            requests_from_limits(object_mut(container));
        }
    }
}

/// A container that has a limit and no request of a resource requests its limit.
fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = object_mut(resources.entry("requests").or_insert(Value::Null));
    for (name, limit) in limits {
        set_default(requests, &name, limit);
    }
}

fn container(fields: &mut Map<String, Value>, host_network: bool, has_resources: bool) {
    let image = fields.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if pulls_always(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set_default(fields, "imagePullPolicy", policy);
    set_default(fields, "terminationMessagePath", "/dev/termination-log");
    set_default(fields, "terminationMessagePolicy", "File");
    if has_resources {
        set_default(fields, "resources", json!({}));
    }
    for port in fields
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let port = object_mut(port);
        set_default(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set_default(port, "hostPort", number);
        }
    }
    for env in fields
        .get_mut("env")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let reference = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef"));
        if let Some(Value::Object(reference)) = reference {
            set_default(reference, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = fields.get_mut(name) {
            set_default(probe, "timeoutSeconds", 1);
            set_default(probe, "periodSeconds", 10);
            set_default(probe, "successThreshold", 1);
            set_default(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(Value::Object(lifecycle)) = fields.get_mut("lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(Value::Object(hook)) = lifecycle.get_mut(name) {
                handler(hook);
            }
        }
    }
}

fn handler(fields: &mut Map<String, Value>) {
    if let Some(Value::Object(get)) = fields.get_mut("httpGet") {
        set_default(get, "path", "/");
        set_default(get, "scheme", "HTTP");
    }
    if let Some(Value::Object(grpc)) = fields.get_mut("grpc") {
        set_default(grpc, "service", "");
    }
}

/// Whether an image's tag is `latest`, said or implied; a digest pins it.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// The mode of files in volumes, 0644.
const FILE_MODE: i64 = 0o644;
/// How long a projected token is good for.
const TOKEN_SECONDS: i64 = 3600;

fn volume(fields: &mut Map<String, Value>) {
    // A volume without a source is an emptyDir.
    if fields.keys().all(|k| k == "name") {
        fields.insert("emptyDir".to_owned(), json!({}));
    }
    for (source, value) in fields.iter_mut() {
        let Value::Object(value) = value else { continue };
        match source.as_str() {
            "configMap" | "secret" => set_default(value, "defaultMode", FILE_MODE),
            "downwardAPI" => {
                set_default(value, "defaultMode", FILE_MODE);
                field_refs(value);
            }
            "hostPath" if !value.contains_key("type") => {
                value.insert("type".to_owned(), "".into());
            }
            "projected" => {
                set_default(value, "defaultMode", FILE_MODE);
                for part in value
                    .get_mut("sources")
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    if let Some(Value::Object(token)) = part.get_mut("serviceAccountToken") {
                        set_default(token, "expirationSeconds", TOKEN_SECONDS);
                    }
                    if let Some(Value::Object(downward)) = part.get_mut("downwardAPI") {
                        field_refs(downward);
                    }
                }
            }
            _ => {}
        }
    }
}

fn field_refs(downward: &mut Map<String, Value>) {
    for item in downward
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(Value::Object(reference)) = item.get_mut("fieldRef") {
            set_default(reference, "apiVersion", "v1");
        }
    }
}

/// The quality of service that a pod's requests and limits give it (`ComputePodQOS`).
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = || {
        list(spec, &["containers"])
            .iter()
            .chain(list(spec, &["initContainers"]))
    };
    let amount = |c: &Value, which: &str, name: &str| {
        let text = at(c, &["resources", which, name]).as_str()?;
        Quantity::parse(text).ok().filter(|q| !q.is_zero())
    };
    let counted = ["cpu", "memory"];
    let says_anything = |c: &Value| {
        ["limits", "requests"].iter().any(|which| {
            entries(c, &["resources", which])
                .any(|(n, _)| counted.contains(&n.as_str()) && amount(c, which, n).is_some())
        })
    };
    if !containers().any(says_anything) {
        return "BestEffort";
    }
    let guaranteed = containers().all(|c| {
        counted.iter().all(|name| {
            let limit = amount(c, "limits", name);
            limit.is_some() && amount(c, "requests", name) == limit
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}
