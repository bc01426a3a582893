//! Seeing what the programs do: one reader of their events, and whoever listens behind a Unix socket.
//!
//! `hub` keeps the listeners and tells the programs whether there are any; `ring` reads the events; `record` puts names
//! to them, which `names` knows; `filter` says who gets which; `server` and `client` are the two ends of the socket,
//! and `text` is what a person sees.

pub mod client;
mod filter;
mod hub;
mod names;
mod record;
mod ring;
mod server;
pub mod summary;
mod text;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{MapData, RingBuf};
use orch_cluster::Cluster;
use orch_ebpf::config::{CONFIG_DROPS, CONFIG_FLOWS};
use tokio::task::JoinHandle;

pub(crate) use self::record::protocol;
pub use self::{
    filter::{Filter, Protocol},
    names::PodName,
    record::{Kind, Message, Peer, Record, Verdict},
    text::line,
};
use crate::shared::Shared;

/// Where the agent's monitor listens.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("monitor.sock")
}

/// Names of this node's pods, from whoever runs them.
pub type PodNames = Box<dyn Fn() -> Vec<PodName> + Send + Sync>;

/// Starts the reader and the socket.
pub fn start(shared: &Arc<Shared>, cluster: &Arc<Cluster>, events: RingBuf<MapData>) -> Vec<JoinHandle<()>> {
    let maps = Arc::clone(shared);
    let switch = move |flags| {
        let change = |config: &mut orch_ebpf::config::Config| {
            config.flags = config.flags & !(CONFIG_DROPS | CONFIG_FLOWS) | flags;
        };
        if let Err(error) = maps.maps.lock().configure(change) {
            tracing::error!(%error, "the programs could not be told who listens to them");
        }
    };
    let hub = hub::Hub::new(ring::logs_drops(), switch);
    let names = Arc::new(names::Naming::new(Arc::clone(shared), Arc::clone(cluster)));
    let mut tasks = vec![
        tokio::spawn(ring::follow(events, Arc::clone(&hub), Arc::clone(&names))),
        tokio::spawn(summary::run(Arc::clone(shared))),
    ];
    let path = socket_path(&shared.config.run_dir);
    match server::listen(&path) {
        Ok(listener) => tasks.push(tokio::spawn(server::serve(listener, hub, names))),
        Err(error) => tracing::error!(path = %path.display(), %error, "nobody can monitor the data plane"),
    }
    tasks
}
