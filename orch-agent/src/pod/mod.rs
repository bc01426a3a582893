//! The life of pods on a node.
