//! Policies on a simulated kernel that looks up what the programs look up.

mod naive;
mod order;
mod random;
mod semantics;
mod world;
