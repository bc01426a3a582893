//! Making a container.

use std::path::Path;
use std::sync::Arc;

use containerd_client::services::v1::container::Runtime as ShimRuntime;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{Container, CreateContainerRequest, CreateTaskRequest};
use containerd_client::types::Mount;
use prost::Message;
use tonic::Code;

use super::ContainerSpec;
use super::status::Meta;
use crate::image::Loaded;
use crate::io::{ContainerIo, ContainerIoSpec};
use crate::oci::{self, Machine, user};
use crate::runtime::blocking;
use crate::sys::rootfs::{self, View};
use crate::{Runtime, RuntimeError, cgroup, sys};

/// containerd's shim for runc.
const SHIM: &str = "io.containerd.runc.v2";

/// The type that containerd gives an OCI configuration in JSON.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The longest id that containerd takes.
const ID_MAX: usize = 76;

/// Options of the runc shim (containerd's `runtime/v2/runc/options/oci.proto`), as far as we set them.
#[derive(Clone, PartialEq, Message)]
struct ShimOptions {
    /// Where runc keeps its state.
    #[prost(string, tag = "7")]
    root: String,
}

impl Runtime {
    /// Makes a container: snapshot, record and process, which waits for [`Runtime::start`].
    ///
    /// When it fails, nothing is left of it.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        check(spec)?;
        let bad = |reason: String| RuntimeError::BadSpec {
            id: spec.id.clone(),
            reason,
        };
        let Some(image) = self.load_image(&spec.image).await? else {
            return Err(RuntimeError::NoSuchImage(spec.image.clone()));
        };
        let snapshot = self.unpacked(&image, false).await?;
        let accounts = self.accounts(&image, &snapshot).await?;
        let user = user::resolve(&spec.user, &image.info.user, &accounts.0, &accounts.1).map_err(
            |user::Unknown(user)| RuntimeError::NoSuchUser {
                id: spec.id.clone(),
                user,
            },
        )?;
        let stop_signal = match spec.stop_signal.as_ref().or(image.info.stop_signal.as_ref()) {
            Some(text) => {
                signal_number(text).ok_or_else(|| bad(format!("unknown stop signal \"{text}\"")))?
            }
            None => libc::SIGTERM,
        };
        let machine = Machine {
            cgroups_path: self.cgroups.absolute(&spec.cgroup_parent, &spec.id),
            cgroup_v2: self.cgroups.is_v2(),
            permitted_capabilities: sys::permitted_capabilities(),
            oom_score_adj: sys::own_oom_score_adj(),
        };
        let oci_spec = oci::build(spec, &image.info, user, &machine).map_err(bad)?;
        let oci_spec = serde_json::to_vec(&oci_spec).map_err(|e| bad(e.to_string()))?;
        let meta = Meta::new(spec, &image.info.id, stop_signal);
        let _making = self.creating(&spec.id);
        self.put_record(spec, &meta, oci_spec).await?;
        // From here on there is something to take back.
        if let Err(error) = self.create_process(spec, &image, snapshot).await {
            if let Err(cleanup) = self.delete(&spec.id).await {
                tracing::warn!(container = spec.id, error = %cleanup, "cannot clean up a failed container");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Stores the container's record. It comes first: the garbage collector then keeps the snapshot that it
    /// names, and `delete` finds whatever a crash leaves.
    async fn put_record(
        &self,
        spec: &ContainerSpec,
        meta: &Meta,
        oci_spec: Vec<u8>,
    ) -> Result<(), RuntimeError> {
        let container = Container {
            id: spec.id.clone(),
            labels: meta.to_labels(&spec.labels),
            image: spec.image.clone(),
            runtime: Some(ShimRuntime {
                name: SHIM.to_owned(),
                options: Some(self.shim_options()),
            }),
            spec: Some(prost_types::Any {
                type_url: SPEC_TYPE.to_owned(),
                value: oci_spec,
            }),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: spec.id.clone(),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        match self.containers_client().create(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                Err(RuntimeError::ContainerExists(spec.id.clone()))
            }
            Err(status) => Err(RuntimeError::grpc(format!("create container {}", spec.id))(
                status,
            )),
        }
    }

    async fn create_process(
        &self,
        spec: &ContainerSpec,
        image: &Loaded,
        snapshot: String,
    ) -> Result<(), RuntimeError> {
        let io_spec = ContainerIoSpec {
            dir: self.io_dir(&spec.id),
            log_path: spec.log_path.clone(),
            logger: self.config.logger_binary.clone(),
            stdin: spec.stdin,
            tty: spec.tty,
        };
        let (cgroups, parent) = (
            self.cgroups.clone(),
            spec.cgroup_parent.trim_matches('/').to_owned(),
        );
        let prepared_io = blocking(move || {
            cgroups.make(&parent)?;
            ContainerIo::prepare(&io_spec)
        });
        let (mounts, io) = tokio::try_join!(self.prepare_rootfs(spec, image, snapshot), prepared_io)?;
        let request = CreateTaskRequest {
            container_id: spec.id.clone(),
            rootfs: mounts,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            terminal: spec.tty,
            options: Some(self.shim_options()),
            ..CreateTaskRequest::default()
        };
        let pid = self
            .tasks()
            .create(self.request(request))
            .await
            .map_err(RuntimeError::grpc(format!(
                "create the process of container {}",
                spec.id
            )))?
            .into_inner()
            .pid;
        // The shim has opened the fifos, so ours are no longer needed to keep them open.
        drop(io);
        self.cgroups.adopt(pid, spec.cgroup_parent.trim_matches('/'))
    }

    /// Makes the container's writable layer.
    async fn prepare_rootfs(
        &self,
        spec: &ContainerSpec,
        image: &Loaded,
        parent: String,
    ) -> Result<Vec<Mount>, RuntimeError> {
        let mut request = PrepareSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: spec.id.clone(),
            parent,
            ..PrepareSnapshotRequest::default()
        };
        let result = match self.snapshots().prepare(self.request(request.clone())).await {
            // The image was removed and is back, or somebody else cleaned up: look again.
            Err(status) if status.code() == Code::NotFound => {
                request.parent = self.unpacked(image, true).await?;
                self.snapshots().prepare(self.request(request)).await
            }
            other => other,
        };
        let answer = result.map_err(RuntimeError::grpc(format!(
            "prepare the root of container {}",
            spec.id
        )))?;
        Ok(answer.into_inner().mounts)
    }

    fn shim_options(&self) -> prost_types::Any {
        let options = ShimOptions {
            root: self.config.run_dir.join("runc").display().to_string(),
        };
        prost_types::Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.encode_to_vec(),
        }
    }

