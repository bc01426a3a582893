//! SCTP's checksum (RFC 9260 appendix A): a CRC-32C of the whole packet, in which a change of the ports is one of the
//! first four bytes.
//!
//! CRCs are linear: the new one is the old one plus the CRC of a message that is the ports' difference and then as many
//! zeros as the packet goes on. A zero byte multiplies the register by x^8, so n bytes are a multiplication by a power of
//! x, which takes as many steps as n has bits. A step is a look into tables, since a verifier would walk each bit of it.

use aya_ebpf::programs::TcContext;

use super::{parse::Bytes as _, skb::failed};
use crate::event::DropReason;

/// The polynomial 0x1EDC6F41, least significant bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Bits of a packet's length.
const LENGTH_BITS: usize = 17;
/// Half bytes of a checksum.
const NIBBLES: usize = 8;

/// For `2^i` zero bytes what each value of each half byte of the register becomes.
static CARRY: [[[u32; 16]; NIBBLES]; LENGTH_BITS] = tables();

const fn tables() -> [[[u32; 16]; NIBBLES]; LENGTH_BITS] {
    let mut tables = [[[0; 16]; NIBBLES]; LENGTH_BITS];
    // x^8: the highest bit is x^0.
    let mut power = 0x8000_0000 >> 8;
    let mut bit = 0;
    while bit < LENGTH_BITS {
        let mut nibble = 0;
        while nibble < NIBBLES {
            let mut value = 0;
            while value < 16 {
                tables[bit][nibble][value] = multiply(power, (value as u32) << (4 * nibble));
                value += 1;
            }
            nibble += 1;
        }
        power = multiply(power, power);
        bit += 1;
    }
    tables
}

/// The product of two polynomials modulo the CRC's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        if a >> (31 - bit) & 1 != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 { (b >> 1) ^ POLYNOMIAL } else { b >> 1 };
        bit += 1;
    }
    product
}

/// Writes both ports, given as they stand in memory, and the checksum that follows from them; `end` is the packet's.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the packet cannot be written.
#[inline(never)]
pub fn rewrite_ports(
    ctx: &TcContext,
    layer4: usize,
    end: usize,
    from: u32,
    to: u32,
) -> Result<(), DropReason> {
    let field = ctx.read::<[u8; 4]>(layer4 + 8).ok_or(DropReason::RewriteFailed)?;
    let length = end.wrapping_sub(layer4);
    let mut crc = u32::from_le(from ^ to);
    for (bit, table) in CARRY.iter().enumerate() {
        if length >> bit & 1 != 0 {
            crc = carry(crc, table);
        }
    }
    let checksum = u32::from_le_bytes(field) ^ crc;
    ctx.store(layer4 + 8, &checksum.to_le_bytes(), 0)
        .map_err(failed)?;
    ctx.store(layer4, &to, 0).map_err(failed)
}

#[inline(always)]
fn carry(crc: u32, table: &[[u32; 16]; NIBBLES]) -> u32 {
    let mut carried = 0;
    for (nibble, values) in table.iter().enumerate() {
        carried ^= values[(crc >> (4 * nibble)) as usize & 15];
    }
    carried
}
