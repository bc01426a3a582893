//! Names for the data plane's monitor, from the pods of this node.

use std::sync::Arc;

use orch_dataplane::monitor::{PodName, Sources};

use crate::pod::{Manager, PodSnapshot};

/// The pods that `manager` runs, for as long as it lives.
#[must_use]
pub fn of_pods(manager: &Arc<Manager>) -> Sources {
    let manager = Arc::downgrade(manager);
    let pods = move || {
        let pods = manager
            .upgrade()
            .map(|manager| manager.pods())
            .unwrap_or_default();
        pods.iter().map(name).collect()
    };
    Sources {
        pods: Some(Box::new(pods)),
        ..Sources::default()
    }
}

fn name(snapshot: &PodSnapshot) -> PodName {
    let meta = &snapshot.pod.metadata;
    let host_network = snapshot
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    let addresses = snapshot.status.pod_ips.iter().flatten().filter(|_| !host_network);
    PodName {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        addresses: addresses.filter_map(|ip| ip.ip.parse().ok()).collect(),
    }
}
