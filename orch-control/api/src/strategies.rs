//! The strategies of the built-in kinds: which defaults, preparations and validations each one runs.

mod event;
mod networking;
mod workload;

pub use event::{Event, EventsV1, event_from_core, event_to_core};
pub use networking::{Ingress, IngressClass, IpAddress, NetworkPolicy, ServiceCidr};
pub use workload::{Deployment, ReplicaSet, ReplicationController};

use serde_json::{Value, json};

use crate::defaults;
use crate::field::FieldError;
use crate::selector::metadata_fields;
use crate::strategy::{Strategy, first_generation, keep_status, next_generation};
use crate::validation::{endpoint_slice, metadata, other, pod_update, service};
use crate::value::{at, child_mut, object_mut, text};

/// The faults of `new` by itself and of the change from `old`.
fn both(mut own: Vec<FieldError>, change: Vec<FieldError>) -> Vec<FieldError> {
    own.extend(change);
    own
}

/// The metadata fields and some more, each with the path of its value.
fn with_fields(obj: &Value, more: &[(&'static str, &[&str])]) -> Vec<(&'static str, String)> {
    let mut fields = metadata_fields(obj);
    fields.extend(more.iter().map(|(name, path)| {
        let value = match at(obj, path) {
            Value::String(s) => s.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        (*name, value)
    }));
    fields
}

/// core/v1 ConfigMap.
pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::config_map(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::config_map(new), other::config_map_update(new, old))
    }
}

/// core/v1 Secret.
pub struct Secret;

impl Strategy for Secret {
    fn default(&self, obj: &mut Value) {
        defaults::secret(obj);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::secret(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::secret(new), other::secret_update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        with_fields(obj, &[("type", &["type"])])
    }
}

/// core/v1 ServiceAccount.
pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::service_account(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::service_account(new), metadata::update(new, old))
    }
}

/// core/v1 Namespace. A new one gets the `kubernetes` finalizer, which the finalize subresource takes off.
pub struct Namespace;

impl Strategy for Namespace {
    fn default(&self, obj: &mut Value) {
        defaults::namespace(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        object_mut(obj).insert("status".to_owned(), json!({"phase": "Active"}));
        let finalizers = child_mut(obj, "spec").entry("finalizers").or_insert(Value::Null);
        match finalizers {
            Value::Array(list) if list.iter().any(|f| f == "kubernetes") => {}
            Value::Array(list) => list.push(json!("kubernetes")),
            other => *other = json!(["kubernetes"]),
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        let finalizers = at(old, &["spec", "finalizers"]).clone();
        if finalizers.is_null() {
            child_mut(new, "spec").remove("finalizers");
        } else {
            child_mut(new, "spec").insert("finalizers".to_owned(), finalizers);
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::namespace(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::namespace(new), metadata::update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        let mut fields = with_fields(obj, &[("status.phase", &["status", "phase"])]);
        fields.push(("name", text(obj, &["metadata", "name"]).to_owned()));
        fields
    }
}

/// core/v1 Node. Its status may be given on create, as the kubelet does.
pub struct Node;

impl Strategy for Node {
    fn default(&self, obj: &mut Value) {
        defaults::node(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::node(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::node(new), other::node_update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        let mut fields = metadata_fields(obj);
        fields.push((
            "spec.unschedulable",
            (obj["spec"]["unschedulable"] == true).to_string(),
        ));
        fields
    }
}

/// core/v1 Pod.
pub struct Pod;

impl Strategy for Pod {
    fn default(&self, obj: &mut Value) {
        defaults::pod(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        let class = defaults::qos_class(&obj["spec"]);
        object_mut(obj).insert(
            "status".to_owned(),
            json!({"phase": "Pending", "qosClass": class}),
        );
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        next_generation(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        crate::validation::pod::pod(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = both(self.validate(new), metadata::update(new, old));
        errors.extend(pod_update::spec(new, old));
        errors
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        let mut fields = with_fields(
            obj,
            &[
                ("spec.nodeName", &["spec", "nodeName"]),
                ("spec.restartPolicy", &["spec", "restartPolicy"]),
                ("spec.schedulerName", &["spec", "schedulerName"]),
                ("spec.serviceAccountName", &["spec", "serviceAccountName"]),
                ("status.phase", &["status", "phase"]),
                ("status.podIP", &["status", "podIP"]),
                ("status.nominatedNodeName", &["status", "nominatedNodeName"]),
            ],
        );
        fields.push((
            "spec.hostNetwork",
            (obj["spec"]["hostNetwork"] == true).to_string(),
        ));
        fields
    }
}

/// core/v1 Service.
pub struct Service;

impl Strategy for Service {
    fn default(&self, obj: &mut Value) {
        defaults::service(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        object_mut(obj).insert("status".to_owned(), json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        crate::service::carry_over(new, Some(old));
        if crate::service::service_type(new) != "LoadBalancer" && !at(new, &["status"]).is_null() {
            child_mut(new, "status").insert("loadBalancer".to_owned(), json!({}));
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        service::service(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        service::service_update(new, old)
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        with_fields(
            obj,
            &[
                ("spec.clusterIP", &["spec", "clusterIP"]),
                ("spec.type", &["spec", "type"]),
            ],
        )
    }
}

/// core/v1 Endpoints.
pub struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, obj: &mut Value) {
        defaults::endpoints(obj);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::endpoints(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::endpoints(new), metadata::update(new, old))
    }
}

/// discovery.k8s.io/v1 EndpointSlice.
pub struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn default(&self, obj: &mut Value) {
        defaults::endpoint_slice(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let content = |o: &Value| {
            (
                o["endpoints"].clone(),
                o["ports"].clone(),
                o["metadata"]["labels"].clone(),
            )
        };
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
        let generation = if content(new) == content(old) {
            generation
        } else {
            generation + 1
        };
        crate::value::metadata_mut(new).insert("generation".to_owned(), generation.into());
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        endpoint_slice::endpoint_slice(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(self.validate(new), endpoint_slice::update(new, old))
    }
}

/// coordination.k8s.io/v1 Lease.
pub struct Lease;

impl Strategy for Lease {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::lease(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(other::lease(new), metadata::update(new, old))
    }
}

/// Kinds that are answered and not kept: who answers checks their spec.
pub struct Review;

impl Strategy for Review {
    fn validate(&self, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
