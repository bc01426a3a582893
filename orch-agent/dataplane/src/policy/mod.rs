//! NetworkPolicies: from the API's objects to identities, rules and the flags of endpoints.
//!
//! `compile` makes rules of policies, `identify` says who addresses are, `model` gives both numbers and decides on
//! the order of changes, `apply` carries them out. Pods on their node's network are no subjects, and peers only by
//! the node's address, as far as an `ipBlock` holds it: Kubernetes leaves both to the implementation. The node's DNS server
//! is a peer like the pods that it stands for, see `Model::with_dns`.

use std::{net::IpAddr, sync::Arc, time::Duration};

use orch_cluster::{
    Cluster,
    policies::{NamedPort, Pod, PolicyEvent},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

mod apply;
mod compile;
mod identify;
mod model;
mod numbers;
mod ports;
mod selector;
mod tables;
#[cfg(test)]
mod tests;

pub use self::{apply::with_verdict, tables::Verdict};
use self::{
    apply::{Enforced, MapsKernel},
    compile::Subject,
    model::Model,
};
use crate::{DataplaneError, PodAttachment, maps::Maps};

/// How long to wait after the kernel has refused a change.
const RETRY: Duration = Duration::from_secs(1);

/// What is asked of the task.
enum Request {
    Add(String, Subject),
    Remove(String),
}

/// The enforcement of policies on this node.
pub struct Policies {
    model: Mutex<Option<Model>>,
    enforced: Enforced,
    requests: mpsc::UnboundedSender<Request>,
    asked: Mutex<Option<mpsc::UnboundedReceiver<Request>>>,
    /// Moves when there may be new verdicts.
    judged: watch::Sender<()>,
}

impl Default for Policies {
    fn default() -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        Self {
            model: Mutex::default(),
            enforced: Enforced::default(),
            requests,
            asked: Mutex::new(Some(asked)),
            judged: watch::channel(()).0,
        }
    }
}

impl Policies {
    /// Waits until it is known what policies say of a pod, and the kernel has the rules for that. To be called before
    /// the pod's endpoints are written, which then say what [`Self::verdict`] says at that moment; should that change
    /// later, they are changed from here. Ends only with knowledge of the cluster's policies, except for a pod whose
    /// endpoints an earlier agent has written.
    pub async fn for_pod(&self, pod: &PodAttachment) -> Verdict {
        let subject = Subject {
            namespace: pod.namespace.clone(),
            labels: Arc::new(pod.labels.clone()),
            ports: pod
                .named_ports
                .iter()
                .map(|port| NamedPort {
                    name: port.name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                })
                .collect(),
        };
        let mut judged = self.judged.subscribe();
        // The task lives as long as the data plane.
        let _ = self.requests.send(Request::Add(pod.uid.clone(), subject));
        loop {
            if let Some(verdict) = self.enforced.lock().get(&pod.uid) {
                return *verdict;
            }
            if judged.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// What an endpoint of a pod is to say at this moment. To be asked with the maps locked until it is written.
    /// Before [`Self::for_pod`] has returned: nothing may pass.
    pub fn verdict(&self, uid: &str) -> Verdict {
        self.enforced.lock().get(uid).copied().unwrap_or(Verdict {
            flags: tables::ISOLATED,
            policy: 0,
        })
    }

    /// Forgets a pod whose endpoints have been removed.
    pub fn forget(&self, uid: &str) {
        self.enforced.lock().remove(uid);
        let _ = self.requests.send(Request::Remove(uid.to_owned()));
    }

    /// The addresses of every pod that is known, with NAMESPACE/NAME; of none where no policy has made them worth
    /// knowing.
    pub fn pods(&self) -> Vec<(IpAddr, String)> {
        let model = self.model.lock();
        let pods = model.iter().flat_map(Model::pods);
        let named = |pod: &Arc<Pod>| {
            let name = format!("{}/{}", pod.namespace, pod.name);
            pod.addresses
                .iter()
                .map(|ip| (*ip, name.clone()))
                .collect::<Vec<_>>()
        };
        pods.flat_map(named).collect()
    }

    /// What an identity stands for, in words, if it is one that this node's rules speak of.
    pub fn describe(&self, identity: u32) -> Option<String> {
        self.model.lock().as_ref()?.describe(identity)
    }
}

/// Reads back what an earlier agent enforced, and starts to follow the cluster. The node's DNS server answers at the
/// addresses `dns`. To be called after the endpoints of
/// pods that have gone are removed.
///
/// # Errors
/// When the kernel refuses to tell what the maps hold.
pub fn start(
    policies: &Arc<Policies>,
    maps: &Arc<Mutex<Maps>>,
    dns: &[IpAddr],
    cluster: &Cluster,
) -> Result<Option<JoinHandle<()>>, DataplaneError> {
    let (tables, enforced) = apply::read(&maps.lock())?;
    policies.enforced.lock().clone_from(&enforced);
    *policies.model.lock() = Some(Model::new(tables, enforced).with_dns(dns));
    let (Some(events), Some(asked)) = (cluster.take_policy_events(), policies.asked.lock().take()) else {
        return Ok(None);
    };
    let (policies, maps) = (Arc::clone(policies), Arc::clone(maps));
    Ok(Some(tokio::spawn(async move {
        run(&policies, &maps, events, asked).await;
    })))
}

async fn run(
    policies: &Policies,
    maps: &Mutex<Maps>,
    mut events: mpsc::Receiver<PolicyEvent>,
    mut asked: mpsc::UnboundedReceiver<Request>,
) {
    let mut failed = false;
    loop {
        let retry = async {
            if failed {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending().await
            }
        };
        let (mut event, mut request) = (None, None);
        tokio::select! {
            Some(one) = events.recv() => event = Some(one),
            Some(one) = asked.recv() => request = Some(one),
            () = retry => {}
            else => return,
        }
        let mut model = policies.model.lock();
        let Some(model) = model.as_mut() else { return };
        while let Some(event) = event.take().or_else(|| events.try_recv().ok()) {
            model.apply(event);
        }
        while let Some(request) = request.take().or_else(|| asked.try_recv().ok()) {
            match request {
                Request::Add(uid, subject) => model.add_local(&uid, subject),
                Request::Remove(uid) => {
                    model.remove_local(&uid);
                    policies.enforced.lock().remove(&uid);
                }
            }
        }
        let result = model.sync(&mut MapsKernel {
            maps,
            enforced: &policies.enforced,
        });
        failed = result.is_err();
        if let Err(error) = result {
            tracing::error!(%error, "network policies are not enforced as they should be, trying again");
        }
        policies.judged.send_replace(());
    }
}
