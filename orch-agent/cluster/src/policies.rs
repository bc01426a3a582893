//! NetworkPolicies, and what they are about: namespaces and pods of the whole cluster.
//!
//! Pods are many, so they are watched only while a policy exists, and kept as little more than labels and addresses.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    core::v1::{Namespace as ApiNamespace, Pod as ApiPod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::JoinSet,
    time::Instant,
};

use crate::{Retry, WATCH_SECONDS};

/// How long the pods are still watched after the last policy has gone: one is often replaced by the next.
const KEEP_PODS: Duration = Duration::from_secs(60);
/// Changes that may wait for the reader before the watches wait too.
const BACKLOG: usize = 256;

/// Labels, shared by all pods that have the same.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A port of a container that policies may call by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`, as IP protocol number.
    pub protocol: u8,
    /// Its number.
    pub port: u16,
}

/// A pod as policies see it. Pods on their node's network and finished ones are not among them: policies select
/// neither, and their addresses are not their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, as far as it has any yet.
    pub addresses: Vec<IpAddr>,
    /// Its containers' named ports.
    pub ports: Vec<NamedPort>,
}

/// A namespace as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What has happened to the objects of one kind.
#[derive(Debug, Clone)]
pub enum Update<T> {
    /// This one was put.
    Put(T),
    /// The one with this key was removed: a pod's uid, a namespace's name, a policy's namespace and name.
    Remove(String),
    /// These are all there are.
    All(Vec<T>),
}

/// A change of what decides who may talk to whom.
#[derive(Debug, Clone)]
pub enum PolicyEvent {
    /// Of the policies.
    Policy(Update<Arc<NetworkPolicy>>),
    /// Of the namespaces. None comes before the first policy.
    Namespace(Update<Namespace>),
    /// Of the pods. None comes before the first policy.
    Pod(Update<Pod>),
    /// Pods and namespaces are no longer watched, since there is no policy. If there is one again, [`Update::All`]
    /// follows for both.
    Unwatched,
}

/// The key of a policy in [`Update::Remove`]: neither of its parts can hold a slash.
#[must_use]
pub fn policy_key(policy: &NetworkPolicy) -> String {
    let meta = &policy.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// The protocol number of an API object's protocol; TCP is the default.
#[must_use]
pub fn protocol_number(protocol: Option<&str>) -> Option<u8> {
    // IANA's Assigned Internet Protocol Numbers.
    match protocol {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}

/// The named ports of a pod's containers. Init containers count only if they stay ("sidecars").
#[must_use]
pub fn named_ports(pod: &ApiPod) -> Vec<NamedPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports: Vec<NamedPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone()?,
                protocol: protocol_number(port.protocol.as_deref())?,
                port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

/// What can be held of a pod; None if policies have nothing to do with it.
#[must_use]
pub fn trim(pod: ApiPod) -> Option<Pod> {
    let ports = named_ports(&pod);
    let finished = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    if finished || host {
        return None;
    }
    let status = pod.status.unwrap_or_default();
    let mut addresses: Vec<IpAddr> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|address| address.ip.as_str())
        .chain(status.pod_ip.as_deref())
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort();
    addresses.dedup();
    Some(Pod {
        uid: pod.metadata.uid?,
        namespace: pod.metadata.namespace?,
        name: pod.metadata.name?,
        labels: Arc::new(pod.metadata.labels.unwrap_or_default()),
        addresses,
        ports,
    })
}

/// Equal labels, held once.
#[derive(Default)]
struct Interner {
    known: HashSet<Labels>,
    /// How many may be known before those that nobody holds any more are forgotten.
    room: usize,
}

impl Interner {
    fn share(&mut self, labels: Labels) -> Labels {
        if let Some(known) = self.known.get(&labels) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.room {
            self.known.retain(|labels| Arc::strong_count(labels) > 1);
            self.room = (self.known.len() * 2).max(256);
        }
        self.known.insert(Arc::clone(&labels));
        labels
    }
}

/// Starts the watch of policies, and with the first policy the others.
pub(crate) fn start(client: Client) -> Receiver<PolicyEvent> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(run(client, sender));
    receiver
}

/// What a view without any policy tells.
pub(crate) fn none() -> Receiver<PolicyEvent> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(PolicyEvent::Policy(Update::All(Vec::new())));
    receiver
}

