//! Tests that need a running cluster.
