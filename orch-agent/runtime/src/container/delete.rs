//! Removing a container.

use std::time::Duration;

use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{DeleteContainerRequest, DeleteTaskRequest, WaitRequest};
use tonic::{Code, Status};

use super::status::cgroup_path;
use crate::runtime::blocking;
use crate::{Runtime, RuntimeError};

/// How long a killed process may take to be gone; one in uninterruptible sleep may take longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl Runtime {
    /// Kills what runs and removes everything of a container but its log; fine when it is gone already.
    pub async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        let meta = match self.require(id).await {
            Ok((_, meta)) => Some(meta),
            Err(RuntimeError::NoSuchContainer(_)) => None,
            Err(error) => return Err(error),
        };
        self.delete_task(id).await?;
        let request = DeleteContainerRequest { id: id.to_owned() };
        gone(self.containers_client().delete(self.request(request)).await)
            .map_err(RuntimeError::grpc(format!("delete container {id}")))?;
        let request = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: id.to_owned(),
        };
        gone(self.snapshots().remove(self.request(request)).await)
            .map_err(RuntimeError::grpc(format!("remove the root of container {id}")))?;
        let (cgroups, io) = (self.cgroups.clone(), self.io_dir(id));
        let cgroup = meta.map(|meta| cgroup_path(&meta, id));
        blocking(move || {
            if let Some(path) = cgroup {
                cgroups.remove(&path)?;
            }
            match std::fs::remove_dir_all(&io) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(RuntimeError::file("remove", &io)(e))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    async fn delete_task(&self, id: &str) -> Result<(), RuntimeError> {
        let delete = || async {
            let request = DeleteTaskRequest {
                container_id: id.to_owned(),
            };
            gone(self.tasks().delete(self.request(request)).await)
        };
        match delete().await {
            Ok(()) => return Ok(()),
            // It runs.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::Unknown) => {}
            Err(status) => return Err(RuntimeError::grpc(format!("delete the task of {id}"))(status)),
        }
        self.kill(id, libc::SIGKILL, true).await?;
        let wait = WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        match tokio::time::timeout(KILL_TIMEOUT, self.tasks().wait(self.request(wait))).await {
            Ok(_) => {}
            Err(_) => {
                return Err(RuntimeError::Timeout {
                    seconds: KILL_TIMEOUT.as_secs_f64(),
                });
            }
        }
        delete()
            .await
            .map_err(RuntimeError::grpc(format!("delete the task of {id}")))
    }
}

/// Not being there is what deletion is for.
fn gone<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}
