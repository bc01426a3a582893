//! Closing sockets whose backend is gone, so that their owners connect anew instead of waiting for an answer.
//!
//! Only sockets that the programs led to a backend are touched: they stand in a map with the backend's address. A
//! connected UDP socket of the node (those of pods are translated as packets) is closed once its backend is no longer offered, since datagrams know no orderly end; a TCP
//! connection only once the pod itself is gone: while a pod is unready or terminating, its connections are its own
//! business.

mod diag;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use orch_cluster::Cluster;
use orch_ebpf::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    service::{SOCKETS_MAP, STREAMS_MAP, SocketKey, Stream},
};
use tokio::sync::mpsc;

use crate::{
    DataplaneError,
    maps::{FamilyMaps, MapAddress, entries, failed, gone_or, streams},
    services::Place,
    shared::Shared,
    sys,
};

/// How long to gather before looking: a rolling update takes away many backends at once.
const GATHER: Duration = Duration::from_millis(200);
/// How often a pod that has left its services is asked after again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a pod that has left its services, and is still there, is asked after.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pod, as an endpoint names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
}

/// What may have left sockets behind.
#[derive(Debug)]
pub enum Gone {
    /// Places that are backends no longer.
    Backends(Vec<Place>),
    /// Addresses of endpoints that have left a slice, and their pods.
    Endpoints(Vec<(IpAddr, PodName)>),
}

/// The endpoints of pods that are in the old slice and not in the new one.
pub fn vanished(old: &EndpointSlice, new: Option<&EndpointSlice>) -> Vec<(IpAddr, PodName)> {
    let addresses = |slice: &EndpointSlice| -> HashSet<String> {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints
            .filter_map(|endpoint| endpoint.addresses.first().cloned())
            .collect()
    };
    let left: HashSet<String> = new.map(addresses).unwrap_or_default();
    old.endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| {
            let text = endpoint
                .addresses
                .first()
                .filter(|address| !left.contains(*address))?;
            let target = endpoint.target_ref.as_ref()?;
            if target.kind.as_deref() != Some("Pod") {
                return None;
            }
            let namespace = target
                .namespace
                .clone()
                .or_else(|| old.metadata.namespace.clone())?;
            let pod = PodName {
                namespace,
                name: target.name.clone()?,
                uid: target.uid.clone(),
            };
            Some((text.parse().ok()?, pod))
        })
        .collect()
}

/// Runs until the task is dropped.
pub async fn run(shared: Arc<Shared>, cluster: Arc<Cluster>, mut gone: mpsc::UnboundedReceiver<Gone>) {
    let mut datagrams: HashSet<Place> = HashSet::new();
    let mut pods: HashMap<(IpAddr, PodName), Instant> = HashMap::new();
    let mut told = false;
    loop {
        let wait = if pods.is_empty() && datagrams.is_empty() {
            None
        } else {
            Some(ASK_AGAIN)
        };
        tokio::select! {
            more = gone.recv() => {
                let Some(more) = more else { return };
                tokio::time::sleep(GATHER).await;
                note(&shared, more, &mut datagrams, &mut pods);
                while let Ok(more) = gone.try_recv() {
                    note(&shared, more, &mut datagrams, &mut pods);
                }
            }
            () = sleep(wait) => {}
        }
        shared.services.lock().retain_gone(&mut datagrams);
        pods.retain(|_, since| since.elapsed() < PATIENCE);
        let open = match open_sockets(&shared, &datagrams, &pods) {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "sockets to backends that are gone could not be looked for");
                continue;
            }
        };
        datagrams.clear();
        let mut targets = Targets {
            datagrams: open.datagrams,
            streams: HashMap::new(),
        };
        for (ip, pod, cookies) in open.streams {
            match cluster
                .pod_is_gone(&pod.namespace, &pod.name, pod.uid.as_deref())
                .await
            {
                Ok(true) => targets
                    .streams
                    .extend(cookies.into_iter().map(|cookie| (cookie, ip))),
                Ok(false) => continue,
                Err(error) => {
                    tracing::debug!(%error, "a pod could not be asked after");
                    continue;
                }
            }
            pods.remove(&(ip, pod));
        }
        // Without a socket there is nothing to ask about.
        pods.retain(|key, _| open.waiting.contains(key));
        close_all(&shared, targets, &mut told).await;
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn note(
    shared: &Shared,
    gone: Gone,
    datagrams: &mut HashSet<Place>,
    pods: &mut HashMap<(IpAddr, PodName), Instant>,
) {
    match gone {
        Gone::Backends(places) => {
            datagrams.extend(places.into_iter().filter(|place| place.protocol == PROTOCOL_UDP));
        }
        Gone::Endpoints(endpoints) => {
            // A pod in a node's own network leaves the node, which answers for it, behind.
            let of_pods = |ip: &IpAddr| shared.config.cluster_cidrs.iter().any(|net| net.contains(ip));
            let now = Instant::now();
            pods.extend(
                endpoints
                    .into_iter()
                    .filter(|(ip, _)| of_pods(ip))
                    .map(|key| (key, now)),
            );
        }
    }
}

