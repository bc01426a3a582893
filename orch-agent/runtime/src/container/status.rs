//! What containerd and the cgroups know about containers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::{
    Container, GetContainerRequest, GetRequest, ListContainersRequest, ListTasksRequest,
};
use containerd_client::types::v1::{Process, Status};
use tonic::Code;

use super::{ContainerSpec, ContainerState, ContainerStatus};
use crate::cgroup::Cgroups;
use crate::runtime::blocking;
use crate::stats::was_oom_killed;
use crate::{Runtime, RuntimeError};

/// Labels of ours begin with this; all others are the caller's.
const PREFIX: &str = "io.orch.runtime/";

const POD_UID: &str = "pod-uid";
const IMAGE_ID: &str = "image-id";
const CGROUP_PARENT: &str = "cgroup-parent";
const LOG_PATH: &str = "log-path";
const STDIN: &str = "stdin";
const TTY: &str = "tty";
const STOP_SIGNAL: &str = "stop-signal";

/// The exit code of a process whose end nobody saw (containerd's `UnknownExitStatus`).
pub(crate) const UNKNOWN_EXIT: i32 = 255;

/// What we remember of a container in its labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) pod_uid: String,
    pub(crate) image_id: String,
    pub(crate) cgroup_parent: String,
    pub(crate) log_path: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) stop_signal: i32,
}

impl Meta {
    pub(crate) fn new(spec: &ContainerSpec, image_id: &str, stop_signal: i32) -> Self {
        Self {
            pod_uid: spec.pod_uid.clone(),
            image_id: image_id.to_owned(),
            cgroup_parent: spec.cgroup_parent.trim_matches('/').to_owned(),
            log_path: spec.log_path.clone(),
            stdin: spec.stdin,
            stdin_once: spec.stdin && spec.stdin_once,
            tty: spec.tty,
            stop_signal,
        }
    }

    /// The labels of a container: the caller's and ours.
    pub(crate) fn to_labels(&self, callers: &BTreeMap<String, String>) -> HashMap<String, String> {
        let stdin = match (self.stdin, self.stdin_once) {
            (false, _) => "no",
            (true, false) => "yes",
            (true, true) => "once",
        };
        let own = [
            (POD_UID, self.pod_uid.clone()),
            (IMAGE_ID, self.image_id.clone()),
            (CGROUP_PARENT, self.cgroup_parent.clone()),
            (LOG_PATH, self.log_path.display().to_string()),
            (STDIN, stdin.to_owned()),
            (TTY, self.tty.to_string()),
            (STOP_SIGNAL, self.stop_signal.to_string()),
        ];
        let own = own
            .into_iter()
            .map(|(key, value)| (format!("{PREFIX}{key}"), value));
        callers.clone().into_iter().chain(own).collect()
    }

    fn from_labels(labels: &HashMap<String, String>) -> Self {
        let get = |key: &str| labels.get(&format!("{PREFIX}{key}")).cloned().unwrap_or_default();
        let stdin = get(STDIN);
        Self {
            pod_uid: get(POD_UID),
            image_id: get(IMAGE_ID),
            cgroup_parent: get(CGROUP_PARENT),
            log_path: get(LOG_PATH).into(),
            stdin: matches!(stdin.as_str(), "yes" | "once"),
            stdin_once: stdin == "once",
            tty: get(TTY) == "true",
            stop_signal: get(STOP_SIGNAL).parse().unwrap_or(libc::SIGTERM),
        }
    }
}

