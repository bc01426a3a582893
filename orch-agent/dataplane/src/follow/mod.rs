//! Following the cluster: whatever changed goes through the planners into the maps.

mod index;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::runtime::reflector::ObjectRef;
use orch_cluster::{Change, Cluster};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::index::{Index, name};
use crate::{
    DataplaneError, announce, health, liveness,
    model::{self, Balancer, Both, HealthCheck, NodeInfo, RemoteNode, View},
    nodes,
    services::{Departed, Outcome, Place},
    shared::Shared,
    sockets::{self, Gone, PodName},
};

/// How long to wait after the kernel has refused a change.
const RETRY: Duration = Duration::from_secs(1);
/// How often nodes are looked at, at most.
const NODES_EVERY: Duration = Duration::from_millis(100);
/// After how many services others get a turn.
const TURN: usize = 64;

/// Keeps the maps true until the task is dropped. Until the caches have held a full list, adopted maps stay as they
/// are: an agent that starts without an API server serves what its predecessor knew.
pub async fn run(shared: Arc<Shared>, cluster: Arc<Cluster>) {
    let mut tasks = JoinSet::new();
    let health = watch::channel(health::State::default()).0;
    let balancers = watch::channel(None).0;
    let (gone, gone_receiver) = mpsc::unbounded_channel();
    // The proxy's own health is asked for before the cluster is known.
    tasks.spawn(health::run(shared.config.proxy_health, health.subscribe()));
    tasks.spawn(sockets::run(
        Arc::clone(&shared),
        Arc::clone(&cluster),
        gone_receiver,
    ));
    let mut changes = cluster.changes();
    let mut marks = cluster.changed();
    let mut heard = shared.liveness.heard();
    if cluster.ready().await.is_err() {
        return;
    }
    tasks.spawn(announce::run(Arc::clone(&shared), balancers.subscribe()));
    let mut follower = Follower {
        shared,
        cluster,
        health,
        balancers,
        gone,
        index: Index::default(),
        nodes: HashMap::new(),
        left_out: BTreeSet::new(),
        withheld: BTreeSet::new(),
        remote: None,
        troubles: BTreeMap::new(),
        contested: BTreeSet::new(),
        checks: BTreeMap::new(),
        announced: BTreeMap::new(),
        unpublished: true,
        dirty: Dirty {
            everything: true,
            since: None,
            services: BTreeSet::new(),
        },
    };
    let mut nodes_due = Some(Instant::now());
    loop {
        let mut failed = false;
        if nodes_due.is_some_and(|due| due <= Instant::now()) {
            nodes_due = None;
            marks.mark_unchanged();
            if let Err(error) = follower.sync_nodes().await {
                tracing::error!(%error, "the way to other nodes could not be brought up to date, trying again");
                nodes_due = Some(Instant::now() + RETRY);
            }
        }
        if let Err(error) = follower.sync_services().await {
            tracing::error!(%error, "the data plane could not be brought up to date, trying again");
            follower.shared.metrics.failed();
            follower.start_anew();
            failed = true;
        }
        let flush = follower.shared.services.lock().due();
        let soonest = [
            nodes_due.map(|due| due.saturating_duration_since(Instant::now())),
            flush,
        ]
        .into_iter()
        .flatten()
        .min();
        if failed {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            biased;
            change = changes.next() => {
                let Some(change) = change else { return };
                follower.note(change);
                // What came together is done together.
                while let Some(Some(change)) = changes.next().now_or_never() {
                    follower.note(change);
                }
            }
            marked = marks.changed(), if nodes_due.is_none() => {
                if marked.is_err() {
                    return;
                }
                nodes_due = Some(Instant::now() + NODES_EVERY);
            }
            told = heard.changed() => {
                if told.is_err() {
                    return;
                }
                let left_out = liveness::left_out(&heard.borrow_and_update());
                follower.leave_out(left_out);
            }
            () = sleep(soonest) => {
                follower.flush();
            }
        }
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// What is to be looked at again.
#[derive(Default)]
struct Dirty {
    everything: bool,
    /// When the first change was told.
    since: Option<Instant>,
    services: BTreeSet<Arc<str>>,
}

struct Follower {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    health: watch::Sender<health::State>,
    balancers: watch::Sender<Option<announce::Wanted>>,
    gone: mpsc::UnboundedSender<Gone>,
    index: Index,
    nodes: HashMap<String, NodeInfo>,
    /// The nodes whose backends get no new connections, since they do not answer.
    left_out: BTreeSet<String>,
    /// Backends of theirs that no service has any more. They may come back: their sockets stay until it is the cluster that
    /// says so.
    withheld: BTreeSet<Departed>,
    remote: Option<Vec<RemoteNode>>,
    /// What has been said of a service, so that it is said once.
    troubles: BTreeMap<Arc<str>, Vec<String>>,
    /// Services that want what another one has.
    contested: BTreeSet<Arc<str>>,
    checks: BTreeMap<Arc<str>, HealthCheck>,
    announced: BTreeMap<Arc<str>, Balancer>,
    /// Whether the checks, balancers or nodes differ from what has been published.
    unpublished: bool,
    dirty: Dirty,
}

impl Follower {
    fn note(&mut self, change: Change) {
        self.dirty.since.get_or_insert_with(Instant::now);
        if self.dirty.everything {
            return;
        }
        match change {
            Change::Everything => self.dirty.everything = true,
            Change::Service(object) => {
                let name = name(object.namespace.as_deref(), Some(&object.name));
                self.dirty.services.insert(Arc::from(name));
            }
            Change::Slice(object) => {
                let name = name(object.namespace.as_deref(), Some(&object.name));
                let new = self.cluster.slices.get(&object);
                if let Some(old) = self.index.get(&name) {
                    self.tell_vanished(sockets::vanished(old, new.as_deref()));
                }
                let concerned = self.index.put(&name, new);
                self.dirty.services.extend(concerned);
            }
        }
    }

    fn tell_vanished(&self, endpoints: Vec<(IpAddr, PodName)>) {
        if !endpoints.is_empty() {
            // The task ends only with this one.
            let _ = self.gone.send(Gone::Endpoints(endpoints));
        }
    }

    /// Has the services looked at again that have endpoints on a node that is left out from now on, or no longer.
    fn leave_out(&mut self, left_out: BTreeSet<String>) {
        let before = std::mem::replace(&mut self.left_out, left_out);
        if before == self.left_out {
            return;
        }
        self.dirty.since.get_or_insert_with(Instant::now);
        if !self.dirty.everything {
            let differs = |name: &str| before.contains(name) != self.left_out.contains(name);
            self.dirty.services.extend(self.index.on_nodes(differs));
        }
    }

    /// Tells whose backends are to be asked after: the nodes that hold any.
    fn tell_holders(&self) {
        let own = &self.shared.config.node_name;
        let holders = self.index.holders().filter(|name| *name != own);
        let nodes = holders
            .filter_map(|name| Some((name.clone(), self.nodes.get(name)?.addresses.clone())))
            .collect();
        self.shared.liveness.ask_for_services(nodes);
    }

    /// Tells of the backends that are gone, but for those that are only left out.
    fn tell_departed(&mut self) {
        let silent: BTreeSet<IpAddr> = self
            .left_out
            .iter()
            .filter_map(|name| self.nodes.get(name))
            .flat_map(|node| node.addresses.iter().copied())
            .collect();
        let departed = std::mem::take(&mut self.withheld).into_iter();
        let (withheld, gone): (BTreeSet<_>, BTreeSet<_>) =
            departed.partition(|departed| silent.contains(&departed.node));
        self.withheld = withheld;
        let gone: Vec<Place> = gone.into_iter().map(|departed| departed.place).collect();
        if !gone.is_empty() {
            // The task ends only with this one.
            let _ = self.gone.send(Gone::Backends(gone));
        }
    }

    /// Looks at the nodes again: ways to them, and the services that their addresses and zones concern.
    async fn sync_nodes(&mut self) -> Result<(), DataplaneError> {
        let all = self.cluster.nodes.state();
        let shared = Arc::clone(&self.shared);
        let own = &shared.config.node_name;
        let infos: HashMap<String, NodeInfo> = all
            .iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, model::info(node))))
            .collect();
        let zone = |infos: &HashMap<String, NodeInfo>| infos.get(own).and_then(|node| node.zone.clone());
        if zone(&infos) != zone(&self.nodes) {
            self.dirty.everything = true;
        }
        let addresses = |infos: &HashMap<String, NodeInfo>, name: &str| {
            infos.get(name).map(|node| node.addresses.clone())
        };
        let moved: HashSet<&str> = infos
            .keys()
            .chain(self.nodes.keys())
            .map(String::as_str)
            .filter(|name| addresses(&infos, name) != addresses(&self.nodes, name))
            .collect();
        if !self.dirty.everything && !moved.is_empty() {
            self.dirty
                .services
                .extend(self.index.on_nodes(|name| moved.contains(name)));
        }
        self.unpublished |= self.nodes != infos;
        if self.nodes != infos {
            self.nodes = infos;
            self.tell_holders();
        }
        self.publish();
        let remote = model::remote_nodes(all.iter().map(AsRef::<Node>::as_ref), own);
        if self.remote.as_ref() != Some(&remote) {
            nodes::sync(&self.shared, &remote).await?;
            self.remote = Some(remote);
        }
        Ok(())
    }

    /// Looks at the services again that something has happened to.
    async fn sync_services(&mut self) -> Result<(), DataplaneError> {
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.everything && dirty.services.is_empty() {
            self.tell_departed();
            return Ok(());
        }
        let started = Instant::now();
        let mut outcome = Outcome::default();
        if dirty.everything {
            // What changes from here on is told again.
            let new = Index::of(self.cluster.slices.state());
            for (name, old) in self.index.iter() {
                self.tell_vanished(sockets::vanished(old, new.get(name)));
            }
            self.index = new;
            let mut services = self.cluster.services.state();
            // The oldest keeps an address that several want, whatever the order in which they are listed.
            services.sort_by_cached_key(|service| {
                let meta = &service.metadata;
                let age = meta.creation_timestamp.as_ref().map(|time| time.0);
                (age.is_none(), age, meta.namespace.clone(), meta.name.clone())
            });
            let mut present = HashSet::with_capacity(services.len());
            for (number, service) in services.iter().enumerate() {
                let name: Arc<str> = Arc::from(name(
                    service.metadata.namespace.as_deref(),
                    service.metadata.name.as_deref(),
                ));
                outcome.merge(self.put(&name, Some(service))?);
                present.insert(name);
                if number % TURN == TURN - 1 {
                    tokio::task::yield_now().await;
                }
            }
            let known = self.shared.services.lock().names();
            for name in known.iter().filter(|name| !present.contains(*name)) {
                outcome.merge(self.put(name, None)?);
            }
            self.checks.retain(|name, _| present.contains(name));
            self.announced.retain(|name, _| present.contains(name));
            self.unpublished = true;
            self.troubles.retain(|name, _| present.contains(name));
            self.contested.retain(|name| present.contains(name));
            let mut services = self.shared.services.lock();
            if !services.finished() {
                outcome.merge(services.finish(&mut self.shared.maps.lock())?);
            }
        } else {
            for name in &dirty.services {
                outcome.merge(self.put_named(name)?);
            }
        }
        self.settle_contested(&mut outcome)?;
        self.after(outcome)?;
        self.shared
            .metrics
            .synced(dirty.since.unwrap_or(started), started);
        Ok(())
    }

    fn put_named(&mut self, name: &Arc<str>) -> Result<Outcome, DataplaneError> {
        let service = name.split_once('/').and_then(|(namespace, service)| {
            let reference = ObjectRef::<Service>::new(service).within(namespace);
            self.cluster.services.get(&reference)
        });
        self.put(name, service.as_deref())
    }

    /// Whoever was refused an address may have it once another lets go of one.
    fn settle_contested(&mut self, outcome: &mut Outcome) -> Result<(), DataplaneError> {
        if !outcome.released {
            return Ok(());
        }
        for name in self.contested.clone() {
            outcome.merge(self.put_named(&name)?);
        }
        let retried = {
            let mut services = self.shared.services.lock();
            services.retry_host_ports(&mut self.shared.maps.lock())?
        };
        outcome.merge(retried);
        Ok(())
    }

    /// Writes one service; without an object, removes it.
    fn put(&mut self, name: &Arc<str>, service: Option<&Service>) -> Result<Outcome, DataplaneError> {
        let view = View {
            node_name: &self.shared.config.node_name,
            nodes: &self.nodes,
            left_out: &self.left_out,
        };
        let (desired, mut troubles, check, balancer) = match service {
            None => (Both::default(), Vec::new(), None, None),
            Some(service) => {
                let slices = self.index.slices(name);
                let (desired, troubles) = model::service(service, slices, &view);
                let check = model::health_check(service, slices, &view);
                (desired, troubles, check, model::balancer(service, slices))
            }
        };
        self.unpublished |= put_or_remove(&mut self.checks, name, check);
        self.unpublished |= put_or_remove(&mut self.announced, name, balancer);
        let outcome = {
            let mut services = self.shared.services.lock();
            services.put(&mut self.shared.maps.lock(), name, &desired)?
        };
        if outcome.refused.is_empty() {
            self.contested.remove(name);
        } else {
            self.contested.insert(Arc::clone(name));
        }
        let taken = outcome.refused.iter().map(|Place { ip, port, protocol }| {
            format!("{ip} port {port} (protocol {protocol}) belongs to another service or host port")
        });
        troubles.extend(taken);
        if self.troubles.get(name).map_or(&[][..], Vec::as_slice) != troubles {
            for trouble in &troubles {
                tracing::warn!(service = %name, trouble, "a part of a service is left out");
            }
        }
        put_or_remove(
            &mut self.troubles,
            name,
            Some(troubles).filter(|troubles| !troubles.is_empty()),
        );
        Ok(outcome)
    }

    /// Tells everybody who waits for it what has changed.
    fn after(&mut self, outcome: Outcome) -> Result<(), DataplaneError> {
        {
            let mut services = self.shared.services.lock();
            services.forget(&mut self.shared.maps.lock())?;
        }
        self.withheld.extend(outcome.gone);
        self.tell_departed();
        if self.index.holders_changed() {
            self.tell_holders();
        }
        self.publish();
        self.shared.services_changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        let own = self.nodes.get(&self.shared.config.node_name);
        let state = health::State {
            checks: self.checks.clone(),
            node_stays: own.is_none_or(|node| node.stays),
            programmed: self.shared.services.lock().finished(),
        };
        let programmed = state.programmed;
        self.health.send_if_modified(|known| replace(known, state));
        if !programmed {
            // What an earlier agent announced stays until every service has been looked at.
            self.unpublished = true;
            return;
        }
        let mut addresses: BTreeMap<IpAddr, Option<BTreeSet<String>>> = BTreeMap::new();
        for (address, nodes) in self.announced.values().flat_map(|balancer| &balancer.addresses) {
            let nodes: Option<BTreeSet<String>> = nodes.clone().map(BTreeSet::from_iter);
            addresses
                .entry(*address)
                .and_modify(|known| {
                    *known = known.take().zip(nodes.clone()).map(|(mut known, more)| {
                        known.extend(more);
                        known
                    });
                })
                .or_insert(nodes);
        }
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, node)| node.announces)
            .map(|(name, node)| (name.clone(), node.addresses.clone()))
            .collect();
        let wanted = announce::Wanted { addresses, nodes };
        self.balancers
            .send_if_modified(|known| replace(known, Some(wanted)));
    }

    fn start_anew(&mut self) {
        self.dirty.everything = true;
        let mut services = self.shared.services.lock();
        let restarted = services.restart(&self.shared.maps.lock());
        if let Err(error) = restarted {
            tracing::error!(%error, "the service maps could not be read back");
        }
    }

    fn flush(&mut self) {
        let mut services = self.shared.services.lock();
        if services.due() != Some(Duration::ZERO) {
            return;
        }
        let flushed = services.flush(&mut self.shared.maps.lock());
        drop(services);
        if let Err(error) = flushed {
            tracing::error!(%error, "what is no longer used could not be removed from the maps");
            self.start_anew();
        }
    }
}

fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    if *known == new {
        return false;
    }
    *known = new;
    true
}

/// Whether the map changed.
fn put_or_remove<V: PartialEq>(map: &mut BTreeMap<Arc<str>, V>, key: &Arc<str>, value: Option<V>) -> bool {
    match value {
        None => map.remove(key).is_some(),
        Some(value) if map.get(key) == Some(&value) => false,
        Some(value) => {
            map.insert(Arc::clone(key), value);
            true
        }
    }
}
