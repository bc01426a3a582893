//! The gRPC health check (`grpc.health.v1.Health/Check`), spoken directly: one message each way.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::super::handler;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u8 = 1;

/// Asks for the health of `service` ("" for the server as a whole).
///
/// # Errors
/// A one-line reason when the answer is not SERVING or does not come within `limit`.
pub async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    match timeout(limit, Box::pin(ask(host, port, service, limit))).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{host}:{port}\" within {}s: context deadline exceeded",
            limit.as_secs()
        )),
    }
}

async fn ask(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    let text = |e: hyper::Error| e.to_string();
    let stream = handler::connect(host, port, limit)
        .await
        .map_err(|e| e.to_string())?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(text)?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(message(service)))
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await;
    let result = match answer {
        Ok(answer) => {
            let code = answer.headers().get("grpc-status").cloned();
            let body = answer.into_body().collect().await.map_err(text)?;
            let code = code.or_else(|| body.trailers().and_then(|t| t.get("grpc-status").cloned()));
            match code.as_ref().and_then(|c| c.to_str().ok()) {
                None | Some("0") => judge(&body.to_bytes()),
                Some("12") => Err("this server does not implement the grpc health protocol".to_owned()),
                Some(code) => Err(format!("grpc status {code}")),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    driver.abort();
    result
}

/// A length-prefixed `HealthCheckRequest { service = 1 }`.
fn message(service: &str) -> Bytes {
    let mut body = BytesMut::new();
    if !service.is_empty() {
        body.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            body.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        body.put_u8((length & 0x7f) as u8);
        body.put_slice(service.as_bytes());
    }
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(&body);
    out.freeze()
}

/// Reads a length-prefixed `HealthCheckResponse { status = 1 }`.
fn judge(body: &[u8]) -> Result<(), String> {
    match body.get(5..) {
        Some([0x08, SERVING, ..]) => Ok(()),
        Some([0x08, status, ..]) => Err(format!("service unhealthy (responded with status {status})")),
        Some([]) => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        _ => Err("the answer is no HealthCheckResponse".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_the_request_and_reads_the_answer() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(message(&"x".repeat(200))[5..8], [0x0a, 0xc8, 0x01]);
        assert_eq!(judge(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert!(judge(&[0, 0, 0, 0, 2, 8, 2]).is_err());
        assert!(judge(&[0, 0, 0, 0, 0]).is_err());
        assert!(judge(&[]).is_err());
    }
}
