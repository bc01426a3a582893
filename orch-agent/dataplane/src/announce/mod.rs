//! Announcing load balancers' addresses: one node answers for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::watch;

use crate::shared::Shared;

/// What is to be announced, and by whom it may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Addresses with the names of the nodes that may announce them; `None` for all.
    pub addresses: BTreeMap<IpAddr, Option<BTreeSet<String>>>,
    /// The nodes that may announce anything, with their addresses.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

/// Runs until the task is dropped.
pub async fn run(_shared: Arc<Shared>, mut wanted: watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {}
}
