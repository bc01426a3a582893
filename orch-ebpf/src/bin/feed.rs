//! Feeds frames to a program that is measured, see [`orch_ebpf::feed`].
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the entry macros make functions that do not carry the docs written here"
)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use orch_ebpf::feed::{FRAMES_MAX, Frame, Turn};

#[btf_map]
static FRAMES: Array<Frame, FRAMES_MAX> = Array::new();
#[btf_map]
static TURN: Array<Turn, 1> = Array::new();
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// A live frame.
#[xdp]
pub fn feed(ctx: XdpContext) -> u32 {
    if fill(&ctx).is_some() {
        // SAFETY: nothing here waits to be dropped.
        unsafe { MEASURED.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn fill(ctx: &XdpContext) -> Option<()> {
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: the kernel runs a call's frames one after another.
    let turn = unsafe { &mut *turn };
    let number = turn.fed.checked_rem(turn.frames)?;
    turn.fed = turn.fed.wrapping_add(1);
    let frame = FRAMES.get(number)?;
    let start = ctx.data();
    if start + size_of::<Frame>() > ctx.data_end() {
        return None;
    }
    let (from, to) = ((&raw const *frame).cast::<u8>(), start as *mut u8);
    // What is read of a driver's frame is in memory. Here it comes out of a CPU's queue of stores, and only if one store has
    // all of it: else the read waits for all that was written before, slots of flows that are far among it. So each field
    // behind Ethernet's header is written as a whole, and the first and the last two bytes by themselves.
    // SAFETY: within what was just checked; packets and maps may be used unaligned on the architectures that orch runs on.
    unsafe {
        for at in [0, size_of::<Frame>() - 2] {
            *to.add(at).cast::<u16>() = *from.add(at).cast::<u16>();
        }
        for at in (2..size_of::<Frame>() - 2).step_by(4) {
            *to.add(at).cast::<u32>() = *from.add(at).cast::<u32>();
        }
    }
    Some(())
}

orch_ebpf::object!();
