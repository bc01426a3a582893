//! The handshakes that turn a request into a WebSocket or a SPDY connection.

use std::future::Future;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Failure;

/// The header in which SPDY clients offer protocols and the server names the one it takes.
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A connection after its handshake.
pub(super) type Connection = TokioIo<Upgraded>;

/// What a request asks to become, with the protocol chosen from its offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// RFC 6455.
    WebSocket(&'static str),
    /// SPDY/3.1.
    Spdy(&'static str),
}

/// Finds out what a request asks for. Of the protocols that are spoken here the first that the client offers too is
/// taken.
pub(super) fn negotiate(
    headers: &HeaderMap,
    websocket: &'static [&'static str],
    spdy: &'static [&'static str],
) -> Result<Kind, Failure> {
    let upgrade = headers
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let choose = |ours: &'static [&'static str], name: &HeaderName| {
        let offers = offers(headers, name);
        ours.iter()
            .copied()
            .find(|protocol| offers.iter().any(|offer| offer == protocol))
            .ok_or_else(|| {
                Failure::Forbidden(format!(
                    "unable to negotiate protocol: client supports [{}], server accepts [{}]",
                    offers.join(" "),
                    ours.join(" ")
                ))
            })
    };
    if upgrade.eq_ignore_ascii_case("websocket") {
        if headers
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_none_or(|v| v != "13")
        {
            return Err(Failure::BadRequest(
                "only WebSocket version 13 is supported".into(),
            ));
        }
        return choose(websocket, &header::SEC_WEBSOCKET_PROTOCOL).map(Kind::WebSocket);
    }
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return choose(spdy, &STREAM_PROTOCOL).map(Kind::Spdy);
    }
    Err(Failure::BadRequest("Upgrade request required".into()))
}

fn offers(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.is_empty())
        .collect()
}

/// Answers `101 Switching Protocols` and runs `then` on the connection that follows.
pub(super) fn accept<F, T>(request: Request, kind: Kind, then: F) -> Result<Response, Failure>
where
    F: FnOnce(Connection) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let headers = match kind {
        Kind::WebSocket(protocol) => {
            let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
            let key = key.ok_or_else(|| Failure::BadRequest("Sec-WebSocket-Key is missing".into()))?;
            let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
            vec![
                (header::UPGRADE, HeaderValue::from_static("websocket")),
                (
                    header::SEC_WEBSOCKET_ACCEPT,
                    accept.map_err(|error| Failure::Internal(error.to_string()))?,
                ),
                (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol)),
            ]
        }
        Kind::Spdy(protocol) => vec![
            (header::UPGRADE, HeaderValue::from_static("SPDY/3.1")),
            (STREAM_PROTOCOL, HeaderValue::from_static(protocol)),
        ],
    };
    switch(request, headers, then)
}

/// The same with any headers, of which one says what the connection becomes.
pub(super) fn switch<F, T>(
    mut request: Request,
    headers: Vec<(HeaderName, HeaderValue)>,
    then: F,
) -> Result<Response, Failure>
where
    F: FnOnce(Connection) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Failure::BadRequest("this connection cannot be upgraded".into()));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let connection = (header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .extend(headers.into_iter().chain([connection]));
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => then(TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(%error, "a client went away during its upgrade"),
        }
    });
    Ok(response)
}
