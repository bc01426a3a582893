//! What others answer for the API server: kubelets (logs, exec, attach, port-forward, their own pages), and the
//! HTTP servers in pods.

mod any_certificate;
mod exchange;
mod html;
pub mod kubelet;
pub mod location;
pub mod tunnel;
pub mod workload;
