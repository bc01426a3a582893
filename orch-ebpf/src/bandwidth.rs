//! Limits of a pod's bandwidth, kept by token buckets (annotations `kubernetes.io/{in,e}gress-bandwidth`).

use crate::abi;

/// Name of the hash from [`BucketKey`] to [`Bucket`].
pub const BUCKETS_MAP: &str = "ORCH_BUCKETS";
/// Most limits, two for each pod.
pub const BUCKETS_MAX: usize = 8_192;

/// Whose limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey {
    /// Interface index of the node's side of the pod's veth pair.
    pub ifindex: u32,
    /// [`crate::policy::INGRESS`] for what the pod receives, [`crate::policy::EGRESS`] for what it sends.
    pub direction: u32,
}

abi!(BucketKey, size 8, align 4, { ifindex @ 0, direction @ 4 });

/// A token bucket. Two CPUs may take the same tokens at once; over time the rate holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Most bytes that may pass at once, but for a packet that is longer: it passes a full bucket.
    pub burst: u64,
    /// Bytes left when last taken from; written by the programs.
    pub tokens: u64,
    /// When that was, in nanoseconds of `CLOCK_MONOTONIC`, or from when on bytes are earned again after a packet longer than
    /// the burst; written by the programs.
    pub last: u64,
}

abi!(Bucket, size 32, align 8, { rate @ 0, burst @ 8, tokens @ 16, last @ 24 });
