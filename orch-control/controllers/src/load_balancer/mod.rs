//! Load balancers: Services of type LoadBalancer get addresses from a pool, one of each of their families.
//!
//! # Flow
//! A Service of our class (`orch.dev/l2`, or none) appears or changes → the pool's allocator says what it is to have
//! → its status says so. Announcing the addresses is the agents' work.
//! # Guarantees
//! No two Services have the same address: one worker gives them out, after every Service's status has been read. A
//! Service keeps its addresses while it lives and over restarts. One that is deleted or changes its type gives them
//! back, and those that wait for one are tried again.
//! # Assumptions
//! Nobody else writes the status of our classes' Services; what somebody writes there is put right. Services of other
//! classes are not touched.
//! # Errors
//! What cannot be given is the event AllocationFailed on the Service, with the reason.

pub mod pool;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use orch_api::service::{Family, LOAD_BALANCER_CLASS};
use orch_shared::events::{Recorder, Severity, reference};
use parking_lot::Mutex;
use serde_json::json;

use self::pool::{Allocator, Grant, Wish};
use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive};

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    state: Mutex<State>,
}

struct State {
    allocator: Allocator,
    /// Those that did not get all they want.
    waiting: BTreeSet<Key>,
    /// Whether the statuses from before the start have been read.
    adopted: bool,
}

/// Starts the controller, if there is a pool.
pub fn start(context: &Context) {
    let Some(pool) = context.config.load_balancer_pool.clone() else {
        return;
    };
    let queue = Arc::new(Queue::<Key>::default());
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder("loadbalancer-controller"),
        queue: queue.clone(),
        state: Mutex::new(State {
            allocator: Allocator::new(pool),
            waiting: BTreeSet::new(),
            adopted: false,
        }),
    });
    let wake = queue.clone();
    context.informers.services.subscribe(move |change| {
        if change.both().any(|service| is_ours(service)) {
            change.both().for_each(|service| wake.add(Key::of(&**service)));
        }
    });
    // One worker: two would have to agree on who gets an address.
    drive("loadbalancer", queue, 1, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// Whether the Service is a load balancer that we are to serve.
fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == LOAD_BALANCER_CLASS)
}

/// The addresses in the Service's status.
fn status(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.iter().flat_map(|b| b.ingress.iter().flatten());
    ingress
        .filter_map(|one| one.ip.as_deref()?.parse().ok())
        .collect()
}

fn wish(service: &Service) -> Wish {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec.ip_families.unwrap_or_default();
    Wish {
        families: families.iter().filter_map(|f| Family::parse(f)).collect(),
        // A text that is no address names none of ours; the allocator says so of the unspecified one.
        asked: spec
            .load_balancer_ip
            .filter(|ip| !ip.is_empty())
            .map(|ip| ip.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))),
        has: status(service),
    }
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.services.synced().await;
        self.adopt();
        let service = self.informers.services.get(key).filter(|s| is_ours(s));
        // Who is being deleted keeps what it has until it is gone: its finalizers may still need the address.
        let deleting = service
            .as_ref()
            .is_some_and(|s| s.metadata.deletion_timestamp.is_some());
        let Some(service) = service else {
            let freed = {
                let mut state = self.state.lock();
                state.waiting.remove(key);
                state.allocator.release(key)
            };
            if freed {
                self.wake_waiting();
            }
            return Ok(None);
        };
        if deleting {
            return Ok(None);
        }
        let wish = wish(&service);
        let (before, grant) = {
            let mut state = self.state.lock();
            let before = state.allocator.held(key).to_vec();
            let grant = state.allocator.grant(key, &wish);
            match grant.lacks.is_empty() {
                true => state.waiting.remove(key),
                false => state.waiting.insert(key.clone()),
            };
            (before, grant)
        };
        for lack in &grant.lacks {
            let message = format!("Failed to allocate a load balancer address for {key}: {lack}");
            self.recorder.event(
                reference(&*service),
                Severity::Warning,
                "AllocationFailed",
                message,
            );
        }
        self.write(key, &service, &grant).await?;
        if before.iter().any(|ip| !grant.ips.contains(ip)) {
            self.wake_waiting();
        }
        Ok(None)
    }

    /// Before the first address is given out: who has one from an earlier run has it still. The older Service comes
    /// first, should two have the same.
    fn adopt(&self) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.adopted, true) {
            return;
        }
        let mut services = self.informers.services.all();
        services.retain(|service| is_ours(service));
        services.sort_by_key(|service| service.metadata.creation_timestamp.as_ref().map(|at| at.0));
        for service in services {
            state.allocator.adopt(&Key::of(&*service), &status(&service));
        }
    }

    fn wake_waiting(&self) {
        let waiting = self.state.lock().waiting.clone();
        waiting.into_iter().for_each(|key| self.queue.add(key));
    }

    async fn write(&self, key: &Key, service: &Service, grant: &Grant) -> Result<(), ReconcileError> {
        let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let now: Vec<_> = balancer.iter().flat_map(|b| b.ingress.iter().flatten()).collect();
        let right = now.len() == grant.ips.len()
            && now.iter().zip(&grant.ips).all(|(now, ip)| {
                now.ip.as_deref() == Some(&ip.to_string()) && now.ip_mode.as_deref() == Some("VIP")
            });
        if right {
            return Ok(());
        }
        let ingress: Vec<_> = grant
            .ips
            .iter()
            .map(|ip| json!({ "ip": ip, "ipMode": "VIP" }))
            .collect();
        let patch = json!({
            "metadata": { "uid": service.uid() },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let ips: Vec<String> = grant.ips.iter().map(ToString::to_string).collect();
        let written =
            written.doing_if_there(|| format!("give service {key} the addresses {}", ips.join(", ")))?;
        if written.is_some() && !ips.is_empty() {
            let message = format!("Assigned {}", ips.join(", "));
            self.recorder
                .event(reference(service), Severity::Normal, "IPAllocated", message);
        }
        Ok(())
    }
}
