//! System calls, and with them all of this crate's `unsafe`.

pub(crate) mod fd;
pub(crate) mod namespace;
pub(crate) mod rootfs;

use std::time::{SystemTime, UNIX_EPOCH};

/// Text that is unique on this machine, for temporary names and exec ids: time, process and a counter.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    format!(
        "{nanos:x}-{:x}-{:x}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

/// The capabilities this process may hand on, as a bit set (`CapPrm` of proc(5), bits of capabilities(7)).
pub(crate) fn permitted_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// This process's own OOM score adjustment.
pub(crate) fn own_oom_score_adj() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
