//! [`Informer`]: one watch of one kind, kept in memory and shared by all who read it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, Resource};
use orch_shared::watch;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// An object's namespace (empty for cluster-wide ones) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace, or nothing.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object with this namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of `object`.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What happened to one object; the cache already has the new state.
pub struct Change<'a, K> {
    /// The object before; none if it is new here.
    pub old: Option<&'a Arc<K>>,
    /// The object now; none if it is gone.
    pub new: Option<&'a Arc<K>>,
}

impl<'a, K> Change<'a, K> {
    /// Every state of the object that the change speaks of.
    pub fn both(&self) -> impl Iterator<Item = &'a Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// See the module.
pub struct Informer<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: tokio::sync::watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default,
{
    /// An empty one, not yet watching.
    pub fn new() -> Self {
        Self {
            objects: RwLock::default(),
            handlers: RwLock::default(),
            synced: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Calls `handler` on every change, in order; it must be quick and must not wait.
    pub fn subscribe(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().get(key).cloned()
    }

    /// Everything in a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let from = objects.range(Key::new(namespace, "")..);
        from.take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Everything.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender is part of `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    fn tell(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in self.handlers.read().iter() {
            handler(&Change { old, new });
        }
    }

    fn set(&self, object: K) -> Key {
        let (key, object) = (Key::of(&object), Arc::new(object));
        let old = self.objects.write().insert(key.clone(), object.clone());
        // The same name with another uid is another object: one is gone and one is new.
        match old.filter(|old| old.meta().resource_version != object.meta().resource_version) {
            Some(old) if old.meta().uid != object.meta().uid => {
                self.tell(Some(&old), None);
                self.tell(None, Some(&object));
            }
            old => self.tell(old.as_ref(), Some(&object)),
        }
        key
    }

    fn remove(&self, key: &Key) {
        let old = self.objects.write().remove(key);
        if old.is_some() {
            self.tell(old.as_ref(), None);
        }
    }

    /// Watches until `token` is cancelled. `trim` drops what no controller reads.
    pub fn start(self: &Arc<Self>, api: Api<K>, config: Config, trim: fn(&mut K), token: &CancellationToken) {
        let (informer, token) = (self.clone(), token.clone());
        tokio::spawn(async move {
            let mut events = pin!(watch::events(api, config, trim));
            let mut listed = HashSet::new();
            while let Some(Some(event)) = token.run_until_cancelled(events.next()).await {
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(object) => drop(listed.insert(informer.set(object))),
                    Event::InitDone => {
                        let known: Vec<Key> = informer.objects.read().keys().cloned().collect();
                        known
                            .iter()
                            .filter(|key| !listed.contains(key))
                            .for_each(|key| informer.remove(key));
                        listed = HashSet::new();
                        informer.synced.send_replace(true);
                    }
                    Event::Apply(object) => drop(informer.set(object)),
                    Event::Delete(object) => informer.remove(&Key::of(&object)),
                }
            }
        });
    }

    /// The same for every object of the kind.
    pub fn start_all(self: &Arc<Self>, client: &Client, trim: fn(&mut K), token: &CancellationToken) {
        self.start(Api::all(client.clone()), Config::default(), trim, token);
    }
}
