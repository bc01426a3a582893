//! What every request handler shares.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use orch_api::{ApiError, KINDS, Kind};
use orch_store::{
    Revision, Store,
    cache::{CacheError, Object, WatchCache},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::token::Tokens,
    metrics::Metrics,
    proxy::tunnel::Kubelets,
    services::{allocate::Allocator, nth_address},
};

/// How long a reader waits for the cache to show what it asked for; as long as in Kubernetes.
const FRESH_PATIENCE: Duration = Duration::from_secs(3);

/// What the API server is told on start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where `pki` is kept.
    pub data_dir: PathBuf,
    /// The addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// The address that nodes and pods reach the server at.
    pub advertise_address: IpAddr,
    /// Where cluster IPs come from: at most one network per family, the primary first.
    pub service_cidrs: Vec<IpNet>,
    /// The addresses of cluster DNS: not dealt out, but free for the Service that asks for them.
    pub cluster_dns: Vec<IpAddr>,
    /// Where node ports come from.
    pub node_port_range: RangeInclusive<u16>,
    /// The DNS domain of the cluster, e.g. `cluster.local`.
    pub cluster_domain: String,
}

/// All objects of one stored kind, from memory.
pub struct Collection {
    /// The kind, in its stored form.
    pub kind: &'static Kind,
    /// Its objects.
    pub cache: Arc<WatchCache>,
    /// The newest revision this server wrote with this prefix. All writes pass through here, so a cache that is as
    /// new as this shows everything.
    written: AtomicU64,
}

impl Collection {
    /// Notes a write.
    pub fn wrote(&self, revision: Revision) {
        self.written.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// Waits until the cache shows every write that has returned.
    ///
    /// # Errors
    /// A timeout, when the store's watch lags badly.
    pub async fn fresh(&self) -> Result<(), ApiError> {
        self.reach(Revision(self.written.load(Ordering::Acquire))).await
    }

    /// Waits until the cache shows `revision`.
    ///
    /// # Errors
    /// `Too large resource version`, when it does not in time.
    pub async fn reach(&self, revision: Revision) -> Result<(), ApiError> {
        if self.cache.revision() >= revision && self.cache.revision().0 > 0 {
            return Ok(());
        }
        self.cache
            .wait_for(revision, FRESH_PATIENCE)
            .await
            .map_err(cache_error)
    }

    /// The object, as the cache shows it now.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache.get(&self.kind.key(namespace, name))
    }

    /// The object, decoded.
    #[must_use]
    pub fn get_value(&self, namespace: &str, name: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(namespace, name)?.json).ok()
    }
}

/// A cache that cannot serve a reader, as the reader is told.
pub(crate) fn cache_error(error: CacheError) -> ApiError {
    match error {
        CacheError::TooOld { .. } => ApiError::expired(error.to_string()),
        CacheError::Behind { asked, current } => ApiError::too_large_resource_version(asked.0, current.0),
        CacheError::TooSlow => ApiError::timeout(&error.to_string(), 1),
    }
}

/// What every request handler shares.
pub struct State {
    /// As told on start.
    pub config: ServerConfig,
    /// The truth.
    pub store: Arc<dyn Store>,
    /// By (group, plural) of the stored kind.
    collections: HashMap<(&'static str, &'static str), Arc<Collection>>,
    /// Signs and checks service account tokens.
    pub tokens: Tokens,
    /// Cluster IPs and node ports.
    pub allocator: Arc<Allocator>,
    /// Asks kubelets.
    pub kubelets: Kubelets,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Ends watches and listeners.
    pub stop: CancellationToken,
}

impl State {
    /// Starts a cache for every stored kind.
    pub(crate) fn new(
        config: ServerConfig,
        store: Arc<dyn Store>,
        tokens: Tokens,
        kubelets: Kubelets,
        stop: CancellationToken,
    ) -> Self {
        let collections = KINDS
            .iter()
            .filter(|kind| kind.is_stored() && kind.stored_kind() == *kind)
            .map(|kind| {
                let extract = Arc::new(|object: &Value| kind.strategy.fields(object));
                let cache = WatchCache::start(Arc::clone(&store), &kind.key_prefix(None), extract);
                (
                    (kind.group, kind.plural),
                    Arc::new(Collection {
                        kind,
                        cache,
                        written: AtomicU64::new(0),
                    }),
                )
            })
            .collect();
        let reserved: Vec<IpAddr> = (config.cluster_dns.iter().copied())
            .chain(config.service_cidrs.iter().filter_map(|net| nth_address(*net, 1)))
            .collect();
        let allocator = Allocator::new(&config.service_cidrs, &reserved, config.node_port_range.clone());
        Self {
            config,
            store,
            collections,
            tokens,
            allocator,
            kubelets,
            metrics: Metrics::default(),
            stop,
        }
    }

    /// Where objects of `kind` are, in whichever form they are stored.
    ///
    /// # Errors
    /// For kinds that are not stored at all.
    pub fn collection(&self, kind: &'static Kind) -> Result<&Arc<Collection>, ApiError> {
        let stored = kind.stored_kind();
        self.collections
            .get(&(stored.group, stored.plural))
            .ok_or_else(|| ApiError::verb_not_supported(kind, "get"))
    }

    /// A stored kind of the core group, by its plural.
    ///
    /// # Errors
    /// When the table has no such row.
    pub fn core(&self, plural: &'static str) -> Result<&Arc<Collection>, ApiError> {
        self.collections
            .get(&("", plural))
            .ok_or_else(|| ApiError::internal(format!("no kind is called {plural}")))
    }

    /// All collections.
    pub fn collections(&self) -> impl Iterator<Item = &Arc<Collection>> {
        self.collections.values()
    }
}
