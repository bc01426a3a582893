//! ServiceCIDRs: which of them addresses are dealt out of.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::Context;
use crate::core::{Doing, Key, Queue, drive};

/// The range that the API server was started with; Kubernetes' name for it.
const DEFAULT: &str = "kubernetes";
/// Kubernetes' finalizer: the range stays while there are addresses of it. The Service `kubernetes` always has one.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let wake = queue.clone();
    context
        .informers
        .ranges
        .subscribe(move |change| change.new.into_iter().for_each(|r| wake.add(Key::of(&**r))));
    let (client, informers) = (context.client.clone(), context.informers.clone());
    drive("servicecidr", queue, 1, context.token.clone(), move |key| {
        let (client, informers) = (client.clone(), informers.clone());
        async move {
            let Some(range) = informers.ranges.get(&key) else {
                return Ok(None);
            };
            let api: Api<ServiceCIDR> = Api::all(client);
            let terminating = range.metadata.deletion_timestamp.is_some();
            if key.name == DEFAULT && !terminating && !range.finalizers().iter().any(|f| f == FINALIZER) {
                let patch = Patch::Strategic(json!({ "metadata": { "finalizers": [FINALIZER] } }));
                let patched = api.patch(&key.name, &PatchParams::default(), &patch).await;
                patched.doing_if_there(|| format!("protect service cidr {}", key.name))?;
            }
            let wanted = condition(&range, Timestamp::now());
            if says(&range, &wanted) {
                return Ok(None);
            }
            let patch = Patch::Strategic(json!({ "status": { "conditions": [wanted] } }));
            let patched = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
            patched.doing_if_there(|| format!("update the status of service cidr {}", key.name))?;
            Ok(None)
        }
    });
}

/// The condition that the range should have.
fn condition(range: &ServiceCIDR, now: Timestamp) -> Condition {
    let (status, reason, message) = if range.metadata.deletion_timestamp.is_some() {
        (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR",
        )
    } else if range.name_any() == DEFAULT {
        ("True", "NetworkReady", "Kubernetes Service CIDR is ready")
    } else {
        (
            "False",
            "NotSupported",
            "cluster IPs are dealt out of the API server's own range only (--service-cidr, published as the \
             ServiceCIDR \"kubernetes\"): no address is taken from this one",
        )
    };
    Condition {
        type_: READY.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(now),
        observed_generation: None,
    }
}

/// Whether the range says so already.
fn says(range: &ServiceCIDR, wanted: &Condition) -> bool {
    let conditions = range.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| (&c.type_, &c.status, &c.reason) == (&wanted.type_, &wanted.status, &wanted.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, terminating: bool) -> ServiceCIDR {
        let mut value = json!({ "metadata": { "name": name }, "spec": { "cidrs": ["10.0.0.0/24"] } });
        if terminating {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_the_servers_own_range_is_ready() {
        for (name, terminating, status, reason) in [
            ("kubernetes", false, "True", "NetworkReady"),
            ("kubernetes", true, "False", "Terminating"),
            ("more", false, "False", "NotSupported"),
        ] {
            let mut range = range(name, terminating);
            let wanted = condition(&range, Timestamp::UNIX_EPOCH);
            assert_eq!((wanted.status.as_str(), wanted.reason.as_str()), (status, reason));
            assert!(!says(&range, &wanted));
            range.status.get_or_insert_default().conditions = Some(vec![wanted.clone()]);
            assert!(says(&range, &wanted));
        }
    }
}
