//! Node lifecycle: a node that is not heard of any more is said to be so, and tainted until it is back.
//!
//! # Flow
//! A node or its lease changes, or its grace ends → conditions that the node no longer vouches for become Unknown,
//! taints are made to follow from the conditions, and the node's pods lose their Ready condition.
//! # Guarantees
//! Silence is measured by this process's own clock from the last change it saw, so clocks that differ do no harm
//! and a restart gives every node its full grace again.
//! # Assumptions
//! Agents renew their lease every ten seconds or so.
//! # Errors
//! Conflicts with the agent's own writes are tried again with back-off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::{Recorder, Severity, reference};
use orch_shared::pods;
use orch_shared::taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use parking_lot::Mutex;
use serde_json::json;

use super::LEASE_NAMESPACE;
use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive};

/// How long a node may be silent before it is Unknown (Kubernetes' node-monitor-grace-period of old; the brief's).
const GRACE: Duration = Duration::from_secs(40);
/// How long a node that has never reported may take.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// The conditions that become Unknown with the node.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    heard: Mutex<HashMap<String, (Option<MicroTime>, Instant)>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder("node-controller"),
        heard: Mutex::default(),
    });
    let (wake, this) = (queue.clone(), controller.clone());
    context.informers.nodes.subscribe(move |change| {
        if let (Some(node), None) = (change.old, change.new) {
            this.heard.lock().remove(&node.name_any());
        }
        change.new.into_iter().for_each(|node| wake.add(Key::of(&**node)));
    });
    let (wake, this) = (queue.clone(), controller.clone());
    context.informers.leases.subscribe(move |change| {
        // A renewal of a healthy node's lease only has to be remembered; its next check is due anyway.
        if let Some(lease) = change.new {
            let key = Key::new("", lease.name_any());
            let renewed = lease.spec.as_ref().and_then(|s| s.renew_time.clone());
            this.heard
                .lock()
                .insert(key.name.clone(), (renewed, Instant::now()));
            let node = this.informers.nodes.get(&key);
            if node.is_some_and(|n| ready(&n) == "Unknown") {
                wake.add(key);
            }
        }
    });
    drive("nodelifecycle", queue, 2, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

fn of<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == type_)
}

/// The status of the Ready condition; empty if the node never reported.
fn ready(node: &Node) -> &str {
    of(node, "Ready").map(|c| c.status.as_str()).unwrap_or_default()
}

/// The taints that follow from the node's conditions and from its being cordoned.
fn taints_of(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut out = Vec::new();
    match ready(node) {
        "False" => out.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
        "Unknown" => out.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        // One that has not reported yet takes no pods, but those it may have are left alone.
        "" => out.push((NOT_READY, NO_SCHEDULE)),
        _ => {}
    }
    for (condition, taint) in [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ] {
        if of(node, condition).is_some_and(|c| c.status == "True") {
            out.push((taint, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        out.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    out
}

/// The node's taints as they should be; `None` if they are. Taints of others are left as they are.
fn retaint(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    const OURS: [&str; 7] = [
        NOT_READY,
        UNREACHABLE,
        UNSCHEDULABLE,
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/disk-pressure",
        "node.kubernetes.io/pid-pressure",
        "node.kubernetes.io/network-unavailable",
    ];
    let before = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let wanted = taints_of(node);
    let is = |t: &Taint, (key, effect): &(&str, &str)| t.key == *key && t.effect == *effect;
    let mut after = before.clone();
    after.retain(|t| !OURS.contains(&t.key.as_str()) || wanted.iter().any(|w| is(t, w)));
    for want in &wanted {
        if !after.iter().any(|t| is(t, want)) {
            after.push(Taint {
                key: want.0.into(),
                effect: want.1.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (after != before).then_some(after)
}

/// The conditions of a node that has fallen silent; `None` if they say so already.
fn silenced(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let before = conditions.clone();
    for type_ in CONDITIONS {
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (conditions != before).then_some(conditions)
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.nodes.synced().await;
        self.informers.leases.synced().await;
        let Some(node) = self.informers.nodes.get(key) else {
            return Ok(None);
        };
        let lease = self.informers.leases.get(&Key::new(LEASE_NAMESPACE, &key.name));
        let renewed = lease.and_then(|l| l.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let silence = {
            let mut heard = self.heard.lock();
            let last = heard
                .entry(key.name.clone())
                .or_insert_with(|| (renewed, Instant::now()));
            last.1.elapsed()
        };
        let grace = if ready(&node).is_empty() {
            STARTUP_GRACE
        } else {
            GRACE
        };
        let silent = silence >= grace;
        let api: Api<Node> = Api::all(self.client.clone());
        if let Some(conditions) = silent.then(|| silenced(&node, Timestamp::now())).flatten() {
            let patch = json!({
                "metadata": { "resourceVersion": node.resource_version() }, "status": { "conditions": conditions },
            });
            api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .doing_if_there(|| format!("say that node {key} is silent"))?;
            let message = format!("Node {key} status is now: NodeNotReady");
            self.recorder
                .event(reference(&*node), Severity::Normal, "NodeNotReady", message);
            // The change comes back through the watch, and with it the taints.
            return Ok(Some(grace));
        }
        if let Some(taints) = retaint(&node, Timestamp::now()) {
            let patch = json!({
                "metadata": { "resourceVersion": node.resource_version() }, "spec": { "taints": taints },
            });
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .doing_if_there(|| format!("taint node {key}"))?;
        }
        if matches!(ready(&node), "False" | "Unknown") {
            self.mark_pods(&key.name).await?;
        }
        Ok(Some(grace.saturating_sub(silence).max(Duration::from_secs(1))).filter(|_| !silent))
    }

    /// The pods of a node that is not ready answer for no service.
    async fn mark_pods(&self, node: &str) -> Result<(), ReconcileError> {
        self.informers.pods.synced().await;
        let on_node = |p: &&Arc<Pod>| pods::node_name(p) == Some(node) && pods::is_ready(p);
        for pod in self.informers.pods.all().iter().filter(on_node) {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let condition = json!({
                "type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now()),
            });
            let patch = json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [condition] } });
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
                .doing_if_there(|| format!("say that pod {namespace}/{name} is not ready"))?;
            self.recorder.event(
                reference(&**pod),
                Severity::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: serde_json::Value) -> Node {
        let conditions = ready.map(|r| json!([{ "type": "Ready", "status": r }]));
        serde_json::from_value(json!({
            "metadata": { "name": "n" }, "spec": { "taints": taints }, "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let mine = json!([{ "key": "mine", "effect": "NoSchedule" }]);
        let keys = |n: &Node| {
            retaint(n, now).map(|t| {
                t.into_iter()
                    .map(|t| format!("{}:{}", t.key, t.effect))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(keys(&node(Some("True"), mine.clone())), None);
        assert_eq!(
            keys(&node(Some("Unknown"), mine)).unwrap(),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        let back = json!([{ "key": UNREACHABLE, "effect": NO_EXECUTE }, { "key": NOT_READY, "effect": NO_SCHEDULE }]);
        assert_eq!(keys(&node(Some("True"), back)).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn silence_makes_every_condition_unknown_once() {
        let now = Timestamp::UNIX_EPOCH;
        let mut node = node(Some("True"), json!([]));
        let conditions = silenced(&node, now).unwrap();
        assert_eq!(conditions.len(), CONDITIONS.len());
        assert!(conditions.iter().all(|c| c.status == "Unknown"));
        node.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silenced(&node, now), None);
    }
}
