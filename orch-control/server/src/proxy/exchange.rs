//! One HTTP/1.1 request over an open connection: streamed both ways, upgraded connections joined byte by byte.

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Sends `request` (its URI is path and query only) over `stream` to `host` and streams what comes back.
///
/// When both sides agree to upgrade, `on_upgrade` (the client's side) is joined with the server's: from then on
/// bytes pass untouched until either side closes.
///
/// # Errors
/// When the other side does not speak HTTP.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    mut request: Request<Body>,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    strip(request.headers_mut(), on_upgrade.is_some());
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = on_upgrade
    {
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            match tokio::try_join!(client, server) {
                Ok((client, server)) => {
                    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                    // Either side may simply go away; that is how these sessions end.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
                Err(error) => tracing::debug!(%error, "a proxied upgrade failed"),
            }
        });
        return Ok(response.map(|_| Body::empty()));
    }
    strip(response.headers_mut(), false);
    Ok(response.map(Body::new))
}

/// Takes away what concerns one connection only (RFC 9110, 7.6.1), and the client's own credentials.
fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    const HOP_BY_HOP: [HeaderName; 5] = [
        HeaderName::from_static("keep-alive"),
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::TRAILER,
    ];
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    if !keep_upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}
