//! Processes started beside a container's first one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, StartRequest, WaitRequest,
};
use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};

use crate::container::status::UNKNOWN_EXIT;
use crate::io::{Input, Output, make_fifo, open_input, open_output};
use crate::oci::types::{ConsoleSize, Process, Spec};
use crate::oci::user;
use crate::runtime::blocking;
use crate::sys::rootfs::{View, read_files};
use crate::{ContainerState, OutputStream, Runtime, RuntimeError, StdinStream, UserSpec, sys};

/// What to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal (stderr then comes with stdout).
    pub tty: bool,
    /// Give it an input.
    pub stdin: bool,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Run as this user instead of the container's.
    pub user: Option<UserSpec>,
    /// The terminal's first size: columns, rows.
    pub size: Option<(u16, u16)>,
}

/// A running process with its streams; take the streams out to use them side by side.
pub struct Exec {
    /// Input, if asked for.
    pub stdin: Option<StdinStream>,
    /// Standard output. Read or drop it: a process whose output nobody takes stops.
    pub stdout: Option<OutputStream>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<OutputStream>,
    /// Resizing, killing and waiting; cheap to clone.
    pub control: ProcessControl,
}

/// Control of a process in a container: of an exec, or of the container's own through attach.
#[derive(Clone)]
pub struct ProcessControl {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) container: String,
    /// Empty for the container's own process.
    pub(crate) exec_id: String,
    /// `None` while it runs.
    pub(crate) exit: watch::Receiver<Option<i32>>,
}

/// How much output of an [`Runtime::exec_sync`] is kept.
const SYNC_OUTPUT_MAX: usize = 16 << 10;

/// How long output is waited for after a command has ended: something it started may hold it open.
const DRAIN: Duration = Duration::from_secs(2);

/// The type that containerd gives an OCI process in JSON.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl ProcessControl {
    /// Sets the size of its terminal.
    pub async fn resize(&self, cols: u16, rows: u16) -> Result<(), RuntimeError> {
        self.runtime
            .resize_process(&self.container, &self.exec_id, cols, rows)
            .await
    }

    /// Waits for its end: the exit code, 128 + signal for a signal.
    pub async fn wait(&self) -> Result<i32, RuntimeError> {
        let mut exit = self.exit.clone();
        let code = exit.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        Ok(code.unwrap_or(UNKNOWN_EXIT))
    }

    /// Sends it a signal; fine when it has ended. Does nothing to an attached container.
    pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        if self.exec_id.is_empty() {
            return Ok(());
        }
        self.runtime
            .signal(&self.container, &self.exec_id, signal, false)
            .await
    }
}

/// What a short command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub exit_code: i32,
    /// The first 16 KiB of stdout and stderr as they came.
    pub output: Vec<u8>,
}

impl Runtime {
    /// Starts a process in a running container.
    pub async fn exec(self: &Arc<Self>, id: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let process = self.exec_process(id, &spec).await?;
        let exec_id = format!("exec-{}", sys::unique());
        let dir = self.io_dir(id).join(&exec_id);
        let (made, (tty, stdin)) = (dir.clone(), (spec.tty, spec.stdin));
        let result = match blocking(move || make_fifos(&made, tty, stdin)).await {
            Ok(()) => self.start_exec(id, &exec_id, &dir, &spec, process).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            remove_dir(dir).await;
        }
        result
    }

