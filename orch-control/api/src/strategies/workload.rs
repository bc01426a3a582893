//! The strategies of the kinds that make pods from a template.

use serde_json::{Value, json};

use super::{both, with_fields};
use crate::defaults;
use crate::field::FieldError;
use crate::strategy::{Strategy, first_generation, keep_status, next_generation, prepare_status_update};
use crate::validation::{metadata, workload};
use crate::value::{at, object_mut};

/// apps/v1 Deployment.
pub struct Deployment;

impl Strategy for Deployment {
    fn default(&self, obj: &mut Value) {
        defaults::deployment(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        object_mut(obj).insert("status".to_owned(), json!({}));
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        next_generation(new, old);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        prepare_status_update(new, old);
        let labels = at(old, &["metadata", "labels"]).clone();
        let metadata = crate::value::metadata_mut(new);
        if labels.is_null() {
            metadata.remove("labels");
        } else {
            metadata.insert("labels".to_owned(), labels);
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        workload::deployment(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(workload::deployment(new), workload::update(new, old))
    }
}

/// apps/v1 ReplicaSet.
pub struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, obj: &mut Value) {
        defaults::replica_set(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        // The Go type always prints the count.
        object_mut(obj).insert("status".to_owned(), json!({"replicas": 0}));
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        next_generation(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        workload::replica_set(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(workload::replica_set(new), workload::update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        with_fields(obj, &[("status.replicas", &["status", "replicas"])])
    }
}

/// core/v1 ReplicationController.
pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, obj: &mut Value) {
        defaults::replication_controller(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        ReplicaSet.prepare_create(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        ReplicaSet.prepare_update(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        workload::replication_controller(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(workload::replication_controller(new), metadata::update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        ReplicaSet.fields(obj)
    }
}
