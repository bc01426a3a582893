//! Garbage collector: objects go when the last of their owners has gone.
//!
//! # Flow
//! The metadata of every resource that discovery names is watched and kept as a [`graph`] of owners and dependents.
//! An owner's end, an object with owners that do not exist, and the finalizers `foregroundDeletion` and `orphan`
//! are work for [`collect`].
//! # Guarantees
//! An object is deleted only after the API server itself, not the graph, has said that its owners are gone or are
//! other objects of the same name; every write carries the uid it was decided on.
//! # Assumptions
//! Owners are in the same namespace or cluster-wide. Resources that appear later are found within half a minute.
//! # Errors
//! Objects whose owner's kind is unknown are left alone; all else is tried again with back-off.

mod collect;
mod graph;

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::ApiResource;
use kube::core::PartialObjectMeta;
use kube::discovery::{Scope, verbs};
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client, Discovery};
use orch_shared::watch;
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::graph::{Graph, Node};
use crate::Context;
use crate::core::{Queue, drive, is};

/// How often discovery is asked for new resources.
const REDISCOVER: Duration = Duration::from_secs(30);

/// Resources whose objects own nothing and are owned by nothing: watching them would only cost.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

type Meta = PartialObjectMeta<kube::core::DynamicObject>;

fn only_metadata(event: Event<kube::core::DynamicObject>) -> Event<Meta> {
    let meta = |o: kube::core::DynamicObject| Meta {
        types: o.types,
        metadata: o.metadata,
        _phantom: PhantomData,
    };
    match event {
        Event::Apply(object) => Event::Apply(meta(object)),
        Event::Delete(object) => Event::Delete(meta(object)),
        Event::InitApply(object) => Event::InitApply(meta(object)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

/// One resource that is watched.
#[derive(Clone, Debug)]
struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

/// An object's uid, as a key of the work queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Uid(String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<(String, String), Kind>>,
    queue: Arc<Queue<Uid>>,
}

/// Starts the collector.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::default());
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        graph: Mutex::default(),
        kinds: RwLock::default(),
        queue: queue.clone(),
    });
    tokio::spawn(collector.clone().discover(context.token.clone()));
    drive(
        "garbagecollector",
        queue,
        4,
        context.token.clone(),
        move |uid: Uid| {
            let collector = collector.clone();
            async move { collector.reconcile(&uid.0).await }
        },
    );
}

impl Collector {
    /// Keeps a watch running for every resource there is.
    async fn discover(self: Arc<Self>, token: CancellationToken) {
        let mut watched: HashMap<(String, String), CancellationToken> = HashMap::new();
        let mut wait = Duration::from_millis(100);
        loop {
            match Discovery::new(self.client.clone()).run().await {
                Ok(discovery) => {
                    wait = REDISCOVER;
                    let mut found = HashMap::new();
                    for (resource, capabilities) in discovery.groups().flat_map(|g| g.recommended_resources())
                    {
                        let verbs = [verbs::LIST, verbs::WATCH, verbs::DELETE];
                        let usable = verbs.iter().all(|v| capabilities.supports_operation(v));
                        let ignored = IGNORED.contains(&(resource.group.as_str(), resource.plural.as_str()));
                        if usable && !ignored {
                            let namespaced = capabilities.scope == Scope::Namespaced;
                            let key = (resource.group.clone(), resource.kind.clone());
                            found.insert(key, Kind { resource, namespaced });
                        }
                    }
                    watched.retain(|key, watch| {
                        let stays = found.contains_key(key);
                        if !stays {
                            watch.cancel();
                        }
                        stays
                    });
                    for (key, kind) in &found {
                        if !watched.contains_key(key) {
                            let child = token.child_token();
                            watched.insert(key.clone(), child.clone());
                            tokio::spawn(self.clone().watch(kind.clone(), child));
                        }
                    }
                    *self.kinds.write() = found;
                }
                Err(error) => {
                    debug!(%error, "discovery failed");
                    wait = (wait * 2).min(REDISCOVER);
                }
            }
            if token
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    async fn watch(self: Arc<Self>, kind: Kind, token: CancellationToken) {
        let api: Api<Meta> = Api::all_with(self.client.clone(), &kind.resource);
        let dynamic: Api<kube::core::DynamicObject> = Api::all_with(self.client.clone(), &kind.resource);
        let one = kube::api::ListParams::default().limit(1);
        // A server that does not know the media type says so; then whole objects are read and cut down here.
        let whole = matches!(dynamic.list_metadata(&one).await, Err(error) if is(&error, 406));
        if whole {
            warn!(resource = %kind.resource.plural, "the API server gives no metadata; watching whole objects");
        }
        let stream = match whole {
            true => watcher::watcher(dynamic, Config::default())
                .map(|e| e.map(only_metadata))
                .boxed(),
            false => watcher::watcher(api, Config::default()).boxed(),
        };
        let mut events = pin!(watch::steady(
            kind.resource.plural.clone(),
            stream,
            |_: &mut Meta| ()
        ));
        let mut listed = std::collections::HashSet::new();
        while let Some(Some(event)) = token.run_until_cancelled(events.next()).await {
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => {
                    listed.extend(object.metadata.uid.clone());
                    self.set(&kind, object);
                }
                Event::InitDone => {
                    let known = self
                        .graph
                        .lock()
                        .of_kind(&kind.resource.group, &kind.resource.kind);
                    known
                        .iter()
                        .filter(|uid| !listed.contains(*uid))
                        .for_each(|uid| self.remove(uid));
                    listed = Default::default();
                }
                Event::Apply(object) => self.set(&kind, object),
                Event::Delete(object) => self.remove(object.metadata.uid.as_deref().unwrap_or_default()),
            }
        }
    }

    fn set(&self, kind: &Kind, object: Meta) {
        let node = Node::new(&kind.resource.group, &kind.resource.kind, object.metadata);
        self.want(self.graph.lock().set(node));
    }

    fn remove(&self, uid: &str) {
        self.want(self.graph.lock().remove(uid));
    }

    fn want(&self, uids: Vec<String>) {
        uids.into_iter().for_each(|uid| self.queue.add(Uid(uid)));
    }
}