    /// The passwd and group files of an image, read once.
    async fn accounts(&self, image: &Loaded, snapshot: &str) -> Result<Arc<(String, String)>, RuntimeError> {
        if let Some(known) = self.images.accounts.lock().get(&image.info.id) {
            return Ok(Arc::clone(known));
        }
        let key = format!("orch-view-{}", sys::unique());
        let view = ViewSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.clone(),
            parent: snapshot.to_owned(),
            ..ViewSnapshotRequest::default()
        };
        let lease = self.lease().await?;
        let viewed = self.snapshots().view(lease.cover(self.request(view))).await;
        let read = match viewed {
            Ok(answer) => self.read_accounts(answer.into_inner().mounts).await,
            Err(status) => Err(RuntimeError::grpc(format!("view image {}", image.info.name))(
                status,
            )),
        };
        let remove = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key,
        };
        // Where this fails, the end of the lease removes it.
        let _ = self.snapshots().remove(self.request(remove)).await;
        self.release(lease).await;
        let accounts = Arc::new(read?);
        self.images
            .accounts
            .lock()
            .insert(image.info.id.clone(), Arc::clone(&accounts));
        Ok(accounts)
    }

    async fn read_accounts(&self, mut mounts: Vec<Mount>) -> Result<(String, String), RuntimeError> {
        let Some(mount) = mounts.pop() else {
            return Ok(Default::default());
        };
        let scratch = self.config.run_dir.join("scratch");
        let view = View {
            kind: mount.r#type,
            source: mount.source,
            options: mount.options,
        };
        blocking(move || {
            let mut files = rootfs::read_files(&view, &scratch, &["/etc/passwd", "/etc/group"])?.into_iter();
            Ok((files.next().unwrap_or_default(), files.next().unwrap_or_default()))
        })
        .await
    }
}

fn check(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    let bad = |reason: &str| {
        Err(RuntimeError::BadSpec {
            id: spec.id.clone(),
            reason: reason.to_owned(),
        })
    };
    let first = spec.id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = spec
        .id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !first || !rest || spec.id.len() > ID_MAX {
        return bad("not a usable id");
    }
    cgroup::checked(&spec.cgroup_parent)?;
    if spec.log_path == Path::new("") || !spec.log_path.is_absolute() {
        return bad("its log path is not absolute");
    }
    if let Some(mount) = spec
        .mounts
        .iter()
        .find(|mount| !mount.destination.starts_with('/'))
    {
        return bad(&format!(
            "mount destination \"{}\" is not absolute",
            mount.destination
        ));
    }
    Ok(())
}

/// The number of a signal given as `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3` (signal(7)).
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The C library keeps the first two real-time signals for itself.
    let (min, max) = (34, 64);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return Some(min + offset).filter(|n| (min..=max).contains(n));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('-')?.parse().ok()?
        };
        return Some(max - offset).filter(|n| (min..=max).contains(n));
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("quit"), Some(3));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(37));
        assert_eq!(signal_number("RTMAX"), Some(64));
        assert_eq!(signal_number("SIGFOO"), None);
        assert_eq!(signal_number("0"), None);
    }

    #[test]
    fn ids_and_paths_are_checked() {
        let good = ContainerSpec {
            id: "a1".to_owned(),
            cgroup_parent: "p".to_owned(),
            log_path: "/l".into(),
            ..ContainerSpec::default()
        };
        assert!(check(&good).is_ok());
        assert!(
            check(&ContainerSpec {
                id: "../x".to_owned(),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            check(&ContainerSpec {
                cgroup_parent: "a/../../b".to_owned(),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            check(&ContainerSpec {
                log_path: "l".into(),
                ..good
            })
            .is_err()
        );
    }
}