    /// Runs a command to its end; when it takes longer than `timeout` it is killed and the error is
    /// [`RuntimeError::Timeout`].
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let late = || RuntimeError::Timeout {
            seconds: timeout.as_secs_f64(),
        };
        let spec = ExecSpec {
            command: command.to_vec(),
            ..ExecSpec::default()
        };
        let mut exec = tokio::time::timeout_at(deadline, self.exec(id, spec))
            .await
            .map_err(|_| late())??;
        let output = parking_lot::Mutex::new(Vec::new());
        let (stdout, stderr) = (exec.stdout.take(), exec.stderr.take());
        let mut copying =
            Box::pin(async { tokio::join!(collect(stdout, &output), collect(stderr, &output)) });
        let mut copied = false;
        let exit_code = loop {
            tokio::select! {
                _ = &mut copying, if !copied => copied = true,
                exit = exec.control.wait() => break exit?,
                () = tokio::time::sleep_until(deadline) => {
                    exec.control.kill(libc::SIGKILL).await?;
                    return Err(late());
                }
            }
        };
        if !copied {
            // What is still open after that is not this command's.
            let _ = tokio::time::timeout(DRAIN, &mut copying).await;
        }
        drop(copying);
        Ok(ExecOutput {
            exit_code,
            output: output.into_inner(),
        })
    }

    /// The container's own process with another command.
    async fn exec_process(&self, id: &str, spec: &ExecSpec) -> Result<Process, RuntimeError> {
        let bad = |reason: String| RuntimeError::BadSpec {
            id: id.to_owned(),
            reason,
        };
        if spec.command.is_empty() {
            return Err(bad("no command to execute".to_owned()));
        }
        let (record, _) = self.require(id).await?;
        let recorded = record.spec.unwrap_or_default().value;
        let own: Spec = serde_json::from_slice(&recorded).map_err(|e| bad(e.to_string()))?;
        let size = spec.size.filter(|_| spec.tty);
        let mut process = Process {
            terminal: spec.tty,
            console_size: size.map(|(width, height)| ConsoleSize { height, width }),
            args: spec.command.clone(),
            ..own.process
        };
        // An exec's score is the container's by inheritance.
        process.oom_score_adj = None;
        if spec.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        for (name, value) in &spec.env {
            process.env.retain(|entry| entry.split('=').next() != Some(name));
            process.env.push(format!("{name}={value}"));
        }
        if let Some(user) = &spec.user {
            process.user = self.user_in(id, user).await?;
        }
        Ok(process)
    }

    /// A user by the account files of a running container.
    async fn user_in(&self, id: &str, spec: &UserSpec) -> Result<crate::oci::types::User, RuntimeError> {
        let status = self
            .container(id)
            .await?
            .ok_or_else(|| RuntimeError::NoSuchContainer(id.to_owned()))?;
        if status.state != ContainerState::Running {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let source = format!("/proc/{}/root", status.pid);
        let files = blocking(move || {
            let view = View {
                kind: "bind".to_owned(),
                source,
                options: Vec::new(),
            };
            read_files(&view, Path::new("/"), &["/etc/passwd", "/etc/group"])
        })
        .await?;
        user::resolve(spec, "", &files[0], &files[1]).map_err(|user::Unknown(user)| {
            RuntimeError::NoSuchUser {
                id: id.to_owned(),
                user,
            }
        })
    }

    async fn start_exec(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        dir: &Path,
        spec: &ExecSpec,
        process: Process,
    ) -> Result<Exec, RuntimeError> {
        let path = |wanted: bool, name: &str| match wanted {
            true => dir.join(name).display().to_string(),
            false => String::new(),
        };
        let bytes = serde_json::to_vec(&process).map_err(|e| RuntimeError::BadSpec {
            id: id.to_owned(),
            reason: e.to_string(),
        })?;
        let (stdout, held_out) = open_output(&dir.join("stdout"))?;
        let stderr = (!spec.tty)
            .then(|| open_output(&dir.join("stderr")))
            .transpose()?;
        let stdin = spec.stdin.then(|| open_input(&dir.join("stdin"))).transpose()?;
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            stdin: path(spec.stdin, "stdin"),
            stdout: path(true, "stdout"),
            stderr: path(!spec.tty, "stderr"),
            terminal: spec.tty,
            spec: Some(prost_types::Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: bytes,
            }),
            exec_id: exec_id.to_owned(),
        };
        self.tasks()
            .exec(self.request(request))
            .await
            .map_err(|status| match status.code() {
                tonic::Code::NotFound => RuntimeError::NotRunning(id.to_owned()),
                _ => RuntimeError::grpc(format!("exec in container {id}"))(status),
            })?;
        let start = StartRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        if let Err(status) = self.tasks().start(self.request(start)).await {
            self.forget_exec(id, exec_id).await;
            return Err(RuntimeError::grpc(format!("exec in container {id}"))(status));
        }
        // The shim has opened its ends.
        drop(held_out);
        let (stdout, stdout_done) = Output::new(stdout);
        let (stderr, stderr_done) = stderr.map(|(pipe, _held)| Output::new(pipe)).unzip();
        let (exited, exit) = watch::channel(None);
        let control = ProcessControl {
            runtime: Arc::clone(self),
            container: id.to_owned(),
            exec_id: exec_id.to_owned(),
            exit,
        };
        let dones = [Some(stdout_done), stderr_done];
        tokio::spawn(reap(
            Arc::clone(self),
            id.to_owned(),
            exec_id.to_owned(),
            dir.to_owned(),
            exited,
            dones,
        ));
        let stdin = stdin.map(|pipe| {
            let runtime = Arc::clone(self);
            let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
            let close = move || runtime.close_stdin_later(id, exec_id);
            Box::pin(Input::new(pipe, close)) as StdinStream
        });
        Ok(Exec {
            stdin,
            stdout: Some(Box::pin(stdout)),
            stderr: stderr.map(|output| Box::pin(output) as OutputStream),
            control,
        })
    }

    /// Tells the shim to close its own writing end of an input, so that the process sees the end.
    pub(crate) fn close_stdin_later(self: Arc<Self>, container_id: String, exec_id: String) {
        let Ok(handle) = tokio::runtime::Handle::try_current() else {
            return;
        };
        handle.spawn(async move {
            let request = CloseIoRequest {
                container_id,
                exec_id,
                stdin: true,
            };
            if let Err(status) = self.tasks().close_io(self.request(request)).await {
                tracing::debug!(
                    error = status.message(),
                    "cannot close an input; its process has ended"
                );
            }
        });
    }

    /// Waits for a process's end; `None` if it cannot be known.
    pub(crate) async fn wait_exit(&self, id: &str, exec_id: &str) -> Option<i32> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        match self.tasks().wait(self.request(request)).await {
            Ok(answer) => Some(answer.into_inner().exit_status as i32),
            Err(status) => {
                tracing::debug!(
                    container = id,
                    error = status.message(),
                    "cannot wait for a process"
                );
                None
            }
        }
    }

    async fn forget_exec(&self, id: &str, exec_id: &str) {
        let request = DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        if let Err(status) = self.tasks().delete_process(self.request(request)).await {
            tracing::debug!(container = id, error = status.message(), "cannot remove an exec");
        }
    }
}

