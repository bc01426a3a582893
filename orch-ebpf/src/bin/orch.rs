//! Entry points of the eBPF programs.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the entry macros make functions that do not carry the docs written here"
)]

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use orch_ebpf::datapath::{
    pod,
    socket::{self, Kind},
    tunnel, uplink, xdp as driver,
};

/// Packets from a pod: at ingress of the node's side of its veth pair.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    pod::ingress(&ctx)
}

/// Packets that the network stack sends to a pod: at egress of the node's side of its veth pair.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    pod::egress(&ctx)
}

/// Packets from outside and from other nodes.
#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    uplink::ingress(&ctx)
}

/// Packets to the outside and to other nodes.
#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    uplink::egress(&ctx)
}

/// Packets from other nodes through the tunnel.
#[classifier]
pub fn tunnel_ingress(ctx: TcContext) -> i32 {
    tunnel::ingress(&ctx)
}

/// Packets to other nodes through the tunnel.
#[classifier]
pub fn tunnel_egress(ctx: TcContext) -> i32 {
    tunnel::egress(&ctx)
}

/// Frames from outside and from other nodes, at the uplink's driver.
#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    driver::uplink(&ctx)
}

macro_rules! socket_hooks {
    ($($name:ident $kind:ident $step:ident,)+) => {
        $(
            /// A system call's hook, see [`socket`].
            #[cgroup_sock_addr($name)]
            pub fn $name(ctx: SockAddrContext) -> i32 {
                socket::$step(&ctx, Kind::$kind)
            }
        )+
    };
}

socket_hooks! {
    connect4 V4 connect,
    connect6 V6 connect,
    sendmsg4 V4 sendmsg,
    sendmsg6 V6 sendmsg,
    recvmsg4 V4 restore,
    recvmsg6 V6 restore,
    getpeername4 V4 restore,
    getpeername6 V6 restore,
}

orch_ebpf::object!();
