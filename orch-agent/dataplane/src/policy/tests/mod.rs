//! Policies on a simulated kernel that looks up what the programs look up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod naive;
mod order;
mod random;
mod semantics;
mod world;