impl Runtime {
    /// All containers of the namespace that this runtime made.
    ///
    /// One whose making was cut short, or whose process went with a reboot, is [`ContainerState::Exited`] with
    /// exit code 255; it has a `started_at` only if it was started since the last boot. One whose shim does not answer in
    /// containerd's two seconds is what it was when last seen, with a `pid` of zero.
    pub async fn containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let filter = format!("labels.\"{PREFIX}{POD_UID}\"");
        let list = ListContainersRequest {
            filters: vec![filter],
        };
        // Records before tasks: a task is made after its record, so one that is missing is really missing,
        // unless the container is still being made or has gone meanwhile.
        let records = self
            .containers_client()
            .list(self.request(list))
            .await
            .map_err(RuntimeError::grpc("list containers"))?
            .into_inner()
            .containers;
        let tasks = self
            .tasks()
            .list(self.request(ListTasksRequest::default()))
            .await
            .map_err(RuntimeError::grpc("list tasks"))?
            .into_inner()
            .tasks;
        let mut tasks: HashMap<String, Process> =
            tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        let mut found = Vec::with_capacity(records.len());
        for record in records {
            let task = tasks.remove(&record.id);
            let there = match task {
                Some(_) => true,
                None => !self.is_creating(&record.id) && self.record(&record.id).await?.is_some(),
            };
            if there {
                found.push((record, task));
            }
        }
        self.statuses(found).await
    }

    /// One container, `None` if there is none of this id, or it is still being made.
    pub async fn container(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
        if self.is_creating(id) {
            return Ok(None);
        }
        let get = GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let mut tasks = self.tasks();
        let (record, task) = tokio::join!(self.record(id), tasks.get(self.request(get)));
        let Some(record) = record? else { return Ok(None) };
        let task = match task {
            Ok(answer) => answer.into_inner().process,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(RuntimeError::grpc(format!("look at the task of {id}"))(status)),
        };
        Ok(self.statuses(vec![(record, task)]).await?.pop())
    }

    /// containerd's record of a container.
    pub(crate) async fn record(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let request = GetContainerRequest { id: id.to_owned() };
        match self.containers_client().get(self.request(request)).await {
            Ok(answer) => Ok(answer.into_inner().container),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(RuntimeError::grpc(format!("look for container {id}"))(status)),
        }
    }

    /// A container's record and what we remember of it; an error when there is none.
    pub(crate) async fn require(&self, id: &str) -> Result<(Container, Meta), RuntimeError> {
        let record = self
            .record(id)
            .await?
            .ok_or_else(|| RuntimeError::NoSuchContainer(id.to_owned()))?;
        let meta = Meta::from_labels(&record.labels);
        Ok((record, meta))
    }

    /// A container's cgroup relative to our root.
    pub(crate) async fn container_cgroup(&self, id: &str) -> Result<String, RuntimeError> {
        let (_, meta) = self.require(id).await?;
        Ok(cgroup_path(&meta, id))
    }

    async fn statuses(
        &self,
        found: Vec<(Container, Option<Process>)>,
    ) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let cgroups = self.cgroups.clone();
        let io = self.config.run_dir.join("io");
        blocking(move || {
            let status = |(record, task): (Container, Option<Process>)| {
                let started_at = started_at(&io.join(&record.id), task.as_ref());
                status(&cgroups, record, task, started_at)
            };
            Ok(found.into_iter().map(status).collect())
        })
        .await
    }
}

pub(crate) fn cgroup_path(meta: &Meta, id: &str) -> String {
    format!("{}/{id}", meta.cgroup_parent)
}

/// The file that says when a container was started.
pub(crate) const STARTED_FILE: &str = "started";

fn started_at(io_dir: &std::path::Path, task: Option<&Process>) -> Option<jiff::Timestamp> {
    let running =
        task.is_some_and(|t| matches!(t.status(), Status::Running | Status::Paused | Status::Pausing));
    let written = std::fs::read_to_string(io_dir.join(STARTED_FILE))
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Started, but we died before writing it down: the process's directory is as old as the process.
    written.or_else(|| {
        let pid = task.filter(|_| running)?.pid;
        let modified = std::fs::metadata(format!("/proc/{pid}")).ok()?.modified().ok()?;
        jiff::Timestamp::try_from(modified).ok()
    })
}

fn status(
    cgroups: &Cgroups,
    record: Container,
    task: Option<Process>,
    started_at: Option<jiff::Timestamp>,
) -> ContainerStatus {
    let meta = Meta::from_labels(&record.labels);
    let state = match task.as_ref().map(Process::status) {
        Some(Status::Created) => ContainerState::Created,
        Some(Status::Running | Status::Paused | Status::Pausing) => ContainerState::Running,
        // The shim has not answered, which is no exit: a second process beside the first would be worse than to wait.
        Some(Status::Unknown) if started_at.is_some() => ContainerState::Running,
        Some(Status::Unknown) => ContainerState::Created,
        Some(Status::Stopped) | None => ContainerState::Exited,
    };
    let stopped = task.as_ref().filter(|t| t.status() == Status::Stopped);
    let exited = state == ContainerState::Exited;
    ContainerStatus {
        oom_killed: exited && was_oom_killed(cgroups, &cgroup_path(&meta, &record.id)),
        pod_uid: meta.pod_uid,
        image: record.image,
        image_id: meta.image_id,
        labels: record
            .labels
            .into_iter()
            .filter(|(key, _)| !key.starts_with(PREFIX))
            .collect(),
        created_at: record
            .created_at
            .and_then(to_jiff)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        state,
        pid: task.as_ref().filter(|_| !exited).map_or(0, |t| t.pid),
        exit_code: exited.then(|| stopped.map_or(UNKNOWN_EXIT, |t| t.exit_status as i32)),
        started_at: started_at.filter(|_| state != ContainerState::Created),
        finished_at: stopped.and_then(|t| t.exited_at).and_then(to_jiff),
        log_path: meta.log_path,
        tty: meta.tty,
        stdin: meta.stdin,
        stop_signal: meta.stop_signal,
        id: record.id,
    }
}

/// A point in time from containerd.
pub(crate) fn to_jiff(timestamp: prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(timestamp.seconds, timestamp.nanos).ok()
}
