//! Names for the data plane's monitor, from the pods of this node.

use std::sync::Arc;

use orch_dataplane::monitor::{PodName, PodNames};

use crate::pod::{Manager, PodSnapshot};

/// The pods that `manager` runs, for as long as it lives.
#[must_use]
pub fn of_pods(manager: &Arc<Manager>) -> PodNames {
    let manager = Arc::downgrade(manager);
    Box::new(move || {
        let pods = manager
            .upgrade()
            .map(|manager| manager.pods())
            .unwrap_or_default();
        pods.iter().map(name).collect()
    })
}

fn name(snapshot: &PodSnapshot) -> PodName {
    let meta = &snapshot.pod.metadata;
    PodName {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}
