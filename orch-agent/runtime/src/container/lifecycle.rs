//! Starting and signalling a container.

use containerd_client::services::v1::{KillRequest, ResizePtyRequest, StartRequest};
use tonic::Code;

use super::status::STARTED_FILE;
use crate::{Runtime, RuntimeError};

impl Runtime {
    /// Starts a created container's process.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        // Written first: a process may have ended before we hear that it was started.
        let mark = self.io_dir(id).join(STARTED_FILE);
        match tokio::fs::write(&mark, jiff::Timestamp::now().to_string()).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(RuntimeError::NoSuchContainer(id.to_owned()));
            }
            Err(e) => return Err(RuntimeError::file("write", &mark)(e)),
        }
        let request = StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let Err(status) = self.tasks().start(self.request(request)).await else {
            return Ok(());
        };
        // Where it stays, the container's state still says that it was not started.
        let _ = tokio::fs::remove_file(&mark).await;
        match status.code() {
            Code::NotFound => Err(RuntimeError::NoSuchContainer(id.to_owned())),
            _ => Err(RuntimeError::grpc(format!("start container {id}"))(status)),
        }
    }

    /// Sends a signal to a container's process, or with `all` to every process in it; fine when it has
    /// ended already.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        self.signal(id, "", signal, all).await
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, id: &str, cols: u16, rows: u16) -> Result<(), RuntimeError> {
        self.resize_process(id, "", cols, rows).await
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: signal.unsigned_abs(),
            all,
        };
        match self.tasks().kill(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => Ok(()),
            Err(status) => Err(RuntimeError::grpc(format!("signal container {id}"))(status)),
        }
    }

    pub(crate) async fn resize_process(
        &self,
        id: &str,
        exec_id: &str,
        cols: u16,
        rows: u16,
    ) -> Result<(), RuntimeError> {
        let request = ResizePtyRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            width: cols.into(),
            height: rows.into(),
        };
        self.tasks()
            .resize_pty(self.request(request))
            .await
            .map_err(RuntimeError::grpc(format!(
                "resize the terminal of container {id}"
            )))?;
        Ok(())
    }
}
