//! Delete and deletecollection: at once, with grace, or once the last finalizer is gone.

use jiff::{SignedDuration, Timestamp};
use orch_api::{ApiError, Kind};
use orch_store::{Expect, KeyValue, Revision, StoreError};
use serde_json::{Value, json};

use super::{Call, meta, read, write};
use crate::admission;

/// The finalizer that keeps an object until its dependents are gone.
const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps an object until its dependents have let go of it.
const ORPHAN: &str = "orphan";
/// How often a delete is tried again on the version that came between.
const TRIES: usize = 5;

/// `meta.k8s.io/v1` DeleteOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    grace: Option<i64>,
    propagation: Option<String>,
    orphan: Option<bool>,
    uid: Option<String>,
    revision: Option<String>,
    /// Whether all happens but the delete.
    pub dry_run: bool,
}

impl Options {
    /// From the body, and from parameters where the body says nothing.
    ///
    /// # Errors
    /// When the body is no DeleteOptions.
    pub fn read(call: &Call, body: &Value) -> Result<Self, ApiError> {
        if !body.is_null() && body["kind"].as_str().is_some_and(|kind| kind != "DeleteOptions") {
            return Err(ApiError::bad_request(format!(
                "the body must be DeleteOptions, not {}",
                body["kind"].as_str().unwrap_or_default()
            )));
        }
        let query = |key: &str| call.query.get(key).map(str::to_owned);
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let grace = match (&body["gracePeriodSeconds"], query("gracePeriodSeconds")) {
            (Value::Null, None) => None,
            (Value::Null, Some(text)) => Some(text.parse().map_err(|_| {
                ApiError::bad_request(format!("gracePeriodSeconds: Invalid value: {text:?}: must be an integer"))
            })?),
            (value, _) => Some(value.as_i64().ok_or_else(|| {
                ApiError::bad_request(
                    "json: cannot unmarshal into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
                )
            })?),
        };
        let options = Self {
            grace,
            propagation: text(&body["propagationPolicy"]).or_else(|| query("propagationPolicy")),
            orphan: body["orphanDependents"].as_bool(),
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            dry_run: call.dry_run || body["dryRun"].as_array().is_some_and(|all| !all.is_empty()),
        };
        match options.propagation.as_deref() {
            None | Some("Background" | "Foreground" | "Orphan") => Ok(options),
            Some(other) => Err(ApiError::unprocessable(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            ))),
        }
    }

    /// The finalizer that the propagation policy asks for, if any: the kind's own where neither the options nor the
    /// object's finalizers say which.
    fn finalizer(&self, kind: &Kind, object: &Value) -> Option<&'static str> {
        match (self.propagation.as_deref(), self.orphan) {
            (Some("Foreground"), _) => Some(FOREGROUND),
            (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
            (None, None)
                if orphans(kind)
                    && !meta::finalizers(object)
                        .iter()
                        .any(|f| [FOREGROUND, ORPHAN].contains(f)) =>
            {
                Some(ORPHAN)
            }
            _ => None,
        }
    }
}

/// What a delete came to.
pub enum Outcome {
    /// The object is gone; this was its last state.
    Gone(Value),
    /// It is on its way out, and looks like this.
    Terminating(Value),
}

/// Deletes the call's object.
///
/// # Errors
/// When it is not there, a precondition does not hold, or admission refuses.
pub async fn delete(call: &Call, options: &Options) -> Result<Outcome, ApiError> {
    let key = call.key();
    for _ in 0..TRIES {
        let (kv, _) = call
            .state
            .store
            .get(&key)
            .await
            .map_err(|e| meta::store_error(&e, call.kind, &call.name))?;
        let kv = kv.ok_or_else(|| call.not_found())?;
        let old = meta::decode(&kv)?;
        check_preconditions(call, options, &old)?;
        admission::admit_delete(call, &old)?;
        let mut new = old.clone();
        mark(call.stored(), options, &mut new, Timestamp::now());
        let revision = if is_due(call.stored(), &new) {
            let revision = if options.dry_run {
                Some(kv.mod_revision)
            } else {
                remove(call, &kv, &old).await?
            };
            if let Some(revision) = revision {
                let mut last = old;
                meta::set_revision(&mut last, revision);
                call.kind.from_stored(&mut last);
                return Ok(Outcome::Gone(last));
            }
            None
        } else if options.dry_run || new == old {
            Some(kv.mod_revision)
        } else {
            match call
                .state
                .store
                .put(&key, meta::encode(&new), Expect::At(kv.mod_revision))
                .await
            {
                Ok(revision) => {
                    call.collection.wrote(revision);
                    Some(revision)
                }
                Err(StoreError::Conflict { .. }) => None,
                Err(error) => return Err(meta::store_error(&error, call.kind, &call.name)),
            }
        };
        if let Some(revision) = revision {
            meta::set_revision(&mut new, revision);
            call.kind.from_stored(&mut new);
            return Ok(Outcome::Terminating(new));
        }
    }
    Err(ApiError::modified(call.kind, &call.name))
}

