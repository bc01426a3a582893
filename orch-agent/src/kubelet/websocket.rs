//! Kubernetes' channels over WebSocket: `v4.channel.k8s.io` and `v5.channel.k8s.io`, and bytes tunnelled 1:1.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::session::{Input, Output, resize};

/// Channels and half-close: what kubectl prefers since 1.30.
pub(super) const V5: &str = "v5.channel.k8s.io";
/// Channels without half-close.
pub(super) const V4: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// How long a client may take to answer a goodbye.
const PATIENCE: Duration = Duration::from_secs(5);
/// In v5: the byte that follows names the channel that the sender closes.
const CLOSE: u8 = 255;

/// Takes over a connection whose handshake is done.
pub(super) async fn open<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(1 << 20));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Carries one session: messages become inputs, outputs become messages; closes after the Status. `hello` names a
/// channel whose empty first message tells the client that the streams are there.
pub(super) async fn carry<T>(
    socket: WebSocketStream<T>,
    half_close: bool,
    hello: Option<u8>,
    inputs: mpsc::Sender<Input>,
    mut outputs: mpsc::Receiver<Output>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    let receive = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            let Some(input) = input(&bytes, half_close) else {
                continue;
            };
            if inputs.send(input).await.is_err() {
                // The session has ended; the client still has to read its Status.
                break;
            }
        }
        while let Some(Ok(_)) = source.next().await {}
    };
    let send = async {
        if let Some(channel) = hello {
            sink.send(Message::binary(vec![channel])).await?;
        }
        while let Some(output) = outputs.recv().await {
            sink.send(Message::Binary(message(output))).await?;
        }
        sink.send(goodbye()).await
    };
    let mut receive = std::pin::pin!(receive);
    tokio::select! {
        () = &mut receive => {}
        result = send => match result {
            // A connection that is closed with something unread is reset, and what the client has not read yet is
            // lost with it: its own goodbye is waited for.
            Ok(()) => drop(tokio::time::timeout(PATIENCE, receive).await),
            Err(error) => tracing::debug!(%error, "a WebSocket client went away"),
        },
    }
}

/// kubectl takes any other end than "normal" (RFC 6455, 7.4.1) for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    }))
}

/// The channel on which the client expects a first, empty message: the lowest that it reads.
pub(super) fn hello(stdout: bool, stderr: bool) -> u8 {
    match (stdout, stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    }
}

fn input(message: &Bytes, half_close: bool) -> Option<Input> {
    let (channel, rest) = message.split_first()?;
    match *channel {
        STDIN if !rest.is_empty() => Some(Input::Stdin(message.slice(1..))),
        RESIZE => resize(rest),
        CLOSE if half_close && rest == [STDIN] => Some(Input::StdinClosed),
        _ => None,
    }
}

fn message(output: Output) -> Bytes {
    let (channel, bytes) = match output {
        Output::Stdout(bytes) => (STDOUT, bytes),
        Output::Stderr(bytes) => (STDERR, bytes),
        Output::Status(bytes) => (ERROR, bytes),
    };
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put(bytes);
    message.freeze()
}

/// A byte stream inside the binary messages of a WebSocket; ends when either side does.
pub(super) fn tunnel<T>(socket: WebSocketStream<T>) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket.split();
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(bytes) if write.write_all(&bytes).await.is_err() => return,
                    Message::Close(_) => break,
                    _ => {}
                }
            }
            // Tells the reader of `near` that no more will come.
            let _ = write.shutdown().await;
        };
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(32 << 10);
                match read.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {
                        if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                            return;
                        }
                    }
                }
            }
            let _ = sink.send(goodbye()).await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
        }
    });
    near
}
