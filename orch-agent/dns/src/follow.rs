//! Keeps the index true to the caches, one changed object at a time.

use orch_cluster::{Change, Changes, Cluster};

use crate::handler::Handler;

/// Follows the caches for as long as they are fed. Names of the zone are answered from the first full list on.
pub(crate) async fn follow(cluster: &Cluster, handler: &Handler) {
    let mut changes = cluster.changes();
    if cluster.services.wait_until_ready().await.is_ok() && cluster.slices.wait_until_ready().await.is_ok() {
        apply(cluster, handler, &mut changes).await;
    }
    // Nothing feeds the caches any more: what they hold is still the best there is to answer from.
    std::future::pending::<()>().await;
}

async fn apply(cluster: &Cluster, handler: &Handler, changes: &mut Changes) {
    while let Some(change) = changes.next().await {
        match change {
            Change::Service(object) => {
                let service = cluster.services.get(&object);
                let namespace = object.namespace.as_deref().unwrap_or_default();
                handler.update(|index| index.put_service(&object.name, namespace, service));
            }
            Change::Slice(object) => {
                let slice = cluster.slices.get(&object);
                let namespace = object.namespace.as_deref().unwrap_or_default();
                handler.update(|index| index.put_slice(&object.name, namespace, slice));
            }
            Change::Everything => {
                let (services, slices) = (cluster.services.state(), cluster.slices.state());
                handler.update(|index| index.sync(&services, &slices));
            }
        }
    }
}
