//! The node agent: pods, probes, volumes, the node object and the kubelet API, as a library for its binary and tests.

pub mod pod;
