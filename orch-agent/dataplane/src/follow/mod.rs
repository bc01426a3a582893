//! Following the cluster: whatever changed goes through the planner into the maps.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use orch_cluster::Cluster;
use orch_ebpf::{PROTOCOL_UDP, service::ServiceKey};

use crate::{
    DataplaneError,
    model::{self, RemoteNode, SERVICE_NAME_LABEL},
    nodes,
    plan::{Desired, MapOp},
    shared::Shared,
};

/// How long to wait after the kernel has refused a change.
const RETRY: Duration = Duration::from_secs(1);

/// Namespace and name.
type Name = (String, String);

/// What was last written, by what can be compared cheaply.
#[derive(Default)]
struct Written {
    services: HashMap<Name, u64>,
    nodes: Option<Vec<RemoteNode>>,
    finished: bool,
}

/// Keeps the maps true until the task is dropped. Until the caches have held a full list, adopted maps stay as they
/// are: an agent that starts without an API server serves what its predecessor knew.
pub async fn run(shared: Arc<Shared>, cluster: Arc<Cluster>) {
    let mut changed = cluster.changed();
    if cluster.ready().await.is_err() {
        return;
    }
    let mut written = Written::default();
    loop {
        changed.mark_unchanged();
        if let Err(error) = sync(&shared, &cluster, &mut written).await {
            tracing::error!(%error, "the data plane could not be brought up to date, trying again");
            written = Written::default();
            if let Err(error) = restart_planner(&shared) {
                tracing::error!(%error, "the service maps could not be read back");
            }
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn restart_planner(shared: &Shared) -> Result<(), DataplaneError> {
    let mut planner = shared.planner.lock();
    *planner = shared.maps.lock().planner()?;
    Ok(())
}

async fn sync(shared: &Shared, cluster: &Cluster, written: &mut Written) -> Result<(), DataplaneError> {
    sync_services(shared, cluster, written)?;
    let all = cluster.nodes.state();
    let remote = model::remote_nodes(all.iter().map(AsRef::as_ref), &shared.config.node_name);
    if written.nodes.as_ref() != Some(&remote) {
        nodes::sync(shared, &remote).await?;
        written.nodes = Some(remote);
    }
    Ok(())
}

fn sync_services(shared: &Shared, cluster: &Cluster, written: &mut Written) -> Result<(), DataplaneError> {
    let slices = cluster.slices.state();
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in &slices {
        let name = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        if let (Some(namespace), Some(name)) = (slice.metadata.namespace.as_deref(), name) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut present = HashSet::new();
    let services = cluster.services.state();
    for service in &services {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
            continue;
        };
        let mut slices = by_service
            .remove(&(namespace.as_str(), name.as_str()))
            .unwrap_or_default();
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let key = (namespace.clone(), name.clone());
        present.insert(key.clone());
        let print = fingerprint(&service.metadata, &slices);
        if written.services.get(&key) == Some(&print) {
            continue;
        }
        let (desired, refused) = model::service(service, &slices, &shared.config.node_name);
        for reason in refused {
            tracing::warn!(namespace, service = name, reason, "a service port is left out");
        }
        let contested = put(shared, &key, &desired)?;
        written
            .services
            .insert(key, if contested { CONTESTED } else { print });
    }
    let gone: Vec<Name> = written
        .services
        .keys()
        .filter(|key| !present.contains(*key))
        .cloned()
        .collect();
    for key in gone {
        put(shared, &key, &Desired::default())?;
        written.services.remove(&key);
    }
    if !written.finished {
        let mut planner = shared.planner.lock();
        let ops = planner.finish();
        apply(shared, &ops)?;
        written.finished = true;
    }
    shared.services_changed.send_modify(|count| *count += 1);
    Ok(())
}

/// Fingerprint of a service that was refused an address, equal to no other: it is tried again at every change.
const CONTESTED: u64 = 0;

/// Writes one service and says whether another one owns an address that it wants.
fn put(shared: &Shared, (namespace, name): &Name, desired: &Desired) -> Result<bool, DataplaneError> {
    let mut planner = shared.planner.lock();
    let (ops, taken) = planner.update(&format!("{namespace}/{name}"), desired);
    for ServiceKey { address, port, .. } in &taken {
        let address = Ipv4Addr::from(*address);
        tracing::warn!(
            namespace,
            service = name,
            "{address}:{port} belongs to another service"
        );
    }
    apply(shared, &ops)?;
    Ok(!taken.is_empty())
}

/// Writes the changes, and ends the UDP flows of backends that are gone: their clients would talk to nobody.
fn apply(shared: &Shared, ops: &[MapOp]) -> Result<(), DataplaneError> {
    if ops.is_empty() {
        return Ok(());
    }
    let mut maps = shared.maps.lock();
    maps.apply(ops)?;
    let gone: HashSet<u32> = ops
        .iter()
        .filter_map(|op| match op {
            MapOp::RemoveBackend(id, backend) if backend.protocol == PROTOCOL_UDP => Some(*id),
            _ => None,
        })
        .collect();
    if !gone.is_empty() {
        maps.forget_flows(|tuple, entry| tuple.protocol == PROTOCOL_UDP && gone.contains(&entry.backend));
    }
    Ok(())
}

fn fingerprint(
    service: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    slices: &[&EndpointSlice],
) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&service.uid, &service.resource_version).hash(&mut hasher);
    for slice in slices {
        (
            &slice.metadata.uid,
            &slice.metadata.name,
            &slice.metadata.resource_version,
        )
            .hash(&mut hasher);
    }
    hasher.finish() | 1
}
