//! Asking the kernel's routes.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::bpf_fib_lookup as fib_lookup,
};

use super::{family::Family, words};

/// `AF_INET` and `AF_INET6`.
const FAMILIES: (u8, u8) = (2, 10);

/// How a packet leaves.
pub struct Hop {
    /// The interface.
    pub ifindex: u32,
    /// Its hardware address and the next hop's, where that one is known.
    pub macs: Option<([u8; 6], [u8; 6])>,
}

/// How a packet from `source` to `destination` leaves that has come in by the interface `from`. `None` when it does not.
/// `ctx` is the context of a tc or XDP program.
#[inline(always)]
pub fn find<A: Family>(ctx: *mut c_void, from: u32, source: &A, destination: &A) -> Option<Hop> {
    let mut lookup = MaybeUninit::<bpf_fib_lookup>::uninit();
    // SAFETY: integers only.
    let lookup = unsafe { words::zeroed(&mut lookup) };
    lookup.family = if A::BITS == 32 { FAMILIES.0 } else { FAMILIES.1 };
    lookup.ifindex = from;
    // SAFETY: both unions have room for sixteen bytes.
    unsafe {
        (&raw mut lookup.__bindgen_anon_3).cast::<A>().write(*source);
        (&raw mut lookup.__bindgen_anon_4).cast::<A>().write(*destination);
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is valid, and the parameters are on the stack with their whole size.
    let found = unsafe { fib_lookup(ctx, &raw mut *lookup, size, 0) };
    let macs = match u32::try_from(found).ok()? {
        BPF_FIB_LKUP_RET_SUCCESS => Some((lookup.dmac, lookup.smac)),
        BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => None,
        _ => return None,
    };
    Some(Hop {
        ifindex: lookup.ifindex,
        macs,
    })
}