type Cookie = [u32; 2];

/// Sockets that stand in the maps with what may be gone.
#[derive(Default)]
struct Open {
    datagrams: HashMap<Cookie, (IpAddr, u16)>,
    streams: Vec<(IpAddr, PodName, Vec<Cookie>)>,
    waiting: HashSet<(IpAddr, PodName)>,
}

fn open_sockets(
    shared: &Shared,
    datagrams: &HashSet<Place>,
    pods: &HashMap<(IpAddr, PodName), Instant>,
) -> Result<Open, DataplaneError> {
    let mut open = Open::default();
    if datagrams.is_empty() && pods.is_empty() {
        return Ok(open);
    }
    let addresses: HashSet<IpAddr> = pods.keys().map(|(ip, _)| *ip).collect();
    let mut streams: HashMap<IpAddr, Vec<Cookie>> = HashMap::new();
    let mut each = |cookie: Cookie, ip: IpAddr, port: u16| {
        let protocol = PROTOCOL_UDP;
        if datagrams.contains(&Place { ip, port, protocol }) {
            open.datagrams.insert(cookie, (ip, port));
        }
        if addresses.contains(&ip) {
            streams.entry(ip).or_default().push(cookie);
        }
    };
    let maps = shared.maps.lock();
    look(&maps.v4, &mut each)?;
    look(&maps.v6, &mut each)?;
    for key in pods.keys() {
        if let Some(cookies) = streams.get(&key.0) {
            open.streams.push((key.0, key.1.clone(), cookies.clone()));
            open.waiting.insert(key.clone());
        }
    }
    Ok(open)
}

fn look<A: MapAddress>(
    maps: &FamilyMaps<A>,
    each: &mut impl FnMut(Cookie, IpAddr, u16),
) -> Result<(), DataplaneError> {
    for (key, _) in entries(SOCKETS_MAP, &maps.sockets)? {
        each(key.cookie, key.address.ip(), key.port);
    }
    for (_, stream) in streams(&maps.streams)? {
        each(stream.cookie, stream.backend.ip(), stream.backend_port);
    }
    Ok(())
}

/// Sockets to close, and the peers that they must still have.
#[derive(Default)]
struct Targets {
    datagrams: HashMap<Cookie, (IpAddr, u16)>,
    streams: HashMap<Cookie, IpAddr>,
}

