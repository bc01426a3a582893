//! The two families of addresses.

use core::{fmt::Debug, hash::Hash, net::IpAddr};

/// An IPv4 address in wire order.
pub type Address4 = [u8; 4];
/// An IPv6 address in wire order.
pub type Address6 = [u8; 16];

/// An address of either family, in wire order.
pub trait Address: Copy + Default + Debug + Eq + Ord + Hash + Send + Sync + 'static {
    /// Length in bits.
    const BITS: u32;
    /// The end of the names of the family's maps: "4" or "6".
    const SUFFIX: &'static str;
    /// All bits zero: in a key it stands for every address of the node.
    const ANY: Self;

    /// The address if it is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    /// The address in the library's type.
    fn ip(self) -> IpAddr;
    /// The address in sixteen bytes, IPv4 in its mapped form (RFC 4291 section 2.5.5.2).
    fn wide(self) -> Address6;
}

impl Address for Address4 {
    const BITS: u32 = 32;
    const SUFFIX: &'static str = "4";
    const ANY: Self = [0; 4];

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        IpAddr::from(self)
    }

    #[inline(always)]
    fn wide(self) -> Address6 {
        let [a, b, c, d] = self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }
}

impl Address for Address6 {
    const BITS: u32 = 128;
    const SUFFIX: &'static str = "6";
    const ANY: Self = [0; 16];

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.octets()),
        }
    }

    fn ip(self) -> IpAddr {
        IpAddr::from(self)
    }

    #[inline(always)]
    fn wide(self) -> Address6 {
        self
    }
}

/// A word of an address that stands on a boundary of four bytes, as it stands in memory.
#[inline(always)]
pub(crate) fn word<A: Address>(address: &A, index: usize) -> u32 {
    // SAFETY: the callers count to `BITS / 32`, and every address in a key or a value is on such a boundary.
    unsafe { (&raw const *address).cast::<u32>().add(index).read() }
}
