//! SCTP's checksum (RFC 9260 appendix A): a CRC-32C of the whole packet, in which a change of the ports is one of the
//! first four bytes.
//!
//! CRCs are linear: the new one is the old one with the CRC of the difference, carried over the bytes that follow the
//! ports, added to it. Carrying over n zero bytes is a multiplication by a power of x, which takes as many steps as n
//! has bits.

use aya_ebpf::programs::TcContext;

use super::parse::Bytes as _;

/// The polynomial 0x1EDC6F41, least significant bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Most bits of a packet's length.
const LENGTH_BITS: usize = 17;

/// `carry[i]` is x to the power of `8 * 2^i`, the factor of `2^i` zero bytes.
const CARRY: [u32; LENGTH_BITS] = powers();

const fn powers() -> [u32; LENGTH_BITS] {
    let mut powers = [0; LENGTH_BITS];
    // x^8: the highest bit is x^0.
    powers[0] = 0x8000_0000 >> 8;
    let mut index = 1;
    while index < LENGTH_BITS {
        powers[index] = multiply(powers[index - 1], powers[index - 1]);
        index += 1;
    }
    powers
}

/// The product of two polynomials modulo the CRC's.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        // Without branches, since a verifier would follow both ways of each.
        product ^= b & 0_u32.wrapping_sub((a >> (31 - bit)) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
        bit += 1;
    }
    product
}

/// Writes both ports, given as they stand in memory, and the checksum that follows from them; `end` is the packet's. Gives zero,
/// or the kernel's refusal: a program's function has five arguments at most, and no room for a [`Result`] among them.
#[inline(never)]
pub fn rewrite_ports(ctx: &TcContext, layer4: usize, end: usize, from: u32, to: u32) -> i64 {
    let Some(field) = ctx.read::<[u8; 4]>(layer4 + 8) else {
        return -1;
    };
    let rest = end.wrapping_sub(layer4 + 4) as u32;
    // The difference as the first bytes of a message: four bytes pass through the register.
    let mut crc = u32::from_le(from ^ to);
    let mut bit = 0;
    while bit < 32 {
        crc = (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1));
        bit += 1;
    }
    let mut index = 0;
    while index < LENGTH_BITS {
        if rest >> index & 1 != 0 {
            crc = multiply(crc, CARRY[index]);
        }
        index += 1;
    }
    let checksum = u32::from_le_bytes(field) ^ crc;
    let written = ctx
        .store(layer4 + 8, &checksum.to_le_bytes(), 0)
        .and_then(|()| ctx.store(layer4, &to, 0));
    written.err().unwrap_or(0)
}
