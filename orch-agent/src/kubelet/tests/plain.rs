//! The metrics' own listener, in plain HTTP.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::fake;

/// Without TLS, from a loopback address: nothing there is worth an identity.
#[tokio::test]
async fn the_plain_listener_serves_metrics_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let stop = CancellationToken::new();
    let served = tokio::spawn(crate::metrics::serve(address, Arc::new(fake(0)), stop.clone()));
    let get = |path: &'static str| async move {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let metrics = get("/metrics").await;
    assert!(
        metrics.starts_with("HTTP/1.1 200") && metrics.contains("\norch_dataplane_pods 7\n"),
        "{metrics}"
    );
    for path in ["/pods", "/containerLogs/ns/web/main", "/exec/ns/web/main"] {
        assert!(get(path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    stop.cancel();
    served.await.unwrap();
}
