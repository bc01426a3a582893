//! The API server: PKI, TLS, authentication, authorisation, admission, the one object path, watches, discovery and
//! the proxies to kubelets and to pods.
//!
//! A kind is a row of [`orch_api::KINDS`]; nothing here is written for one, except for what admission and the
//! subresources of pods and services do. Left out for now, each refused in words: RBAC objects (rights are those of
//! [`auth::authorize`]), protobuf answers, server-side apply. One API server at a time may
//! run on a store: cluster IPs and node ports are dealt out from memory.

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod client;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod object;
pub mod pki;
pub mod proxy;
pub mod services;
pub mod state;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use orch_store::{Revision, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{
        identity::Identity,
        token::{TokenError, Tokens},
    },
    listener::TlsError,
    pki::{Pki, PkiError},
    proxy::tunnel::Kubelets,
    state::State,
};
pub use state::ServerConfig;

/// How long history is kept for watches and pages that lag; as long as Kubernetes does by default.
const HISTORY: Duration = Duration::from_secs(5 * 60);

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Certificates.
    #[error("prepare certificates: {0}")]
    Pki(#[from] PkiError),
    /// TLS.
    #[error("set up TLS: {0}")]
    Tls(#[from] TlsError),
    /// Tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A socket.
    #[error("listen on {address}: {source}{}", hint(source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The cluster's own objects.
    #[error("create the cluster's own objects: {0}")]
    Bootstrap(orch_api::ApiError),
}

/// What usually is behind a failure to listen.
fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another program uses this port: stop it, or choose another port",
        std::io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
        _ => "",
    }
}

/// A running API server.
pub struct Server {
    state: Arc<State>,
    pki: Pki,
    listeners: Vec<TcpListener>,
    tls: Arc<rustls::ServerConfig>,
}

impl Server {
    /// Binds the addresses, fills the caches and creates what every cluster has. Port 0 means any free one; the
    /// first address tells which.
    ///
    /// # Errors
    /// When a certificate, an address or the store cannot be used.
    pub async fn start(
        mut config: ServerConfig,
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> Result<Self, ServerError> {
        let pki = Pki::open(&config.data_dir)?;
        let mut listeners = Vec::with_capacity(config.listen.len());
        for address in &mut config.listen {
            let failed = |source| ServerError::Listen {
                address: *address,
                source,
            };
            let listener = TcpListener::bind(*address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            *address = bound;
            listeners.push(listener);
        }
        let tls = Arc::new(listener::tls_config(
            &pki.server(&server_names(&config))?,
            pki.ca_pem(),
        )?);
        let kubelets = Kubelets::new(&pki.kubelet_client()?, pki.ca_pem())?;
        let tokens = Tokens::new(&pki.service_account_key()?)?;
        let state = Arc::new(State::new(config, store, tokens, kubelets, stop));
        for collection in state.collections() {
            collection.cache.ready().await;
        }
        if let Ok(services) = state.core("services") {
            let (objects, _) = services.cache.list(&services.kind.key_prefix(None), |_| true);
            for object in objects {
                if let Ok(service) = serde_json::from_slice(&object.json) {
                    state.allocator.adopt(&service);
                }
            }
        }
        bootstrap::ensure(&state).await.map_err(ServerError::Bootstrap)?;
        let advertised = state.config.advertise_address;
        if advertised.is_loopback() || advertised.is_unspecified() {
            tracing::warn!(%advertised, "the Service kubernetes has no endpoints: pods cannot reach this address");
        }
        tokio::spawn(bootstrap::keep(Arc::clone(&state)));
        tokio::spawn(compact(Arc::clone(&state)));
        Ok(Self {
            state,
            pki,
            listeners,
            tls,
        })
    }

    /// The server without its sockets: requests carry their identity as an extension.
    pub fn router(&self) -> Router {
        router(Arc::clone(&self.state))
    }

    /// A client in this process that speaks as `identity`.
    #[must_use]
    pub fn client(&self, identity: Identity) -> kube::Client {
        client::in_process(self.router(), identity)
    }

    /// The certificate authority.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where the server listens, ports filled in.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.state.config.listen
    }

    /// Serves until the token that [`Self::start`] got is cancelled and running requests have ended.
    pub async fn serve(self) {
        let router = router(Arc::clone(&self.state));
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.listeners {
            let stop = self.state.stop.clone();
            tasks.spawn(listener::serve(
                listener,
                Arc::clone(&self.tls),
                router.clone(),
                stop,
            ));
        }
        tasks.join_all().await;
    }
}

fn router(state: Arc<State>) -> Router {
    Router::new().fallback(move |request: Request| {
        let state = Arc::clone(&state);
        // Boxed: the object path's future is large, and lives once per request.
        let answer: std::pin::Pin<Box<dyn Future<Output = axum::response::Response> + Send>> =
            Box::pin(http::handle(state, request));
        answer
    })
}

/// The names that clients may know the server by.
fn server_names(config: &ServerConfig) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .into();
    names.insert(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.insert(config.advertise_address.to_string());
    let first = |net: &ipnet::IpNet| services::nth_address(*net, 1);
    names.extend(
        config
            .service_cidrs
            .iter()
            .filter_map(first)
            .map(|ip| ip.to_string()),
    );
    names.extend(
        config
            .listen
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| ip.to_string()),
    );
    names
}

/// Forgets history that is older than [`HISTORY`].
async fn compact(state: Arc<State>) {
    let mut before: Option<Revision> = None;
    loop {
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(HISTORY) => {}
        }
        if let Some(revision) = before
            && let Err(error) = state.store.compact(revision).await
        {
            tracing::warn!(%error, "failed to compact the store");
        }
        before = state.store.revision().await.ok();
    }
}
