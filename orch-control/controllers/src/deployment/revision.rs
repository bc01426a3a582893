//! Replica sets as versions of a deployment: names, hashes, revisions and the annotations that carry them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use sha2::{Digest, Sha256};

/// The label that tells the pods of one version from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";
/// The version's number; on the deployment, that of the current one.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that the version had before a roll-back to it.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The deployment's replicas when the set was last scaled; a difference means that the deployment was scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge.
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// The deployment's annotations that its replica sets do not get.
const OWN: [&str; 6] = [LAST_APPLIED, REVISION, HISTORY, DESIRED, MAXIMUM, ROLLBACK_TO];

/// The characters of names that cannot spell a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn template(deployment: &Deployment) -> PodTemplateSpec {
    deployment
        .spec
        .as_ref()
        .map(|s| s.template.clone())
        .unwrap_or_default()
}

/// A short name for the template; `collisions` makes it another one if the name is taken.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Field order is fixed by the type and that of maps by their keys, so equal templates give equal bytes.
    let mut digest = Sha256::new();
    digest.update(serde_json::to_vec(template).unwrap_or_default());
    digest.update(collisions.to_be_bytes());
    let bytes = digest.finalize();
    bytes[..10]
        .iter()
        .map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]))
        .collect()
}

fn without_hash(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.remove(HASH_LABEL);
    meta.creation_timestamp = None;
    template
}

/// Whether the set is the version that the deployment's template describes.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let theirs = set
        .spec
        .as_ref()
        .and_then(|s| s.template.clone())
        .unwrap_or_default();
    without_hash(template(deployment)) == without_hash(theirs)
}

/// The set of the current template: the oldest, should there be several.
pub fn current(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let same = sets.iter().filter(|s| same_template(deployment, s));
    same.min_by_key(|s| (s.metadata.creation_timestamp.clone(), s.name_any()))
        .cloned()
}

/// A set's revision; 0 if it has none.
pub fn of(set: &ReplicaSet) -> i64 {
    set.annotations()
        .get(REVISION)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// The reference by which a deployment controls its sets.
pub fn owner_reference(deployment: &Deployment) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        name: deployment.name_any(),
        uid: deployment.metadata.uid.clone()?,
        controller: Some(true),
        block_owner_deletion: Some(true),
    })
}

/// The annotations a current set should have that it lacks or has otherwise: those of the deployment, and the
/// revision if it is to be a higher one.
pub fn annotations(
    deployment: &Deployment,
    set: Option<&ReplicaSet>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> = deployment.annotations().clone();
    out.retain(|key, _| !OWN.contains(&key.as_str()));
    let has = set.map(|s| s.annotations().clone()).unwrap_or_default();
    let old = set.map(of).unwrap_or(0);
    if old < revision {
        out.insert(REVISION.into(), revision.to_string());
        if old > 0 {
            let before = has.get(HISTORY).filter(|h| !h.is_empty());
            out.insert(
                HISTORY.into(),
                before.map_or(old.to_string(), |h| format!("{h},{old}")),
            );
        }
    }
    out.retain(|key, value| has.get(key) != Some(value));
    out
}

/// A new set for the current template.
pub fn new_set(deployment: &Deployment, replicas: i32, maximum: i32, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0);
    let hash = hash(&spec.template, collisions);
    let labelled = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels = labelled(meta.labels.take());
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels = labelled(selector.match_labels.take());
    let mut annotations = annotations(deployment, None, revision);
    annotations.insert(DESIRED.into(), spec.replicas.unwrap_or(1).to_string());
    annotations.insert(MAXIMUM.into(), maximum.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(annotations),
            owner_references: owner_reference(deployment).map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u", "annotations": {
                "note": "x", "deployment.kubernetes.io/revision": "1",
            }},
            "spec": {
                "replicas": 3, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "c", "image": image }] } },
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_new_set_is_found_again_by_its_template() {
        let set = new_set(&deployment("a"), 3, 4, 2);
        assert!(same_template(&deployment("a"), &set));
        assert!(!same_template(&deployment("b"), &set));
        let name = set.name_any();
        let hash = set.labels()[HASH_LABEL].clone();
        assert_eq!(name, format!("web-{hash}"));
        let annotations = set.annotations();
        assert_eq!(
            (annotations["note"].as_str(), annotations[REVISION].as_str()),
            ("x", "2")
        );
        assert_eq!(
            (annotations[DESIRED].as_str(), annotations[MAXIMUM].as_str()),
            ("3", "4")
        );
        let spec = set.spec.unwrap();
        assert_eq!(spec.selector.match_labels.unwrap()[HASH_LABEL], hash);
    }

    #[test]
    fn a_collision_gives_another_hash() {
        let template = template(&deployment("a"));
        assert_ne!(hash(&template, 0), hash(&template, 1));
        assert_eq!(hash(&template, 1), hash(&template, 1));
    }

    #[test]
    fn a_roll_back_keeps_the_old_numbers() {
        let mut set = new_set(&deployment("a"), 0, 4, 1);
        let again = annotations(&deployment("a"), Some(&set), 3);
        assert_eq!((again[REVISION].as_str(), again[HISTORY].as_str()), ("3", "1"));
        set.annotations_mut().extend(again);
        let thrice = annotations(&deployment("a"), Some(&set), 5);
        assert_eq!(thrice[HISTORY], "1,3");
        assert!(annotations(&deployment("a"), Some(&set), 3).is_empty());
    }
}
