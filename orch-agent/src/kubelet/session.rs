//! One exec or attach, whatever carries it: streams in both directions, resizes, and the exit as a Status.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orch_runtime::{OutputStream, StdinStream};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinHandle,
};

use super::{Failure, Process};

/// How long output may still come after the process has ended: a child of it may hold the streams for ever.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes read from a process at once.
const CHUNK: usize = 32 << 10;

/// What the client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// The end of standard input.
    StdinClosed,
    /// The client's terminal has another size: columns, rows.
    Resize(u16, u16),
}

/// What the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The end: a `metav1.Status` as JSON.
    Status(Bytes),
}

/// A terminal's size as remotecommand clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a resize message; `None` when it is none.
pub(super) fn resize(json: &[u8]) -> Option<Input> {
    let size: Size = serde_json::from_slice(json).ok()?;
    Some(Input::Resize(size.width, size.height))
}

/// Runs until the process has ended or the client is gone (`inputs` ends). The last output is its Status.
pub(super) async fn run(
    process: Result<Process, Failure>,
    mut inputs: mpsc::Receiver<Input>,
    outputs: mpsc::Sender<Output>,
) {
    let process = match process {
        Ok(process) => process,
        Err(failure) => {
            // A client that is gone needs no answer.
            let _ = outputs.send(Output::Status(failed(&failure))).await;
            return;
        }
    };
    let control = process.control.clone();
    let mut copies = Copies(
        [
            process
                .stdout
                .map(|stream| copy(stream, outputs.clone(), Output::Stdout)),
            process
                .stderr
                .map(|stream| copy(stream, outputs.clone(), Output::Stderr)),
        ]
        .into_iter()
        .flatten()
        .collect(),
    );
    let (to_stdin, _writer) = match process.stdin {
        Some(stdin) => {
            let (send, receive) = mpsc::channel(16);
            (Some(send), Some(Copies(vec![tokio::spawn(feed(stdin, receive))])))
        }
        None => (None, None),
    };
    let result = tokio::select! {
        result = control.wait() => result,
        () = steer(&mut inputs, to_stdin, control.as_ref()) => {
            if let Err(error) = control.kill().await {
                tracing::debug!(%error, "cannot end a process whose client is gone");
            }
            return;
        }
    };
    let drained = async {
        for copy in &mut copies.0 {
            // A copy that panicked has no more output.
            let _ = copy.await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::debug!("output is still open after the process has ended");
    }
    let status = match result {
        Ok(code) => ended(code),
        Err(failure) => failed(&failure),
    };
    let _ = outputs.send(Output::Status(status)).await;
}

/// Tasks that end with the session.
struct Copies(Vec<JoinHandle<()>>);

impl Drop for Copies {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Takes the client's messages until it is gone.
async fn steer(
    inputs: &mut mpsc::Receiver<Input>,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    control: &dyn super::Control,
) {
    while let Some(input) = inputs.recv().await {
        match input {
            Input::Stdin(bytes) => {
                if let Some(open) = &stdin {
                    // Fails once the process reads no more, which is the process's business.
                    let _ = open.send(bytes).await;
                }
            }
            Input::StdinClosed => stdin = None,
            Input::Resize(columns, rows) => {
                if let Err(error) = control.resize(columns, rows).await {
                    tracing::debug!(%error, "cannot resize a terminal");
                }
            }
        }
    }
}

async fn feed(mut stdin: StdinStream, mut bytes: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = bytes.recv().await {
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    // The process may have closed its end already.
    let _ = stdin.shutdown().await;
}

fn copy(mut from: OutputStream, to: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if to.send(wrap(buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
}

/// The Status of a process that ended (k8s.io/apimachinery remotecommand: reason NonZeroExitCode, cause ExitCode).
fn ended(code: i32) -> Bytes {
    let status = if code == 0 {
        json!({"metadata": {}, "status": "Success"})
    } else {
        json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })
    };
    status.to_string().into()
}

/// The Status of a process that could not be started or watched.
fn failed(failure: &Failure) -> Bytes {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {failure}"),
        "details": {"causes": [{"message": failure.to_string()}]},
    })
    .to_string()
    .into()
}
