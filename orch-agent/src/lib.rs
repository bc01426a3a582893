//! The node agent: pods, probes, volumes, the node object and the kubelet API, as a library for its binary and tests.

pub mod bpf;
pub mod config;
pub mod keeper;
pub mod kubelet;
pub mod metrics;
pub mod monitor;
pub mod names;
pub mod network;
pub mod node;
pub mod pod;
pub mod run;

/// An error and its causes in one line, without repeating what an outer text includes already.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text.replace('\n', " ")
}
