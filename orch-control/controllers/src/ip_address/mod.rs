//! IPAddress and ServiceCIDR: the cluster IPs that are taken and the ranges they come from, as objects.
//!
//! # Flow
//! A service or an IPAddress changes → the address in question has an IPAddress that names its service, or none.
//! A ServiceCIDR changes → its condition says whether addresses are dealt out of it.
//! # Guarantees
//! Only IPAddresses marked as Kubernetes' allocator marks its own are changed or deleted; others' stay.
//! # Assumptions
//! The API server deals out addresses itself, from memory and from its own range, which it publishes as the
//! ServiceCIDR `kubernetes`; these objects follow what it dealt, a moment later.
//! # Errors
//! A failed write is tried again with back-off. Somebody else's IPAddress for a cluster IP is told in the log and
//! left alone.

mod owners;
mod ranges;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tracing::warn;

use self::owners::Owners;
use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive, is};

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Kubernetes' name for what makes IPAddresses of cluster IPs.
const ALLOCATOR: &str = "ipallocator.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Starts both controllers.
pub fn start(context: &Context) {
    ranges::start(context);
    let queue = Arc::new(Queue::<Key>::default());
    let owners = Arc::new(Owners::default());
    let (wake, index) = (queue.clone(), owners.clone());
    context.informers.services.subscribe(move |change| {
        for address in index.note(change.old.map(|s| &**s), change.new.map(|s| &**s)) {
            wake.add(Key::new("", address.to_string()));
        }
    });
    let wake = queue.clone();
    context
        .informers
        .addresses
        .subscribe(move |change| change.both().for_each(|a| wake.add(Key::of(&**a))));
    let (client, informers) = (context.client.clone(), context.informers.clone());
    drive("ipaddress", queue, 2, context.token.clone(), move |key| {
        let (client, informers, owners) = (client.clone(), informers.clone(), owners.clone());
        async move { reconcile(&client, &informers, &owners, &key).await }
    });
}

/// What is to be done about an address.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Create,
    Delete,
    /// It is somebody else's, whom the service's name is told.
    Taken,
}

fn step(there: Option<&IPAddress>, owner: Option<&ParentReference>) -> Step {
    let ours = |a: &IPAddress| a.labels().get(MANAGED_BY).is_some_and(|m| m == ALLOCATOR);
    // The core group may be written as nothing at all.
    let names = |a: &IPAddress, owner: &ParentReference| {
        let parent = ParentReference {
            group: Some(a.spec.parent_ref.group.clone().unwrap_or_default()),
            ..a.spec.parent_ref.clone()
        };
        parent == *owner
    };
    match (there, owner) {
        (None, Some(_)) => Step::Create,
        (None, None) => Step::Nothing,
        (Some(there), Some(owner)) if names(there, owner) => Step::Nothing,
        // What the address is for cannot change, so the object makes way for another.
        (Some(there), _) if ours(there) => Step::Delete,
        (Some(_), Some(_)) => Step::Taken,
        (Some(_), None) => Step::Nothing,
    }
}

async fn reconcile(
    client: &Client,
    informers: &Informers,
    owners: &Owners,
    key: &Key,
) -> Result<Next, ReconcileError> {
    informers.services.synced().await;
    informers.addresses.synced().await;
    let Ok(address) = key.name.parse::<IpAddr>() else {
        return Ok(None);
    };
    let owner = owners.of(&address).map(|service| ParentReference {
        group: Some(String::new()),
        resource: "services".into(),
        namespace: Some(service.namespace),
        name: service.name,
    });
    let there = informers.addresses.get(key);
    let api: Api<IPAddress> = Api::all(client.clone());
    match (step(there.as_deref(), owner.as_ref()), owner, there) {
        (Step::Create, Some(owner), _) => {
            let object = object(&address, owner);
            match api.create(&PostParams::default(), &object).await {
                // The watch will show what is there, and wake us.
                Err(error) if is(&error, 409) => {}
                result => drop(result.doing(|| format!("create ip address {address}"))?),
            }
        }
        (Step::Delete, _, Some(there)) => {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: there.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            api.delete(&key.name, &params)
                .await
                .doing_if_there(|| format!("delete ip address {address}"))?;
        }
        (Step::Taken, Some(owner), _) => {
            warn!(%address, service = %owner.name, "somebody else's IPAddress names a service's cluster IP");
        }
        _ => {}
    }
    Ok(None)
}

fn object(address: &IpAddr, parent_ref: ParentReference) -> IPAddress {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            labels: Some(
                [(MANAGED_BY, ALLOCATOR), (FAMILY, family)]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec { parent_ref },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(name: &str) -> ParentReference {
        ParentReference {
            group: Some(String::new()),
            resource: "services".into(),
            namespace: Some("n".into()),
            name: name.into(),
        }
    }

    #[test]
    fn an_address_is_its_services_and_nobody_elses() {
        let ip: IpAddr = "10.96.0.9".parse().unwrap();
        let ours = object(&ip, parent("a"));
        let mut foreign = object(&ip, parent("a"));
        foreign.metadata.labels = None;
        assert_eq!(step(None, Some(&parent("a"))), Step::Create);
        assert_eq!(step(None, None), Step::Nothing);
        assert_eq!(step(Some(&ours), Some(&parent("a"))), Step::Nothing);
        assert_eq!(step(Some(&ours), Some(&parent("b"))), Step::Delete);
        assert_eq!(step(Some(&ours), None), Step::Delete);
        assert_eq!(step(Some(&foreign), None), Step::Nothing);
        assert_eq!(step(Some(&foreign), Some(&parent("a"))), Step::Nothing);
        assert_eq!(step(Some(&foreign), Some(&parent("b"))), Step::Taken);
    }
}
