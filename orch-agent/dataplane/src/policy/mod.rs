//! NetworkPolicies: from the API's objects to identities, rules and the flags of endpoints.
//!
//! `compile` makes rules of policies, `identify` says who addresses are, `model` gives both numbers and decides on
//! the order of changes, `apply` carries them out. Pods on their node's network are no subjects, and peers only by
//! the node's address, as far as an `ipBlock` holds it: Kubernetes leaves both to the implementation.

#![allow(dead_code, reason = "half done")]
mod compile;
mod identify;
mod model;
mod numbers;
mod ports;
mod selector;
mod tables;
