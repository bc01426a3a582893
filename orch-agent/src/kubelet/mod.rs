//! The kubelet's HTTPS API: logs, exec, attach, port-forward, pods and metrics, for the API server and monitoring.
//!
//! Each request's layers, from the outside: TLS with an optional client certificate, authentication (a certificate of
//! the cluster's CA, else 401), authorisation (`system:masters` or the API server, else 403), the route. Delegated
//! authorisation by SubjectAccessReview and bearer tokens are not there yet: every other identity is refused.

pub mod auth;
pub mod backend;
mod dial;
mod error;
mod logs;
pub mod metrics;
mod netns;
mod node_backend;
mod portforward;
mod routes;
pub mod server;
mod session;
pub mod spdy;
mod spdy_streams;
mod stats;
mod tls;
mod upgrade;
mod websocket;

pub use backend::{Backend, Control, Process, Target};
pub use error::Failure;
pub use node_backend::NodeBackend;
pub use routes::{metrics_router, router};
pub use server::{KubeletConfig, KubeletError, serve};

#[cfg(test)]
mod tests;
