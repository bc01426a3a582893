//! Taint eviction: pods leave a node whose NoExecute taints they do not tolerate, or no longer.
//!
//! # Flow
//! A pod is bound, or a node's taints change → the pod is deleted now, or when its tolerations run out.
//! # Guarantees
//! The time counts from when the taint was added, so a restart does not lengthen it. A taint that goes away
//! spares the pods it had not driven out yet.
//! # Assumptions
//! Tolerations without seconds are for ever (API: `core/v1.Toleration`).
//! # Errors
//! Failed deletions are tried again with back-off.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::{Recorder, Severity, reference};
use orch_shared::pods;
use orch_shared::taints::{NO_EXECUTE, tolerates};

use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive};

fn evicting(taints: Option<&Vec<Taint>>) -> Vec<Taint> {
    taints
        .into_iter()
        .flatten()
        .filter(|t| t.effect == NO_EXECUTE)
        .cloned()
        .collect()
}

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let wake = queue.clone();
    context.informers.pods.subscribe(move |change| {
        let node = |p: Option<&Arc<Pod>>| p.and_then(|p| pods::node_name(p)).map(str::to_owned);
        if let Some(pod) = change.new.filter(|_| node(change.old) != node(change.new)) {
            wake.add(Key::of(&**pod));
        }
    });
    let (wake, reader) = (queue.clone(), context.informers.clone());
    context.informers.nodes.subscribe(move |change| {
        let taints = |n: Option<&Arc<k8s_openapi::api::core::v1::Node>>| {
            evicting(n.and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_ref()))
        };
        if taints(change.old) == taints(change.new) {
            return;
        }
        let name = change.both().next().map(|n| n.name_any());
        for pod in reader.pods.all() {
            if pods::node_name(&pod) == name.as_deref() {
                wake.add(Key::of(&*pod));
            }
        }
    });
    let (client, informers) = (context.client.clone(), context.informers.clone());
    let recorder = context.recorder("taint-eviction-controller");
    drive("tainteviction", queue, 2, context.token.clone(), move |key| {
        let (client, informers, recorder) = (client.clone(), informers.clone(), recorder.clone());
        async move { reconcile(&client, &informers, &recorder, &key).await }
    });
}

/// When these taints drive a pod with these tolerations out, in seconds since 1970: `None` is never.
fn deadline(taints: &[Taint], tolerations: &[Toleration], now: i64) -> Option<i64> {
    let mut out: Option<i64> = None;
    for taint in taints {
        let added = taint.time_added.as_ref().map_or(now, |t| t.0.as_second());
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        let until = if matching.peek().is_none() {
            Some(added)
        } else {
            let seconds = matching
                .filter_map(|t| t.toleration_seconds)
                .map(|s| s.max(0))
                .min();
            seconds.map(|s| added.saturating_add(s))
        };
        out = out.into_iter().chain(until).min();
    }
    out
}

async fn reconcile(
    client: &Client,
    informers: &Informers,
    recorder: &Recorder,
    key: &Key,
) -> Result<Next, ReconcileError> {
    informers.nodes.synced().await;
    let Some(pod) = informers
        .pods
        .get(key)
        .filter(|p| !pods::is_deleting(&p.metadata))
    else {
        return Ok(None);
    };
    let node = pods::node_name(&pod).and_then(|n| informers.nodes.get(&Key::new("", n)));
    let taints = evicting(
        node.as_ref()
            .and_then(|n| n.spec.as_ref())
            .and_then(|s| s.taints.as_ref()),
    );
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.clone())
        .unwrap_or_default();
    let now = Timestamp::now().as_second();
    let Some(at) = deadline(&taints, &tolerations, now) else {
        return Ok(None);
    };
    if at > now {
        return Ok(Some(Duration::from_secs((at - now) as u64)));
    }
    let message = format!("Marking for deletion Pod {key}");
    recorder.event(
        reference(&*pod),
        Severity::Normal,
        "TaintManagerEviction",
        message,
    );
    let same = Preconditions {
        uid: pod.uid(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(same),
        ..DeleteParams::default()
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    api.delete(&key.name, &params)
        .await
        .doing_if_there(|| format!("evict pod {key}"))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn the_shortest_patience_decides() {
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: NO_EXECUTE.into(),
            value: None,
            time_added: Some(Time(Timestamp::from_second(100).unwrap())),
        };
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let cases: [(&[Taint], &[Toleration], Option<i64>); 6] = [
            (&[], &[], None),
            (&[taint("a")], &[], Some(100)),
            (&[taint("a")], &[toleration("a", None)], None),
            (&[taint("a")], &[toleration("a", Some(300))], Some(400)),
            (
                &[taint("a")],
                &[toleration("a", Some(300)), toleration("a", Some(10))],
                Some(110),
            ),
            (
                &[taint("a"), taint("b")],
                &[toleration("a", Some(300)), toleration("b", None)],
                Some(400),
            ),
        ];
        for (taints, tolerations, expect) in cases {
            assert_eq!(
                deadline(taints, tolerations, 0),
                expect,
                "{taints:?} {tolerations:?}"
            );
        }
    }
}
