//! Limits of a pod's bandwidth: what is over the limit is dropped, and TCP slows down.

use aya_ebpf::helpers::bpf_ktime_get_ns;

use super::maps;
use crate::{bandwidth::BucketKey, event::DropReason};

/// Takes a packet's bytes out of the bucket.
///
/// # Errors
/// [`DropReason::Bandwidth`] when there are not as many.
#[inline(always)]
pub fn take(ifindex: u32, direction: u8, bytes: usize) -> Result<(), DropReason> {
    let key = BucketKey {
        ifindex,
        direction: u32::from(direction),
    };
    let Some(bucket) = maps::ORCH_BUCKETS.get_ptr_mut(key) else {
        return Ok(());
    };
    // SAFETY: the pointer is to a live element for the whole run, and its fields are single integers.
    let bucket = unsafe { &mut *bucket };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // More than four seconds fill any bucket that the agent makes; the bound keeps the product in 64 bits.
    let microseconds = now.saturating_sub(bucket.last).min(1 << 32) / 1000;
    let earned = microseconds * bucket.rate / 1_000_000;
    let tokens = bucket.tokens.saturating_add(earned).min(bucket.burst);
    let bytes = bytes as u64;
    let (needed, owed) = (bytes.min(bucket.burst), bytes.saturating_sub(bucket.burst));
    // Time that has earned nothing yet stays on the clock, or slow buckets would never fill.
    if earned > 0 {
        bucket.last = now;
    }
    if tokens < needed {
        if earned > 0 {
            bucket.tokens = tokens;
        }
        return Err(DropReason::Bandwidth);
    }
    bucket.tokens = tokens - needed;
    // An aggregate that no bucket holds takes a full one, and the time in which the rest is earned.
    if owed > 0 && bucket.rate > 0 {
        bucket.last = now + owed * 1_000_000_000 / bucket.rate;
    }
    Ok(())
}