/// Waits for an exec's end and removes what is left of it, but not before its output was read or dropped: the
/// shim would cut it off.
async fn reap(
    runtime: Arc<Runtime>,
    id: String,
    exec_id: String,
    dir: PathBuf,
    exited: watch::Sender<Option<i32>>,
    dones: [Option<oneshot::Receiver<()>>; 2],
) {
    let code = runtime.wait_exit(&id, &exec_id).await.unwrap_or(UNKNOWN_EXIT);
    exited.send_replace(Some(code));
    for done in dones.into_iter().flatten() {
        // An error means dropped, which is as good.
        let _ = done.await;
    }
    runtime.forget_exec(&id, &exec_id).await;
    remove_dir(dir).await;
}

fn make_fifos(dir: &Path, tty: bool, stdin: bool) -> Result<(), RuntimeError> {
    std::fs::create_dir_all(dir).map_err(RuntimeError::file("create", dir))?;
    for (name, wanted) in [("stdin", stdin), ("stdout", true), ("stderr", !tty)] {
        if wanted {
            make_fifo(&dir.join(name))?;
        }
    }
    Ok(())
}

async fn remove_dir(dir: PathBuf) {
    if let Err(error) = tokio::fs::remove_dir_all(&dir).await {
        tracing::debug!(dir = %dir.display(), %error, "cannot remove an exec's directory");
    }
}

/// Reads a stream to its end and keeps what there is room for.
async fn collect(stream: Option<OutputStream>, kept: &parking_lot::Mutex<Vec<u8>>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut kept = kept.lock();
        let room = SYNC_OUTPUT_MAX - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}
