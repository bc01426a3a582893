//! A Kubernetes client whose transport is this server's own router: no socket, no TLS, no token.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body};
use http::Request;
use tower::ServiceExt as _;

use crate::auth::{authenticate::InProcess, identity::Identity};

/// A client that speaks as `identity`. Watches stream as over the network.
#[must_use]
pub fn in_process(router: Router, identity: Identity) -> kube::Client {
    let identity = InProcess(Arc::new(identity));
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (router, identity) = (router.clone(), identity.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(identity);
            Ok::<_, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never: Infallible| match never {}),
            )
        }
    });
    kube::Client::new(service, "default")
}
