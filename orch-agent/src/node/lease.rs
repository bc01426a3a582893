//! The heartbeat: a Lease in `kube-node-lease`, renewed every 10 s (KEP-589).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// How often a lease is renewed: a quarter of its duration, as Kubernetes does.
const RENEW: Duration = Duration::from_secs(10);
/// How long a lease lasts, in seconds.
const DURATION: i32 = 40;
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Renews the node's lease for ever.
pub(super) async fn keep(client: Client, node: Node) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let renewed = tokio::time::timeout(ATTEMPT, renew(&leases, &name, &node)).await;
        let pause = match renewed {
            Ok(Ok(())) => RENEW,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot renew the node's lease, retrying");
                RETRY
            }
            Err(_) => {
                tracing::warn!("the API server did not answer the renewal of the node's lease, retrying");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(leases: &Api<Lease>, name: &str, node: &Node) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    // Only this agent writes the lease, so there is nothing that a blind patch could overwrite.
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": name, "leaseDurationSeconds": DURATION}});
    match leases
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(drop)
}
