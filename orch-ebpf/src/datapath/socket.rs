//! Services resolved at the system call: a connection to a service is from its first packet one to a backend.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use aya_log_ebpf::error;

use super::{
    events, maps,
    service::{self, Client},
};
use crate::{
    Address, PROTOCOL_TCP, PROTOCOL_UDP,
    event::{DropReason, Path},
    service::{CLIENT_NAMESPACE, SCOPE_INTERNAL, Service, SocketKey, SocketOrigin},
};

/// Return value of the hooks: go on.
const ALLOW: i32 = 1;
/// Return value of the hooks: fail with `EPERM`, or with what `bpf_set_retval` has set.
const DENY: i32 = 0;
/// `ECONNREFUSED` of Linux on every architecture that orch runs on.
const ECONNREFUSED: i32 = 111;
/// The third word of an IPv4 address in IPv6 form (RFC 4291 section 2.5.5.2), as it stands in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// How a hook sees the address: as IPv4, or as IPv4 in IPv6 form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, of which only mapped addresses are ours.
    V6,
}

/// At `connect`: replaces a service by one of its backends.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    resolve(ctx, family, true)
}

/// At `sendmsg` on a UDP socket that is not connected: as [`connect`], with the same backend for the same socket.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    resolve(ctx, family, false)
}

/// At `recvmsg` on UDP and at `getpeername`: shows the service's address where the backend's would appear.
#[inline(always)]
pub fn restore(ctx: &SockAddrContext, family: Family) -> i32 {
    let sock = ctx.sock_addr;
    let Some(address) = address(sock, family) else {
        return ALLOW;
    };
    let key = SocketKey {
        cookie: cookie(ctx),
        address,
        port: port(sock),
        _pad: 0,
    };
    // SAFETY: copied at once; a reused slot belongs to another key and the lookup would not have found it.
    if let Some(origin) = unsafe { maps::ORCH_SOCKETS.get(key) } {
        let origin = *origin;
        write(sock, family, origin.address, origin.port);
    }
    ALLOW
}

#[inline(always)]
fn resolve(ctx: &SockAddrContext, family: Family, connecting: bool) -> i32 {
    let sock = ctx.sock_addr;
    // SAFETY: the kernel hands a valid context.
    let protocol = unsafe { (&raw const (*sock).protocol).read_volatile() } as u8;
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return ALLOW;
    }
    let Some(address) = address(sock, family) else {
        return ALLOW;
    };
    let port = port(sock);
    let Some(service) = service::find(address, port, protocol, SCOPE_INTERNAL) else {
        return ALLOW;
    };
    let cookie = cookie(ctx);
    let number = if connecting {
        service::random()
    } else {
        spread(cookie, &service)
    };
    // SAFETY: the kernel hands a valid context.
    let client = Client {
        id: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        kind: CLIENT_NAMESPACE,
    };
    match service::choose(&service, client, number) {
        Ok(choice) => {
            let backend = choice.backend;
            let key = SocketKey {
                cookie,
                address: backend.address,
                port: backend.port,
                _pad: 0,
            };
            // SAFETY: only compared.
            let known = unsafe { maps::ORCH_SOCKETS.get(key) }
                .is_some_and(|origin| origin.port == port && origin.address == address);
            if !known {
                // A refusal costs the socket only the service's name in `getpeername` and `recvmsg`.
                let _ = maps::ORCH_SOCKETS.insert(
                    key,
                    SocketOrigin {
                        address,
                        port,
                        _pad: 0,
                    },
                    0,
                );
            }
            write(sock, family, backend.address, backend.port);
            events::count(Path::Socket, 0);
            ALLOW
        }
        Err(reason) => {
            if matches!(reason, DropReason::BrokenService) {
                error!(
                    ctx,
                    "service {:i}:{} names a missing backend",
                    u32::from_be_bytes(address),
                    port
                );
                events::count_refusal(reason);
            } else {
                events::count_refusal(DropReason::SocketRefused);
            }
            // SAFETY: the helper takes an integer; connect and sendmsg hooks may call it.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
    }
}

/// The same number for the same socket and pool, spread evenly over sockets.
#[inline(always)]
fn spread(cookie: u64, service: &Service) -> u32 {
    let mixed = (cookie ^ (u64::from(service.pool) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the kernel hands a valid context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn address(sock: *mut bpf_sock_addr, family: Family) -> Option<Address> {
    // SAFETY: the kernel hands a valid context; volatile keeps each access the four bytes that the verifier allows.
    let word = unsafe {
        match family {
            Family::V4 => (&raw const (*sock).user_ip4).read_volatile(),
            Family::V6 => {
                let words = (&raw const (*sock).user_ip6).cast::<u32>();
                if words.read_volatile() != 0
                    || words.add(1).read_volatile() != 0
                    || words.add(2).read_volatile() != MAPPED
                {
                    return None;
                }
                words.add(3).read_volatile()
            }
        }
    };
    Some(word.to_ne_bytes())
}

#[inline(always)]
fn port(sock: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the kernel hands a valid context.
    u16::from_be(unsafe { (&raw const (*sock).user_port).read_volatile() } as u16)
}

#[inline(always)]
fn write(sock: *mut bpf_sock_addr, family: Family, address: Address, port: u16) {
    let word = u32::from_ne_bytes(address);
    // SAFETY: the kernel hands a valid context, and lets these hooks write the address and port.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*sock).user_ip4).write_volatile(word),
            Family::V6 => (&raw mut (*sock).user_ip6)
                .cast::<u32>()
                .add(3)
                .write_volatile(word),
        }
        (&raw mut (*sock).user_port).write_volatile(u32::from(port.to_be()));
    }
}
