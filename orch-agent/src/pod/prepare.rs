//! Everything a pod needs before its first container: namespaces, address, cgroup, volumes, `/etc` files.

use std::{net::IpAddr, path::Path, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use orch_runtime::{PodResources, Sandbox, SandboxSpec};

use super::{
    actor::Local,
    attachment,
    context::Context,
    event::Event,
    files, quantity, resolv,
    resources::{self, Qos, Resources},
    volumes::{self, VolumeError},
};

/// Makes or completes everything; failures are recorded as events on the pod.
pub async fn run(context: Arc<Context>, pod: Arc<Pod>, local: Arc<Local>) -> Event {
    let (network, volumes) = tokio::join!(
        Box::pin(network(&context, &pod, &local)),
        Box::pin(all_volumes(&context, &pod, &local))
    );
    let ips = match network {
        Ok(ips) => ips,
        Err(error) => {
            let text = format!("Failed to create pod sandbox: {error}");
            context.warn(&pod, None, "FailedCreatePodSandBox", text);
            return Event::PrepareFailed;
        }
    };
    if !volumes {
        return Event::PrepareFailed;
    }
    if let Err(error) = write_files(&context, &pod, &ips).await {
        let text = format!("Failed to create pod sandbox: {error}");
        context.warn(&pod, None, "FailedCreatePodSandBox", text);
        return Event::PrepareFailed;
    }
    Event::Prepared { ips }
}

/// Namespaces, address and cgroup.
async fn network(context: &Context, pod: &Pod, local: &Local) -> Result<Vec<IpAddr>, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let config = &context.config;
    let name = files::hostname(pod, &config.node_name, &config.cluster_domain);
    let hostname = name.kernel;
    if hostname != name.short && hostname.len() > files::MAX_KERNEL_HOSTNAME {
        return Err(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {hostname} is too long ({} \
             characters is the max, {} characters requested)",
            files::MAX_KERNEL_HOSTNAME,
            hostname.len()
        ));
    }
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let wanted = SandboxSpec {
        uid: uid.clone(),
        hostname,
        sysctls: sysctls
            .into_iter()
            .flatten()
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        host_network: spec.host_network == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
    };
    let parent = resources::cgroup_parent(Qos::of(pod), &uid);
    let limits = pod_resources(&spec);
    let host = &context.host;
    let cgroup = async { host.set_pod_cgroup(&parent, &limits).await.map_err(|e| text(&e)) };
    let attached = async {
        let sandbox = host.create_sandbox(&wanted).await.map_err(|e| text(&e))?;
        let ips = match &sandbox {
            Sandbox { net: Some(netns), .. } if !wanted.host_network => {
                let attachment = attachment::attachment(pod, netns.clone()).map_err(|e| text(&e))?;
                host.attach_pod(&attachment).await.map_err(|e| text(&e))?
            }
            _ => config.node_ips.clone(),
        };
        *local.sandbox.lock() = sandbox;
        Ok(ips)
    };
    let (cgroup, attached) = tokio::join!(cgroup, attached);
    cgroup.and(attached)
}

/// Requests of all containers together, and limits where every container has one.
fn pod_resources(spec: &PodSpec) -> PodResources {
    let all: Vec<Resources> = spec.containers.iter().map(Resources::of).collect();
    let sum = |get: fn(&Resources) -> Option<i64>| -> Option<u64> {
        u64::try_from(all.iter().map(|r| get(r).unwrap_or(0)).sum::<i64>()).ok()
    };
    let has_init = spec.init_containers.as_ref().is_some_and(|i| !i.is_empty());
    // An init container without limits may use what it finds: no limit of the pod's own then.
    let limit = |get: fn(&Resources) -> Option<i64>| {
        (!has_init && !all.is_empty() && all.iter().all(|r| get(r).is_some()))
            .then(|| sum(get))
            .flatten()
    };
    let whole = spec.resources.as_ref();
    let of_pod = |name: &str| whole.and_then(|r| r.limits.as_ref()).and_then(|m| m.get(name));
    let unsigned = |n: i64| u64::try_from(n).ok();
    PodResources {
        cpu_request_millicores: sum(|r| r.cpu_request),
        cpu_limit_millicores: of_pod("cpu")
            .and_then(|q| quantity::milli(q).ok())
            .and_then(unsigned)
            .or_else(|| limit(|r| r.cpu_limit)),
        memory_limit_bytes: of_pod("memory")
            .and_then(|q| quantity::whole(q).ok())
            .and_then(unsigned)
            .or_else(|| limit(|r| r.memory_limit)),
        pids_limit: None,
    }
}

/// Makes every volume, all at the same time; tells of each that cannot be made.
async fn all_volumes(context: &Context, pod: &Pod, local: &Local) -> bool {
    let list = pod
        .spec
        .as_ref()
        .and_then(|s| s.volumes.as_deref())
        .unwrap_or_default();
    let one = async |volume| match volumes::set_up(context, pod, volume, &local.volumes).await {
        Ok(()) => true,
        Err(error) => {
            let text = format!(
                "MountVolume.SetUp failed for volume \"{}\" : {error}",
                volume.name
            );
            context.warn(pod, None, "FailedMount", text);
            false
        }
    };
    futures::future::join_all(list.iter().map(one))
        .await
        .into_iter()
        .all(|ok| ok)
}

/// Brings projected content up to date; what cannot be read keeps its old content.
pub async fn refresh(context: Arc<Context>, pod: Arc<Pod>, local: Arc<Local>) {
    all_volumes(&context, &pod, &local).await;
}

/// `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
async fn write_files(context: &Context, pod: &Pod, ips: &[IpAddr]) -> Result<(), VolumeError> {
    let config = &context.config;
    let paths = context.paths(pod);
    let name = files::hostname(pod, &config.node_name, &config.cluster_domain);
    let host_hosts = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
    let host_resolv = tokio::fs::read_to_string(&config.resolv_conf)
        .await
        .unwrap_or_default();
    let resolver = resolv::resolv_conf(pod, &config.cluster_dns, &config.cluster_domain, &host_resolv);
    for warning in resolver.warnings {
        context.warn(pod, None, "DNSConfigForming", warning);
    }
    let texts = [
        ("hosts", files::hosts(pod, ips, &name, &host_hosts)),
        ("resolv.conf", resolver.text),
        ("hostname", format!("{}\n", name.kernel)),
    ];
    let dir = paths.pod.clone();
    let write = move || {
        for (file, text) in &texts {
            write_if_new(&paths.etc(file), text)?;
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(write).await;
    done.unwrap_or_else(|e| Err(VolumeError::io("write", &dir)(std::io::Error::other(e))))
}

/// Writes a file in place (it may be mounted in running containers), unless it says so already.
fn write_if_new(path: &Path, text: &str) -> Result<(), VolumeError> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(VolumeError::io("create", parent))?;
    }
    std::fs::write(path, text).map_err(VolumeError::io("write", path))
}
