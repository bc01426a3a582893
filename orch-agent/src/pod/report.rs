//! Writes one pod's status to the API: only changes, the latest only, until the API has it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// First and longest delay between attempts to write.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The writer of one pod's status; ends when dropped.
pub struct Report {
    wanted: watch::Sender<(u64, Arc<PodStatus>)>,
    written: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Report {
    /// Starts the writer; `known` is the status that the API has.
    #[must_use]
    pub fn start(client: Client, pod: &Pod, known: Arc<PodStatus>) -> Self {
        let (wanted, changes) = watch::channel((0, known.clone()));
        let (done, written) = watch::channel(0);
        let meta = &pod.metadata;
        let api = Api::namespaced(client, meta.namespace.as_deref().unwrap_or_default());
        let name = meta.name.clone().unwrap_or_default();
        let uid = meta.uid.clone().unwrap_or_default();
        let task = tokio::spawn(write_all(api, name, uid, known, changes, done));
        Self {
            wanted,
            written,
            task,
        }
    }

    /// Makes `status` the one to be written.
    pub fn set(&self, status: Arc<PodStatus>) {
        self.wanted.send_modify(|(n, s)| {
            *n += 1;
            *s = status;
        });
    }

    /// A future that resolves when the API has the latest status (or no longer has the pod).
    pub fn flushed(&self) -> impl Future<Output = ()> + Send + use<> {
        let number = self.wanted.borrow().0;
        let mut written = self.written.clone();
        async move {
            // An error means that the writer has ended: nothing more will be written.
            let _ = written.wait_for(|n| *n >= number).await;
        }
    }
}

async fn write_all(
    api: Api<Pod>,
    name: String,
    uid: String,
    mut known: Arc<PodStatus>,
    mut wanted: watch::Receiver<(u64, Arc<PodStatus>)>,
    done: watch::Sender<u64>,
) {
    let mut delay = RETRY.0;
    loop {
        let (number, status) = wanted.borrow_and_update().clone();
        if number > *done.borrow() {
            let patch = json!({"metadata": {"uid": uid}, "status": difference(&known, &status)});
            let result = api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match result {
                Ok(_) => {
                    known = status;
                    delay = RETRY.0;
                    done.send_replace(number);
                }
                // The pod is gone, or another one has its name: there is nobody to tell.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    done.send_replace(u64::MAX);
                    return;
                }
                Err(error) => {
                    tracing::warn!(pod = name, %error, "status not written, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                    continue;
                }
            }
        } else if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// A strategic merge patch of the fields of `new` that differ from `old`; a field that is gone becomes null.
///
/// Container statuses are replaced whole and conditions merged by type, as the API's schema has it; addresses are
/// merged by value and therefore replaced explicitly.
fn difference(old: &PodStatus, new: &PodStatus) -> Value {
    let fields = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let mut patch = serde_json::Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        let replaced = matches!(key.as_str(), "podIPs" | "hostIPs") && old.contains_key(key);
        let value = match value {
            Value::Array(list) if replaced => {
                let mut list = list.clone();
                list.push(json!({"$patch": "replace"}));
                Value::Array(list)
            }
            other => other.clone(),
        };
        patch.insert(key.clone(), value);
    }
    for key in OWNED {
        if old.contains_key(key) && !new.contains_key(key) {
            patch.insert(key.to_owned(), Value::Null);
        }
    }
    Value::Object(patch)
}

/// Fields that only the node writes, so that their absence means removal.
const OWNED: [&str; 6] = [
    "reason",
    "message",
    "containerStatuses",
    "initContainerStatuses",
    "podIP",
    "podIPs",
];

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    #[test]
    fn writes_only_what_changed() {
        let old = PodStatus {
            phase: Some("Pending".into()),
            reason: Some("X".into()),
            host_ip: Some("192.0.2.1".into()),
            pod_ips: Some(vec![PodIP {
                ip: "10.0.0.1".into(),
            }]),
            ..Default::default()
        };
        let mut new = old.clone();
        assert_eq!(difference(&old, &new), json!({}));
        new.phase = Some("Running".into());
        new.reason = None;
        new.pod_ips = Some(vec![PodIP {
            ip: "10.0.0.2".into(),
        }]);
        let condition = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            ..Default::default()
        };
        new.conditions = Some(vec![condition]);
        assert_eq!(
            difference(&old, &new),
            json!({"phase": "Running", "reason": null, "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True"}]})
        );
    }
}
