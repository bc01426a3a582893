//! Stopping: one container with grace, a pod's traffic, and everything a pod has on the node.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use orch_runtime::ContainerState;
use tokio::{sync::mpsc, time::Instant};

use super::{
    context::{Context, Target},
    event::{Event, Exit},
    handler, id,
    id::Paths,
    resources::{self, Qos},
    volumes::mount,
};

/// What a process gets at least after a preStop hook that used up the grace period.
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long other nodes may need to hear that a pod no longer takes connections.
const SETTLE: Duration = Duration::from_millis(300);
/// How often a kill is repeated that does not show.
const INSIST: Duration = Duration::from_secs(5);

/// Stops one container: hook, signal, grace, kill. Ends when the container has ended; the actor usually ends it
/// earlier, on the runtime's word.
pub async fn container(target: Target, grace: Duration, hook: bool, events: mpsc::UnboundedSender<Event>) {
    let deadline = Instant::now() + grace;
    let before = target
        .container()
        .and_then(|c| c.lifecycle.as_ref())
        .and_then(|l| l.pre_stop.clone());
    if let Some(handler) = before.filter(|_| hook)
        && let Err(error) = Box::pin(handler::hook(&target, &handler, grace)).await
    {
        let text = format!("PreStopHook failed: {error}");
        target
            .context
            .warn(&target.pod, Some(target.slot), "FailedPreStopHook", text);
    }
    let host = &target.context.host;
    if let Some(exit) = ended(&target).await {
        let _ = events.send(Event::Exited {
            id: target.id.clone(),
            exit,
        });
        return;
    }
    let signal = match host.container(&target.id).await {
        Ok(Some(status)) if status.stop_signal > 0 => status.stop_signal,
        _ => libc::SIGTERM,
    };
    if let Err(error) = host.kill(&target.id, signal, false).await {
        tracing::warn!(id = target.id, %error, "stop signal not sent");
    }
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(AFTER_HOOK.min(grace));
    tokio::time::sleep(left).await;
    loop {
        if let Some(exit) = ended(&target).await {
            let _ = events.send(Event::Exited {
                id: target.id.clone(),
                exit,
            });
            return;
        }
        if let Err(error) = host.kill(&target.id, libc::SIGKILL, true).await {
            tracing::warn!(id = target.id, %error, "container not killed, trying again");
        }
        tokio::time::sleep(INSIST).await;
    }
}

/// How the container ended, if it has: for the case that the runtime's event was missed.
async fn ended(target: &Target) -> Option<Exit> {
    match target.context.host.container(&target.id).await {
        Ok(None) => Some(Exit {
            code: 137,
            at: Timestamp::now(),
            oom: false,
            message: None,
        }),
        Ok(Some(status)) if status.state == ContainerState::Exited => Some(exit_of(&status)),
        _ => None,
    }
}

/// How an exited container ended.
#[must_use]
pub fn exit_of(status: &orch_runtime::ContainerStatus) -> Exit {
    Exit {
        code: status.exit_code.unwrap_or(255),
        at: status.finished_at.unwrap_or_else(Timestamp::now),
        oom: status.oom_killed,
        message: None,
    }
}

/// Waits until no node should send the pod new connections, at most `limit`; at once for a pod that no service
/// selects.
pub async fn drain(context: Arc<Context>, pod: Arc<Pod>, ips: Vec<IpAddr>, limit: Duration) {
    if !is_selected(&context, &pod) {
        return;
    }
    let deadline = Instant::now() + limit;
    if pod.spec.as_ref().and_then(|s| s.host_network) != Some(true) {
        let all = futures::future::join_all(ips.into_iter().map(|ip| context.host.withdrawn(ip)));
        let _ = tokio::time::timeout_at(deadline, all).await;
    }
    tokio::time::sleep(SETTLE.min(deadline.saturating_duration_since(Instant::now()).max(SETTLE / 2))).await;
}

/// Whether a service in the pod's namespace selects it.
fn is_selected(context: &Context, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    context.cluster.services.state().iter().any(|s| {
        let selector = s.spec.as_ref().and_then(|s| s.selector.as_ref());
        s.metadata.namespace == pod.metadata.namespace
            && selector
                .is_some_and(|sel| !sel.is_empty() && sel.iter().all(|(k, v)| labels.get(k) == Some(v)))
    })
}

/// Removes what a pod has on the node, again and again until all of it is gone.
pub async fn tear_down(context: Arc<Context>, pod: Arc<Pod>, purge: bool) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let paths = context.paths(&pod);
    let parent = resources::cgroup_parent(Qos::of(&pod), &uid);
    let mut delay = Duration::from_millis(200);
    while let Err(error) = Box::pin(remove(
        &context,
        &uid,
        &paths,
        std::slice::from_ref(&parent),
        purge,
    ))
    .await
    {
        tracing::warn!(pod = pod.metadata.name, uid, %error, "pod not torn down, trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(30));
    }
}

/// Removes what is left on the node of a pod: address, namespaces, containers, volumes, logs, cgroups.
///
/// # Errors
/// What could not be removed, as text; calling again goes on from there.
pub async fn remove(
    context: &Context,
    uid: &str,
    paths: &Paths,
    cgroups: &[String],
    purge: bool,
) -> Result<(), String> {
    let host = &context.host;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    host.detach_pod(uid).await.map_err(|e| text(&e))?;
    host.remove_sandbox(uid).await.map_err(|e| text(&e))?;
    if purge {
        let prefix = id::pod_prefix(uid);
        for container in host.containers().await.map_err(|e| text(&e))? {
            if container.id.starts_with(&prefix) {
                host.delete(&container.id).await.map_err(|e| text(&e))?;
            }
        }
        remove_dir(&paths.logs).await?;
    }
    let dir = paths.pod.clone();
    let removed = tokio::task::spawn_blocking(move || mount::remove(&dir)).await;
    removed.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
    for cgroup in cgroups {
        host.remove_pod_cgroup(cgroup).await.map_err(|e| text(&e))?;
    }
    Ok(())
}

async fn remove_dir(dir: &Path) -> Result<(), String> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("failed to remove {}: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}