fn check_preconditions(call: &Call, options: &Options, old: &Value) -> Result<(), ApiError> {
    let check = |wanted: &Option<String>, field: &str, word: &str| match wanted {
        Some(wanted) if wanted != meta::text(old, field) => {
            let own = meta::text(old, field);
            let detail = format!(
                "Precondition failed: {word} in precondition: {wanted}, {word} in object meta: {own}"
            );
            Err(ApiError::conflict(call.kind, &call.name, &detail))
        }
        _ => Ok(()),
    };
    check(&options.uid, "uid", "UID")?;
    check(&options.revision, "resourceVersion", "ResourceVersion")
}

/// Marks `object` as on its way out, as `options` say.
fn mark(kind: &Kind, options: &Options, object: &mut Value, now: Timestamp) {
    let grace = grace_seconds(kind, options, object);
    let first = !meta::is_terminating(object);
    let before = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if first || before.is_none_or(|before| grace < before) {
        let since = match (first, before) {
            // Shorter grace counts from when the first delete came.
            (false, Some(before)) => object["metadata"]["deletionTimestamp"]
                .as_str()
                .and_then(|text| text.parse::<Timestamp>().ok())
                .map_or(now, |due| {
                    due.saturating_sub(SignedDuration::from_secs(before))
                        .unwrap_or(now)
                }),
            _ => now,
        };
        let due = since
            .saturating_add(SignedDuration::from_secs(grace))
            .unwrap_or(now);
        let generation = object["metadata"]["generation"].as_i64();
        let metadata = meta::metadata(object);
        metadata.insert("deletionTimestamp".into(), json!(meta::time(due)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if let Some(generation) = generation.filter(|_| first) {
            metadata.insert("generation".into(), json!(generation + 1));
        }
    }
    let wanted = options.finalizer(kind, object);
    if wanted.is_some() || options.propagation.is_some() || options.orphan == Some(false) {
        let others = meta::finalizers(object)
            .into_iter()
            .filter(|finalizer| ![FOREGROUND, ORPHAN].contains(finalizer));
        let finalizers: Vec<String> = others.chain(wanted).map(str::to_owned).collect();
        if finalizers.is_empty() {
            meta::metadata(object).remove("finalizers");
        } else {
            meta::metadata(object).insert("finalizers".into(), json!(finalizers));
        }
    }
    if is_namespace(kind) {
        object["status"]["phase"] = json!("Terminating");
    }
}

/// How long the object may take to stop: only pods that run somewhere need time.
fn grace_seconds(kind: &Kind, options: &Options, object: &Value) -> i64 {
    if (kind.group, kind.plural) != ("", "pods") {
        return 0;
    }
    let bound = object["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || ended {
        return 0;
    }
    let asked = options
        .grace
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    // Negative means "as soon as possible, but not by force".
    if asked < 0 { 1 } else { asked }
}

/// Whether the dependents of a kind stay where nobody says what is to become of them. A ReplicationController's did before
/// servers knew of dependents (`DefaultGarbageCollectionPolicy` of the registry).
fn orphans(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("", "replicationcontrollers")
}

fn is_namespace(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("", "namespaces")
}

/// Whether nothing keeps a terminating object any more.
#[must_use]
pub fn is_due(kind: &Kind, object: &Value) -> bool {
    let waits = object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(0)
        > 0;
    let content = is_namespace(kind)
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
    meta::is_terminating(object) && !waits && !content && meta::finalizers(object).is_empty()
}

/// Removes what is stored at `kv`; `None` when it changed meanwhile.
pub(crate) async fn remove(call: &Call, kv: &KeyValue, old: &Value) -> Result<Option<Revision>, ApiError> {
    match call.state.store.delete(&kv.key, kv.mod_revision).await {
        Ok(revision) => {
            call.collection.wrote(revision);
            admission::deleted(call, old);
            Ok(Some(revision))
        }
        Err(StoreError::Conflict { current: None, .. }) => Err(call.not_found()),
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(meta::store_error(&error, call.kind, &call.name)),
    }
}

/// The Status of a delete after which the object is gone.
#[must_use]
pub fn success(kind: &Kind, object: &Value) -> Value {
    let mut details =
        json!({ "name": meta::text(object, "name"), "kind": kind.plural, "uid": meta::text(object, "uid") });
    if !kind.group.is_empty() {
        details["group"] = json!(kind.group);
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// Deletes everything the call's selectors select; returns what was selected.
///
/// # Errors
/// The first delete that fails for another reason than that somebody else was faster.
pub async fn delete_collection(call: &Call, options: &Options) -> Result<Value, ApiError> {
    let listed = read::select(call).await?;
    let mut items = Vec::with_capacity(listed.len());
    for object in listed {
        let one = Call::internal(
            &call.state,
            std::sync::Arc::clone(&call.user),
            call.kind,
            &object.namespace,
            &object.name,
        )?;
        match delete(&one, options).await {
            Ok(Outcome::Gone(object) | Outcome::Terminating(object)) => items.push(object),
            Err(error) if error.code() == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(json!({
        "kind": call.kind.list_kind,
        "apiVersion": call.kind.api_version(),
        "metadata": { "resourceVersion": call.collection.cache.revision().0.to_string() },
        "items": items,
    }))
}

/// Deletes a pod in the name of an eviction.
///
/// # Errors
/// As [`delete`].
pub async fn evict(call: &Call, eviction: &Value) -> Result<Value, ApiError> {
    let options = Options::read(call, &eviction["deleteOptions"])?;
    delete(call, &options).await?;
    Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }))
}

/// Removes the namespace's own finalizers, as its controller asks once the content is gone.
///
/// # Errors
/// As [`write::modify`].
pub async fn finalize(call: &Call, body: &Value) -> Result<Value, ApiError> {
    let finalizers = body["spec"]["finalizers"].clone();
    let revision = body["metadata"]["resourceVersion"].clone();
    write::modify(call, Some(orch_api::Subresource::Finalize), &mut |old| {
        let mut new = old.clone();
        new["spec"]["finalizers"] = if finalizers.is_array() {
            finalizers.clone()
        } else {
            json!([])
        };
        match &revision {
            Value::String(text) if !text.is_empty() => new["metadata"]["resourceVersion"] = revision.clone(),
            _ => {
                meta::metadata(&mut new).remove("resourceVersion");
            }
        }
        Ok(new)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static Kind {
        Kind::find("", "v1", "pods").unwrap()
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_a_shorter_one_counts_from_the_first() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 } });
        mark(pods(), &Options::default(), &mut pod, now);
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert!(!is_due(pods(), &pod));
        let later = now.saturating_add(SignedDuration::from_secs(5)).unwrap();
        mark(
            pods(),
            &Options {
                grace: Some(10),
                ..Options::default()
            },
            &mut pod,
            later,
        );
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        mark(
            pods(),
            &Options {
                grace: Some(60),
                ..Options::default()
            },
            &mut pod,
            later,
        );
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 10);
        mark(
            pods(),
            &Options {
                grace: Some(0),
                ..Options::default()
            },
            &mut pod,
            later,
        );
        assert!(is_due(pods(), &pod));
    }

    #[test]
    fn an_unbound_pod_goes_at_once_unless_a_finalizer_keeps_it() {
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": {} });
        mark(pods(), &Options::default(), &mut pod, Timestamp::UNIX_EPOCH);
        assert!(is_due(pods(), &pod));
        let mut kept = json!({ "metadata": { "name": "p", "finalizers": ["x/y"] }, "spec": {} });
        let foreground = Options {
            propagation: Some("Foreground".into()),
            ..Options::default()
        };
        mark(pods(), &foreground, &mut kept, Timestamp::UNIX_EPOCH);
        assert_eq!(meta::finalizers(&kept), ["x/y", FOREGROUND]);
        assert!(!is_due(pods(), &kept));
    }

    #[test]
    fn a_replication_controller_leaves_its_pods_unless_somebody_says_otherwise() {
        let kind = Kind::find("", "v1", "replicationcontrollers").unwrap();
        let left = |options: &Options, finalizers: Value| {
            let mut object = json!({ "metadata": { "name": "c", "finalizers": finalizers } });
            mark(kind, options, &mut object, Timestamp::UNIX_EPOCH);
            object["metadata"]["finalizers"].clone()
        };
        let policy = |policy: &str| Options {
            propagation: Some(policy.into()),
            ..Options::default()
        };
        let orphan = |orphan| Options {
            orphan: Some(orphan),
            ..Options::default()
        };
        assert_eq!(left(&Options::default(), json!([])), json!([ORPHAN]));
        assert_eq!(
            left(&Options::default(), json!([FOREGROUND])),
            json!([FOREGROUND])
        );
        assert_eq!(left(&policy("Orphan"), json!([])), json!([ORPHAN]));
        assert_eq!(left(&orphan(true), json!([])), json!([ORPHAN]));
        for options in [policy("Background"), orphan(false)] {
            assert_eq!(left(&options, json!([])), json!(null));
        }
        let mut set = json!({ "metadata": { "name": "s" } });
        let sets = Kind::find("apps", "v1", "replicasets").unwrap();
        mark(sets, &Options::default(), &mut set, Timestamp::UNIX_EPOCH);
        assert_eq!(set["metadata"]["finalizers"], json!(null));
    }
}
