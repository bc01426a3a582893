//! Checksums, each bit by bit as its standard says.

use std::net::IpAddr;

use super::{ICMP, octets};

/// The Internet checksum's sum (RFC 1071) of all parts, of which only the last may have an odd length.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum that a layer 4 header's checksum is about, with the pseudo header where there is one.
pub fn layer4(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    if protocol == ICMP {
        return sum(&[bytes]);
    }
    let length = (bytes.len() as u32).to_be_bytes();
    sum(&[
        &octets(source),
        &octets(destination),
        &[0, protocol],
        &length,
        bytes,
    ])
}

/// CRC-32C (RFC 9260 appendix A).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
