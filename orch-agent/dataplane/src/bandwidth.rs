//! Limits of pods' bandwidth: one token bucket for each direction that has a limit.

use orch_ebpf::{
    bandwidth::{BUCKETS_MAP, Bucket, BucketKey},
    endpoint::{LIMITED_EGRESS, LIMITED_INGRESS},
    policy::{EGRESS, INGRESS},
};

use crate::{
    DataplaneError,
    config::Bandwidth,
    maps::{Maps, failed, gone_or},
};

/// Least burst in bytes: one packet of the largest size that segmentation offload hands to a device by default.
const BURST_MIN: u64 = 64 * 1024;
/// A burst holds this part of a second's bytes, so that a fast limit is reached at all between two packets of a sender
/// that waits for acknowledgements.
const BURST_PART: u64 = 50;

/// Writes the pod's buckets, removes those that it no longer has, and returns the endpoint's flags.
///
/// # Errors
/// When the kernel refuses.
pub fn limit(maps: &mut Maps, ifindex: u32, bandwidth: Bandwidth) -> Result<u32, DataplaneError> {
    let mut flags = 0;
    let both = [
        (INGRESS, LIMITED_INGRESS, bandwidth.ingress),
        (EGRESS, LIMITED_EGRESS, bandwidth.egress),
    ];
    for (direction, flag, bits) in both {
        let key = BucketKey {
            ifindex,
            direction: direction.into(),
        };
        let Some(bits) = bits else {
            gone_or(maps.buckets.remove(&key)).map_err(failed(BUCKETS_MAP))?;
            continue;
        };
        flags |= flag;
        let bucket = bucket(bits);
        let known = maps.buckets.get(&key, 0);
        if !known.is_ok_and(|known| (known.rate, known.burst) == (bucket.rate, bucket.burst)) {
            maps.buckets.insert(key, bucket, 0).map_err(failed(BUCKETS_MAP))?;
        }
    }
    Ok(flags)
}

/// Removes both buckets of a pod's interface.
///
/// # Errors
/// When the kernel refuses.
pub fn release(maps: &mut Maps, ifindex: u32) -> Result<(), DataplaneError> {
    limit(maps, ifindex, Bandwidth::default()).map(drop)
}

/// The fastest bucket, faster than any interface: what the program earns in its four seconds fits 64 bits.
const RATE_MAX: u64 = 4_000_000_000_000;

/// A full bucket.
fn bucket(bits: u64) -> Bucket {
    let rate = (bits / 8).clamp(1, RATE_MAX);
    let burst = (rate / BURST_PART).max(BURST_MIN);
    Bucket {
        rate,
        burst,
        tokens: burst,
        last: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_whole_packet_and_counts_bytes() {
        assert_eq!((bucket(1_000).rate, bucket(1_000).burst), (125, BURST_MIN));
        let fast = bucket(10_000_000_000);
        assert_eq!((fast.rate, fast.burst), (1_250_000_000, 25_000_000));
    }
}
