//! Port-forward over SPDY streams: per connection one `data` and one `error` stream with the same request id.

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::JoinSet,
};

use super::{
    Backend, Failure,
    spdy::{Session, Stream},
};

/// The stream protocol of port-forward over SPDY.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";
/// The same, with SPDY inside a WebSocket (kubectl since 1.31).
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Streams whose partner has not come yet.
const MAX_HALVES: usize = 256;

/// Serves a connection's forwards until the client is gone.
pub(super) async fn serve<T>(io: T, backend: Arc<dyn Backend>, namespace: String, pod: String)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = match Session::start(io) {
        Ok(session) => session,
        Err(error) => return tracing::warn!(%error, "cannot start a SPDY session"),
    };
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut forwards = JoinSet::new();
    while let Some(stream) = session.accept().await {
        while forwards.try_join_next().is_some() {}
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        // Old clients send no id: their streams of one port belong together.
        let port = header("port");
        let id = if header("requestid").is_empty() {
            format!("port {port}")
        } else {
            header("requestid")
        };
        let kind = header("streamtype");
        let Some(other) = halves.remove(&id) else {
            if halves.len() < MAX_HALVES {
                halves.insert(id, stream);
            }
            continue;
        };
        let (data, error) = match (kind.as_str(), other.headers.get("streamtype").map(String::as_str)) {
            ("data", Some("error")) => (stream, other),
            ("error", Some("data")) => (other, stream),
            _ => {
                // Neither can be served; the client learns it from the resets.
                let _ = stream.output.reset().await;
                let _ = other.output.reset().await;
                continue;
            }
        };
        let (backend, namespace, pod) = (backend.clone(), namespace.clone(), pod.clone());
        forwards.spawn(async move {
            let result = match port.parse::<u16>() {
                Ok(port) if port > 0 => forward(data, backend.as_ref(), &namespace, &pod, port).await,
                _ => Err(Failure::BadRequest(format!("invalid port {port:?}"))),
            };
            if let Err(failure) = result {
                let text = format!("error forwarding port {port} to pod {namespace}/{pod}: {failure}");
                let _ = error.output.send(Bytes::from(text)).await;
            }
            let _ = error.output.finish().await;
        });
    }
    forwards.shutdown().await;
    session.close().await;
}

async fn forward(
    mut data: Stream,
    backend: &dyn Backend,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<(), Failure> {
    let stream = match backend.dial(namespace, pod, port).await {
        Ok(stream) => stream,
        Err(failure) => {
            let _ = data.output.reset().await;
            return Err(failure);
        }
    };
    let (mut read, mut write) = stream.into_split();
    let inward = async {
        while let Some(bytes) = data.input.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The peer may be gone already.
        let _ = write.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(32 << 10);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if data.output.send(buffer.split().freeze()).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = data.output.finish().await;
    };
    // The pod's end of file ends the connection; the client's leaves the answer to be read.
    tokio::pin!(outward);
    tokio::select! {
        () = &mut outward => {}
        () = inward => outward.await,
    }
    Ok(())
}
