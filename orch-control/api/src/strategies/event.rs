//! Events: stored as core/v1, served as that and as events.k8s.io/v1.

use serde_json::{Map, Value};

use super::with_fields;
use crate::field::FieldError;
use crate::strategy::Strategy;
use crate::validation::{metadata, other};
use crate::value::object_mut;

/// The fields that the two forms call differently: (core/v1, events.k8s.io/v1).
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Turns an events.k8s.io/v1 Event into the stored form.
pub fn event_to_core(obj: &mut Value) {
    rename(obj, "v1", |core, events| (events, core));
}

/// Turns a stored event into an events.k8s.io/v1 Event.
pub fn event_from_core(obj: &mut Value) {
    rename(obj, "events.k8s.io/v1", |core, events| (core, events));
}

fn rename(
    obj: &mut Value,
    api_version: &str,
    order: fn(&'static str, &'static str) -> (&'static str, &'static str),
) {
    let fields: &mut Map<String, Value> = object_mut(obj);
    fields.insert("apiVersion".to_owned(), api_version.into());
    for (core, events) in RENAMED {
        let (from, to) = order(core, events);
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

/// core/v1 Event.
pub struct Event;

impl Strategy for Event {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::event(obj, "involvedObject")
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        super::both(self.validate(new), metadata::update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        with_fields(
            obj,
            &[
                ("involvedObject.kind", &["involvedObject", "kind"]),
                ("involvedObject.namespace", &["involvedObject", "namespace"]),
                ("involvedObject.name", &["involvedObject", "name"]),
                ("involvedObject.uid", &["involvedObject", "uid"]),
                ("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
                (
                    "involvedObject.resourceVersion",
                    &["involvedObject", "resourceVersion"],
                ),
                ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
                ("reason", &["reason"]),
                ("reportingComponent", &["reportingComponent"]),
                ("source", &["source", "component"]),
                ("type", &["type"]),
            ],
        )
    }
}

/// events.k8s.io/v1 Event.
pub struct EventsV1;

impl Strategy for EventsV1 {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        other::event(obj, "regarding")
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        super::both(self.validate(new), metadata::update(new, old))
    }

    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        with_fields(
            obj,
            &[
                ("regarding.kind", &["regarding", "kind"]),
                ("regarding.namespace", &["regarding", "namespace"]),
                ("regarding.name", &["regarding", "name"]),
                ("regarding.uid", &["regarding", "uid"]),
                ("regarding.apiVersion", &["regarding", "apiVersion"]),
                ("regarding.resourceVersion", &["regarding", "resourceVersion"]),
                ("regarding.fieldPath", &["regarding", "fieldPath"]),
                ("reason", &["reason"]),
                ("reportingController", &["reportingController"]),
                ("type", &["type"]),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_forms_convert_both_ways() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"}, "message": "m",
            "source": {"component": "c"}, "count": 3, "reason": "r", "reportingComponent": "x"});
        let mut obj = core.clone();
        event_from_core(&mut obj);
        assert_eq!(
            obj,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "p"}, "note": "m",
                "deprecatedSource": {"component": "c"}, "deprecatedCount": 3, "reason": "r", "reportingController": "x"})
        );
        event_to_core(&mut obj);
        assert_eq!(obj, core);
    }
}
