//! Strategic merge patches, case by case.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const POD: &str = "io.k8s.api.core.v1.Pod";

#[track_caller]
fn spec(current: Value, patch: Value, want: Value) {
    let got = apply(POD, &json!({"spec": current}), &json!({"spec": patch})).unwrap();
    assert_eq!(got, json!({"spec": want}));
}

#[test]
fn keyed_lists_merge_by_key() {
    spec(
        json!({"containers": [{"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}]}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "F", "value": "2"}]}, {"name": "c"}]}),
        json!({"containers": [
            {"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
            {"name": "b"}, {"name": "c"}]}),
    );
}

#[test]
fn directives_on_elements_and_lists() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let only = |name: &str| json!({"containers": [{"name": name}]});
    spec(
        two.clone(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        only("b"),
    );
    spec(
        two.clone(),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        only("c"),
    );
    spec(
        json!({"containers": [{"name": "a", "image": "i"}]}),
        json!({"containers": [{"name": "a", "tty": true, "$patch": "merge"}]}),
        json!({"containers": [{"name": "a", "image": "i", "tty": true}]}),
    );
    spec(two, json!({"containers": null}), json!({}));
}

#[test]
fn directives_on_maps() {
    spec(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"runAsUser": 3, "$patch": "replace"}}),
        json!({"securityContext": {"runAsUser": 3}}),
    );
    let selector = json!({"nodeSelector": {"a": "b"}});
    spec(
        selector,
        json!({"nodeSelector": {"$patch": "delete"}}),
        json!({"nodeSelector": {}}),
    );
    let deployment = apply(
        "io.k8s.api.apps.v1.Deployment",
        &json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
        &json!({"spec": {"strategy": {"type": "Recreate", "$retainKeys": ["type"]}}}),
    );
    assert_eq!(
        deployment.unwrap(),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
}

#[test]
fn sets_and_atomic_lists() {
    let merged = apply(
        POD,
        &json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"tolerations": [{"key": "x"}]}}),
        &json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]},
                "spec": {"tolerations": [{"key": "y"}]}}),
    );
    assert_eq!(
        merged.unwrap(),
        json!({"metadata": {"finalizers": ["b", "c"]}, "spec": {"tolerations": [{"key": "y"}]}})
    );
}

#[test]
fn element_order() {
    spec(
        json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
               "containers": [{"name": "c"}]}),
        json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}, {"name": "server"}]}),
    );
    let merged = apply(
        POD,
        &json!({"metadata": {"finalizers": ["a", "b"]}}),
        &json!({"metadata": {"$setElementOrder/finalizers": ["b", "a"]}}),
    );
    assert_eq!(merged.unwrap(), json!({"metadata": {"finalizers": ["b", "a"]}}));
}

#[test]
fn conditions_merge_by_type_and_bad_patches_are_refused() {
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "x"}]}});
    let merged = apply(
        POD,
        &status,
        &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    let want = json!([{"type": "Ready", "status": "True", "reason": "x"}]);
    assert_eq!(merged.unwrap()["status"]["conditions"], want);
    for bad in [
        json!({"spec": {"containers": [{"image": "x"}]}}),
        json!({"spec": {"containers": ["x"]}}),
        json!({"spec": {"$patch": "frobnicate"}}),
        json!({"metadata": {"$setElementOrder/finalizers": "x"}}),
        json!({"metadata": {"$retainKeys": ["name"], "labels": {}}}),
    ] {
        assert_eq!(apply(POD, &status, &bad).unwrap_err().code(), 400, "{bad}");
    }
}

proptest! {
    #[test]
    fn patching_twice_is_patching_once(
        names in prop::collection::btree_set("[a-d]", 0..5),
        more in prop::collection::btree_set("[a-f]", 0..5),
    ) {
        let containers = |names: &std::collections::BTreeSet<String>| {
            let list: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
            json!({"spec": {"containers": list}})
        };
        let patch = containers(&more);
        let once = apply(POD, &containers(&names), &patch).unwrap();
        let twice = apply(POD, &once, &patch).unwrap();
        prop_assert_eq!(once, twice);
    }
}
