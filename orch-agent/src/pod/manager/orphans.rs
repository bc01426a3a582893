//! What is on the node for pods that the API no longer has: stopped with grace, then removed.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use orch_runtime::{ContainerState, ContainerStatus};
use tokio::time::Instant;

use super::Manager;
use crate::pod::{
    context::Context,
    id::{self, Paths},
    resources::{Qos, cgroup_parent},
    stop,
};

impl Manager {
    /// Starts the removal of everything that belongs to no pod of the first full list.
    pub(super) fn adopt_orphans(self: &Arc<Self>, containers: HashMap<String, Vec<ContainerStatus>>) {
        let known: HashSet<String> = self.actors.lock().values().map(|h| h.uid.clone()).collect();
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let mut uids: HashSet<String> = containers.keys().cloned().collect();
            uids.extend(context.host.list_sandboxes().await.unwrap_or_default());
            uids.extend(context.host.attached().into_iter().map(|(uid, _)| uid));
            let root = &context.config.root_dir;
            uids.extend(names(&root.join("pods")));
            let logs: Vec<(String, String)> = names(&root.join("logs"))
                .into_iter()
                .filter_map(|name| Some((name.rsplit_once('_')?.1.to_owned(), name)))
                .collect();
            uids.extend(logs.iter().map(|(uid, _)| uid.clone()));
            for uid in uids
                .into_iter()
                .filter(|uid| !known.contains(uid) && !uid.is_empty())
            {
                let mine = containers.get(&uid).cloned().unwrap_or_default();
                let log = logs.iter().find(|(u, _)| *u == uid).map(|(_, name)| name.clone());
                tokio::spawn(Box::pin(remove(context.clone(), uid, mine, log)));
            }
        });
    }
}

/// The names in a directory, none if there is no such directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Stops and removes one orphan.
async fn remove(context: Arc<Context>, uid: String, containers: Vec<ContainerStatus>, log: Option<String>) {
    tracing::info!(
        uid,
        containers = containers.len(),
        "removing what is left of a pod that the API does not have"
    );
    let running: Vec<_> = containers
        .iter()
        .filter(|c| c.state == ContainerState::Running)
        .collect();
    let grace = running
        .iter()
        .filter_map(|c| c.labels.get(id::GRACE)?.parse().ok())
        .max()
        .unwrap_or(0);
    for container in &running {
        if let Err(error) = context
            .host
            .kill(&container.id, container.stop_signal, false)
            .await
        {
            tracing::warn!(id = container.id, %error, "stop signal not sent to an orphan");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(grace);
    let mut events = context.host.events();
    while !running.is_empty() && Instant::now() < deadline {
        let mut alive = false;
        for container in &running {
            let status = context.host.container(&container.id).await;
            alive |= !matches!(status, Ok(None))
                && !matches!(status, Ok(Some(s)) if s.state == ContainerState::Exited);
        }
        if !alive {
            break;
        }
        // Any event may be the one; looking again is cheap.
        let _ = tokio::time::timeout_at(deadline, events.recv()).await;
    }
    let mut paths = Paths::new(&context.config.root_dir, "", "", &uid);
    if let Some(name) = log {
        paths.logs = context.config.root_dir.join("logs").join(name);
    }
    let cgroups = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].map(|qos| cgroup_parent(qos, &uid));
    let mut delay = Duration::from_secs(1);
    while let Err(error) = Box::pin(stop::remove(&context, &uid, &paths, &cgroups, true)).await {
        tracing::warn!(uid, %error, "orphan not removed, trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(60));
    }
}