async fn run(client: Client, sender: Sender<PolicyEvent>) {
    let mut policies = std::pin::pin!(updates(
        Api::<NetworkPolicy>::all(client.clone()),
        policy_key,
        |mut policy| {
            policy.metadata.managed_fields = None;
            policy.metadata.annotations = None;
            Some(Arc::new(policy))
        },
    ));
    let mut present: HashSet<String> = HashSet::new();
    let mut watches: Option<Watches> = None;
    let mut idle_since: Option<Instant> = None;
    loop {
        let idle = async {
            match (&watches, idle_since) {
                (Some(_), Some(since)) => tokio::time::sleep_until(since + KEEP_PODS).await,
                _ => std::future::pending().await,
            }
        };
        let update = tokio::select! {
            update = policies.next() => update,
            () = sender.closed() => return,
            () = idle => {
                if let Some(watches) = watches.take() {
                    watches.stop().await;
                }
                if sender.send(PolicyEvent::Unwatched).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(update) = update else { return };
        match &update {
            Update::Put(policy) => {
                present.insert(policy_key(policy));
            }
            Update::Remove(key) => {
                present.remove(key);
            }
            Update::All(policies) => present = policies.iter().map(|policy| policy_key(policy)).collect(),
        }
        if present.is_empty() {
            idle_since.get_or_insert_with(Instant::now);
        } else {
            idle_since = None;
        }
        if sender.send(PolicyEvent::Policy(update)).await.is_err() {
            return;
        }
        if watches.is_none() && !present.is_empty() {
            watches = Some(Watches::start(&client, &sender));
        }
    }
}

/// The watches of pods and namespaces; they end with it.
struct Watches(JoinSet<()>);

impl Watches {
    fn start(client: &Client, sender: &Sender<PolicyEvent>) -> Self {
        let mut tasks = JoinSet::new();
        let mut interner = Interner::default();
        let pods = updates(Api::<ApiPod>::all(client.clone()), pod_key, move |pod| {
            let mut pod = trim(pod)?;
            pod.labels = interner.share(pod.labels);
            Some(pod)
        });
        let namespaces = updates(
            Api::<ApiNamespace>::all(client.clone()),
            |namespace| namespace.metadata.name.clone().unwrap_or_default(),
            |namespace| {
                Some(Namespace {
                    name: namespace.metadata.name?,
                    labels: namespace.metadata.labels.unwrap_or_default(),
                })
            },
        );
        tasks.spawn(forward(namespaces, sender.clone(), PolicyEvent::Namespace));
        tasks.spawn(forward(pods, sender.clone(), PolicyEvent::Pod));
        Self(tasks)
    }

    /// Returns when neither will tell anything any more.
    async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

async fn forward<T>(
    updates: impl Stream<Item = Update<T>>,
    sender: Sender<PolicyEvent>,
    event: fn(Update<T>) -> PolicyEvent,
) {
    let mut updates = std::pin::pin!(updates);
    while let Some(update) = updates.next().await {
        if sender.send(event(update)).await.is_err() {
            return;
        }
    }
}

fn pod_key(pod: &ApiPod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// A watch as updates: a list comes as one. What `take` makes nothing of counts as removed.
fn updates<K, T>(
    api: Api<K>,
    key: fn(&K) -> String,
    take: impl FnMut(K) -> Option<T>,
) -> impl Stream<Item = Update<T>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    K::DynamicType: Default,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let events = watcher::watcher(api, config).backoff(Retry::default());
    let mut folder = Folder {
        key,
        take,
        listed: Vec::new(),
    };
    events.filter_map(move |event| {
        let update = match event {
            Ok(event) => folder.fold(event),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "watch failed, retrying");
                None
            }
        };
        futures::future::ready(update)
    })
}

/// Makes updates of events.
struct Folder<K, T, F> {
    key: fn(&K) -> String,
    take: F,
    listed: Vec<T>,
}

impl<K, T, F: FnMut(K) -> Option<T>> Folder<K, T, F> {
    fn fold(&mut self, event: Event<K>) -> Option<Update<T>> {
        match event {
            Event::Init => {
                self.listed.clear();
                None
            }
            Event::InitApply(object) => {
                self.listed.extend((self.take)(object));
                None
            }
            Event::InitDone => Some(Update::All(std::mem::take(&mut self.listed))),
            Event::Apply(object) => {
                let key = (self.key)(&object);
                Some((self.take)(object).map_or(Update::Remove(key), Update::Put))
            }
            Event::Delete(object) => Some(Update::Remove((self.key)(&object))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: &str) -> ApiPod {
        serde_json::from_str(json).unwrap()
    }

    const WEB: &str = r#"{
        "metadata": {"uid": "u1", "namespace": "shop", "name": "web", "labels": {"app": "web"}},
        "spec": {
            "initContainers": [
                {"name": "once", "ports": [{"name": "setup", "containerPort": 1}]},
                {"name": "stays", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]}
            ],
            "containers": [{"name": "a", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"containerPort": 9}
            ]}]
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
    }"#;

    #[test]
    fn a_pod_keeps_what_policies_ask_for() {
        let pod = trim(pod(WEB)).unwrap();
        let ports: Vec<(&str, u8, u16)> = pod
            .ports
            .iter()
            .map(|port| (port.name.as_str(), port.protocol, port.port))
            .collect();
        assert_eq!(ports, [("dns", 17, 53), ("http", 6, 8080), ("side", 6, 2)]);
        assert_eq!(
            pod.addresses,
            ["10.0.0.1", "fd00::1"].map(|address| address.parse::<IpAddr>().unwrap())
        );
        assert_eq!(pod.labels.get("app").map(String::as_str), Some("web"));
    }

    #[test]
    fn a_pod_that_finishes_is_as_removed() {
        let mut folder = Folder {
            key: pod_key,
            take: trim,
            listed: Vec::new(),
        };
        assert!(folder.fold(Event::Init).is_none());
        assert!(folder.fold(Event::InitApply(pod(WEB))).is_none());
        assert!(matches!(folder.fold(Event::InitDone), Some(Update::All(all)) if all.len() == 1));
        let mut finished = pod(WEB);
        finished.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert!(matches!(folder.fold(Event::Apply(finished)), Some(Update::Remove(uid)) if uid == "u1"));
        let mut host = pod(WEB);
        host.spec.as_mut().unwrap().host_network = Some(true);
        assert!(trim(host).is_none());
    }

    #[test]
    fn equal_labels_are_held_once_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let labels = |n: usize| Arc::new(BTreeMap::from([("n".to_owned(), n.to_string())]));
        let first = interner.share(labels(0));
        assert!(Arc::ptr_eq(&first, &interner.share(labels(0))));
        for n in 1..1000 {
            interner.share(labels(n));
        }
        assert!(interner.known.len() <= 256, "{}", interner.known.len());
        assert!(Arc::ptr_eq(&first, &interner.share(labels(0))));
    }
}