async fn close_all(shared: &Arc<Shared>, targets: Targets, told: &mut bool) {
    if targets.datagrams.is_empty() && targets.streams.is_empty() {
        return;
    }
    let namespaces = namespaces(shared);
    let shared = Arc::clone(shared);
    let closed = tokio::task::spawn_blocking(move || {
        let closed = close_in_all(&namespaces, &targets);
        forget(&shared, &targets);
        closed
    });
    match closed.await {
        Ok(closed) => {
            if closed.count > 0 {
                tracing::info!(sockets = closed.count, "closed sockets to backends that are gone");
            }
            if closed.unsupported && !std::mem::replace(told, true) {
                tracing::warn!(
                    "this kernel cannot close sockets to backends that are gone (CONFIG_INET_DIAG_DESTROY): \
                     their owners must notice by themselves"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "sockets to backends that are gone could not be closed"),
    }
}

/// The network namespaces of the pods on this node, by uid.
fn namespaces(shared: &Shared) -> BTreeMap<String, PathBuf> {
    let folder = shared.config.run_dir.join("ns");
    let pods = shared.pods.lock();
    pods.iter()
        .map(|(uid, _)| (uid.clone(), folder.join(uid).join("net")))
        .collect()
}

fn close_in_all(namespaces: &BTreeMap<String, PathBuf>, targets: &Targets) -> diag::Closed {
    let mut all = diag::Closed::default();
    let mut add = |result: io::Result<diag::Closed>, of: &str| match result {
        Ok(closed) => {
            all.count += closed.count;
            all.unsupported |= closed.unsupported;
        }
        // A pod that has gone meanwhile took its sockets along.
        Err(error) => tracing::debug!(%error, of, "sockets could not be listed"),
    };
    add(close_here(targets), "node");
    for (uid, path) in namespaces {
        let entered = File::open(path).and_then(|file| sys::in_namespace(&file, || close_here(targets)));
        add(entered.and_then(|result| result), uid);
    }
    all
}

fn close_here(targets: &Targets) -> io::Result<diag::Closed> {
    let mut closed = diag::Closed::default();
    if !targets.datagrams.is_empty() {
        closed = diag::close(PROTOCOL_UDP, &|socket| {
            targets.datagrams.get(&socket.cookie) == Some(&(socket.peer, socket.peer_port))
        })?;
    }
    if !targets.streams.is_empty() {
        let more = diag::close(PROTOCOL_TCP, &|socket| {
            targets.streams.get(&socket.cookie) == Some(&socket.peer)
        })?;
        closed.count += more.count;
        closed.unsupported |= more.unsupported;
    }
    Ok(closed)
}

/// Takes the closed connections out of the map, so that the next look does not find them.
fn forget(shared: &Shared, targets: &Targets) {
    let mut maps = shared.maps.lock();
    let forgotten = forget_in(&mut maps.v4, targets).and_then(|()| forget_in(&mut maps.v6, targets));
    if let Err(error) = forgotten {
        tracing::debug!(%error, "closed sockets could not be forgotten");
    }
}

fn forget_in<A: MapAddress>(maps: &mut FamilyMaps<A>, targets: &Targets) -> Result<(), DataplaneError> {
    let keys: Vec<SocketKey<A>> = entries(SOCKETS_MAP, &maps.sockets)?
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| targets.streams.get(&key.cookie) == Some(&key.address.ip()))
        .collect();
    for key in keys {
        gone_or(maps.sockets.remove(&key)).map_err(failed(SOCKETS_MAP))?;
    }
    let mut slots = streams(&maps.streams)?;
    slots.retain(|(_, stream)| targets.streams.get(&stream.cookie) == Some(&stream.backend.ip()));
    for (slot, _) in slots {
        // A socket that took the slot this very moment is forgotten too.
        let set = maps.streams.set(slot, Stream::default(), 0);
        set.map_err(failed(STREAMS_MAP))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop"}, "addressType": "IPv4", "endpoints": endpoints}),
        )
        .unwrap()
    }

    #[test]
    fn only_pods_that_leave_a_slice_vanish() {
        let pod = |last: u8| {
            json!({"addresses": [format!("10.244.0.{last}")], "conditions": {"ready": false},
                "targetRef": {"kind": "Pod", "name": format!("pod-{last}"), "uid": "u"}})
        };
        let old = slice(json!([pod(1), pod(2), {"addresses": ["192.0.2.1"]}]));
        let names = |new: Option<&EndpointSlice>| -> Vec<String> {
            vanished(&old, new)
                .into_iter()
                .map(|(ip, pod)| format!("{ip} {}/{}", pod.namespace, pod.name))
                .collect()
        };
        assert_eq!(names(Some(&slice(json!([pod(2)])))), ["10.244.0.1 shop/pod-1"]);
        assert_eq!(names(Some(&old)), Vec::<String>::new());
        assert_eq!(names(None).len(), 2);
    }
}
