//! ICMP for those who write its messages themselves: the checksum, and raw sockets that see echo replies only (`raw(7)` and
//! RFC 3542 section 3.2, whose options no safe wrapper sets).

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

// From linux/icmp.h and linux/icmpv6.h.
const ICMP_FILTER: libc::c_int = 1;
const ICMPV6_FILTER: libc::c_int = 1;

/// The Internet checksum (RFC 1071) of some bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(high) << 8,
            _ => 0,
        })
        .fold(0, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// Keeps every ICMP message but those of one type from the socket, whose family `v6` says.
///
/// # Errors
/// When it is no raw ICMP socket of that family.
pub fn only(socket: &impl AsRawFd, v6: bool, kind: u8) -> io::Result<()> {
    // A bit that is set keeps its type out.
    let mut blocked = [u32::MAX; 8];
    if let Some(word) = blocked.get_mut(usize::from(kind / 32)) {
        *word &= !(1 << (kind % 32));
    }
    let fd = socket.as_raw_fd();
    if v6 {
        set(fd, libc::SOL_ICMPV6, ICMPV6_FILTER, &blocked)
    } else {
        // The filter of IPv4 knows the first 32 types.
        set(fd, libc::SOL_RAW, ICMP_FILTER, &blocked[..1])
    }
}

fn set(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &[u32]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(value)).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for the length given beside it, and outlives the call, which only reads it.
    let failed = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), length) } != 0;
    if failed {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
