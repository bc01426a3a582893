//! Exec and attach over SPDY: named streams instead of channels (`v4.channel.k8s.io`).

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

use super::{
    session::{Input, Output, resize},
    spdy::{Session, Stream, StreamWriter},
};

/// The version of the stream protocol; its error stream carries a Status.
pub(super) const V4: &str = "v4.channel.k8s.io";

/// How long a client may take to open its streams, as in Kubernetes.
const OPEN: Duration = Duration::from_secs(30);

/// The streams that a request asks for, each `true` if it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// The server's halves of the streams that carry something to the client.
struct Writers {
    error: StreamWriter,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
}

/// Carries one session. Returns after its Status or when the client is gone.
pub(super) async fn carry<T>(
    io: T,
    wanted: Wanted,
    inputs: mpsc::Sender<Input>,
    mut outputs: mpsc::Receiver<Output>,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = match Session::start(io) {
        Ok(session) => session,
        Err(error) => return tracing::warn!(%error, "cannot start a SPDY session"),
    };
    let streams = match timeout(OPEN, collect(&mut session, wanted)).await {
        Ok(Some(streams)) => streams,
        Ok(None) | Err(_) => return tracing::debug!("a SPDY client opened too few streams"),
    };
    let mut readers = Vec::new();
    let mut writers = (None, None, None);
    for (name, stream) in streams {
        match name.as_str() {
            "stdin" => readers.push(tokio::spawn(stdin(stream, inputs.clone()))),
            "resize" => readers.push(tokio::spawn(resizes(stream, inputs.clone()))),
            "stdout" => writers.0 = Some(stream.output),
            "stderr" => writers.1 = Some(stream.output),
            _ => writers.2 = Some(stream.output),
        }
    }
    let Some(error) = writers.2 else { return };
    let writers = Writers {
        error,
        stdout: writers.0,
        stderr: writers.1,
    };
    let send = async {
        while let Some(output) = outputs.recv().await {
            if write(&writers, output).await.is_err() {
                return;
            }
        }
        for writer in [writers.stdout, writers.stderr, Some(writers.error)]
            .into_iter()
            .flatten()
        {
            // A client that is gone needs no end of file.
            let _ = writer.finish().await;
        }
    };
    // `inputs` stays open until the connection is lost: the end of stdin alone does not end the session.
    let gone = async { while session.accept().await.is_some() {} };
    tokio::select! {
        () = send => {}
        () = gone => {}
    }
    for reader in readers {
        reader.abort();
    }
    session.close().await;
}

async fn write(writers: &Writers, output: Output) -> std::io::Result<()> {
    match output {
        Output::Stdout(bytes) => match &writers.stdout {
            Some(writer) => writer.send(bytes).await,
            None => Ok(()),
        },
        Output::Stderr(bytes) => match &writers.stderr {
            Some(writer) => writer.send(bytes).await,
            None => Ok(()),
        },
        Output::Status(bytes) => writers.error.send(bytes).await,
    }
}

async fn collect(session: &mut Session, wanted: Wanted) -> Option<Vec<(String, Stream)>> {
    let asked = [
        wanted.stdin,
        wanted.stdout,
        wanted.stderr && !wanted.tty,
        wanted.tty,
    ];
    let expected = 1 + asked.iter().filter(|asked| **asked).count();
    let mut streams: Vec<(String, Stream)> = Vec::with_capacity(expected);
    while streams.len() < expected {
        let stream = session.accept().await?;
        let name = stream.headers.get("streamtype").cloned().unwrap_or_default();
        let known = matches!(name.as_str(), "error" | "stdin" | "stdout" | "stderr" | "resize");
        if !known || streams.iter().any(|(other, _)| *other == name) {
            // The client waits for nothing on it.
            let _ = stream.output.reset().await;
            continue;
        }
        streams.push((name, stream));
    }
    Some(streams)
}

async fn stdin(mut stream: Stream, inputs: mpsc::Sender<Input>) {
    while let Some(bytes) = stream.input.recv().await {
        if inputs.send(Input::Stdin(bytes)).await.is_err() {
            return;
        }
    }
    let _ = inputs.send(Input::StdinClosed).await;
}

/// The client writes one JSON document after the other, with no other separator than its encoder's line ends.
async fn resizes(mut stream: Stream, inputs: mpsc::Sender<Input>) {
    let mut pending = Vec::new();
    while let Some(bytes) = stream.input.recv().await {
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|b| *b == b'}') {
            let document: Vec<u8> = pending.drain(..=end).collect();
            if let Some(input) = resize(&document)
                && inputs.send(input).await.is_err()
            {
                return;
            }
        }
        if pending.len() > 4096 {
            return;
        }
    }
}
