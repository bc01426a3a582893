//! Services resolved at the system call: a connection to a service is from its first packet one to a backend.
//!
//! Not resolved here are connected UDP sockets of pods: their packets become flows like those of any other protocol.

use super::{
    events,
    family::Family,
    service::{self, Client},
};
use crate::{
    Address4, Address6, PROTOCOL_TCP, PROTOCOL_UDP,
    config::CONFIG_FLOWS,
    conntrack::{KIND_SERVICE, Tuple},
    event::{DropReason, EVENT_FLOW, Path},
    service::{
        Backend, SCOPE_INTERNAL, SERVICE_MEMBERS, SERVICE_SOURCES, STREAMS_MAX, Service, SocketKey,
        SocketOrigin, Stream,
    },
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};

/// The cookie of the node's own network namespace. The agent sets it.
#[unsafe(no_mangle)]
static ORCH_NODE_NAMESPACE: u64 = 0;

/// Return value of the hooks: go on.
const ALLOW: i32 = 1;
/// Return value of the hooks: fail with `EPERM`, or with what `bpf_set_retval` has set.
const DENY: i32 = 0;
/// `ECONNREFUSED` of Linux on every architecture that orch runs on.
const ECONNREFUSED: i32 = 111;
/// Turns of [`spread`] at most.
const MOST_JUMPS: u32 = 32;
/// The third word of an IPv4 address in IPv6 form (RFC 4291 section 2.5.5.2), as it stands in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// The kind of the socket whose hook it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, which may speak to a mapped IPv4 address.
    V6,
}

/// How a hook sees an address.
trait Seen: Family {
    /// The address, if the socket asks for one of this family.
    fn read(sock: *mut bpf_sock_addr, kind: Kind) -> Self;
    /// Replaces it.
    fn write(self, sock: *mut bpf_sock_addr, kind: Kind);
}

impl Seen for Address4 {
    #[inline(always)]
    fn read(sock: *mut bpf_sock_addr, kind: Kind) -> Self {
        let [.., word] = words(sock, kind);
        word.to_ne_bytes()
    }

    #[inline(always)]
    fn write(self, sock: *mut bpf_sock_addr, kind: Kind) {
        let word = u32::from_ne_bytes(self);
        // SAFETY: the kernel hands a valid context, and lets these hooks write the address.
        unsafe {
            match kind {
                Kind::V4 => (&raw mut (*sock).user_ip4).write_volatile(word),
                Kind::V6 => (&raw mut (*sock).user_ip6)
                    .cast::<u32>()
                    .add(3)
                    .write_volatile(word),
            }
        }
    }
}

impl Seen for Address6 {
    #[inline(always)]
    fn read(sock: *mut bpf_sock_addr, kind: Kind) -> Self {
        let [a, b, c, d] = words(sock, kind).map(u32::to_ne_bytes);
        let ([a, b, e, f], [g, h, i, j], [k, l, m, n], [o, p, q, r]) = (a, b, c, d);
        [a, b, e, f, g, h, i, j, k, l, m, n, o, p, q, r]
    }

    #[inline(always)]
    fn write(self, sock: *mut bpf_sock_addr, _: Kind) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self;
        let words = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ];
        // SAFETY: the kernel hands a valid context, and lets these hooks write the address word by word.
        unsafe {
            let to = (&raw mut (*sock).user_ip6).cast::<u32>();
            to.write_volatile(words[0]);
            to.add(1).write_volatile(words[1]);
            to.add(2).write_volatile(words[2]);
            to.add(3).write_volatile(words[3]);
        }
    }
}

/// The address's four words as they stand in memory.
#[inline(always)]
fn words(sock: *mut bpf_sock_addr, kind: Kind) -> [u32; 4] {
    // SAFETY: the kernel hands a valid context; volatile keeps each access the four bytes that the verifier allows.
    unsafe {
        match kind {
            Kind::V4 => [0, 0, MAPPED, (&raw const (*sock).user_ip4).read_volatile()],
            Kind::V6 => {
                let words = (&raw const (*sock).user_ip6).cast::<u32>();
                [
                    words.read_volatile(),
                    words.add(1).read_volatile(),
                    words.add(2).read_volatile(),
                    words.add(3).read_volatile(),
                ]
            }
        }
    }
}

/// Whether the address is one of IPv4.
#[inline(always)]
fn is_v4(sock: *mut bpf_sock_addr, kind: Kind) -> bool {
    let [a, b, c, _] = words(sock, kind);
    kind == Kind::V4 || (a == 0 && b == 0 && c == MAPPED)
}

/// At `connect`: replaces a service by one of its backends.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, kind: Kind) -> i32 {
    either(ctx, kind, true)
}

/// At `sendmsg` on a UDP socket that is not connected: as [`connect`], with the same backend for the same socket.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, kind: Kind) -> i32 {
    either(ctx, kind, false)
}

#[inline(always)]
fn either(ctx: &SockAddrContext, kind: Kind, connecting: bool) -> i32 {
    if is_v4(ctx.sock_addr, kind) {
        return resolve::<Address4>(ctx, kind, connecting);
    }
    resolve::<Address6>(ctx, kind, connecting)
}

/// At `recvmsg` on UDP and at `getpeername`: shows the service's address where the backend's would appear.
#[inline(always)]
pub fn restore(ctx: &SockAddrContext, kind: Kind) -> i32 {
    if is_v4(ctx.sock_addr, kind) {
        show_origin::<Address4>(ctx, kind);
    } else {
        show_origin::<Address6>(ctx, kind);
    }
    ALLOW
}

#[inline(always)]
fn show_origin<A: Seen>(ctx: &SockAddrContext, kind: Kind) {
    let sock = ctx.sock_addr;
    let cookie = cookie(ctx);
    let (address, port) = (A::read(sock, kind), port(sock));
    if protocol(sock) == PROTOCOL_TCP
        && let Some(stream) = stream::<A>(cookie)
        && stream.backend.same(address)
        && stream.backend_port == port
    {
        let (service, port) = (stream.service, stream.service_port);
        // Another socket with this slot may have come while it was read.
        if held(stream) == cookie {
            service.write(sock, kind);
            set_port(sock, port);
            return;
        }
    }
    // UDP's, and those of TCP that were connected by an agent whose streams had no map of their own.
    let key = SocketKey {
        cookie,
        address,
        port,
        _pad: 0,
    };
    // SAFETY: copied at once; a reused slot belongs to another key and the lookup would not have found it.
    if let Some(origin) = unsafe { A::sockets().get(key) } {
        let origin = *origin;
        origin.address.write(sock, kind);
        set_port(sock, origin.port);
    }
}

#[inline(always)]
fn resolve<A: Seen>(ctx: &SockAddrContext, kind: Kind, connecting: bool) -> i32 {
    let sock = ctx.sock_addr;
    let protocol = protocol(sock);
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return ALLOW;
    }
    let address = A::read(sock, kind);
    let port = port(sock);
    // SAFETY: the kernel hands a valid context.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let to_itself = address.is_loopback();
    if to_itself && !is_nodes(namespace) {
        return ALLOW;
    }
    let mut found = service::find(address, port, protocol, SCOPE_INTERNAL);
    if found.is_none() && to_itself {
        // It is one of the node's addresses, for the node.
        found = service::find_port::<A>(port, protocol, SCOPE_INTERNAL);
    }
    let Some(service) = found else {
        return ALLOW;
    };
    // Which of a pod's addresses asks is not known before the packet is.
    if service.flags & SERVICE_SOURCES != 0 && !(is_nodes(namespace) && admits_node::<A>(service)) {
        return ALLOW;
    }
    // A connected UDP socket outlives its backends, and no hook sees what it sends: a pod's packets are translated one by
    // one, as flows that find another backend when theirs goes.
    if connecting && protocol == PROTOCOL_UDP && service.count != 0 && !is_nodes(namespace) {
        return ALLOW;
    }
    let number = if connecting {
        service::random()
    } else {
        spread(cookie(ctx), service)
    };
    let client = Client::Namespace(namespace);
    let asked = Asked {
        address,
        port,
        protocol,
    };
    let choice = match service::choose::<A>(service, &client, number) {
        Ok(choice) => choice,
        Err(DropReason::NoBackend | DropReason::NoLocalBackend) => {
            return refuse(DropReason::SocketRefused, &asked);
        }
        Err(reason) => return refuse(reason, &asked),
    };
    let backend = choice.backend;
    if protocol == PROTOCOL_TCP {
        remember_stream(ctx, &asked, backend);
    } else {
        remember(ctx, &asked, backend);
    }
    backend.address.write(sock, kind);
    set_port(sock, backend.port);
    events::count(Path::Socket, 0);
    ALLOW
}

/// Whether a namespace's cookie is that of the node's own.
#[inline(always)]
fn is_nodes(namespace: u64) -> bool {
    // SAFETY: a constant that the agent has set before the program was loaded.
    namespace == unsafe { core::ptr::read_volatile(&raw const ORCH_NODE_NAMESPACE) }
}

/// Whether the node itself may use a service with source ranges.
#[inline(never)]
fn admits_node<A: Family>(service: &Service<A>) -> bool {
    super::config().is_some_and(|config| service::admit(service, A::settings(config).node_address).is_ok())
}

/// What a socket's owner asked for.
struct Asked<A> {
    address: A,
    port: u16,
    protocol: u8,
}

impl<A: Family> Asked<A> {
    /// A tuple without a source, which no socket has before it is connected.
    #[inline(always)]
    fn tuple(&self) -> Tuple<A> {
        Tuple {
            destination: self.address,
            destination_port: self.port,
            protocol: self.protocol,
            ..Tuple::default()
        }
    }
}

/// A socket's slot, if it is the one who has it.
#[inline(always)]
fn stream<A: Family>(cookie: [u32; 2]) -> Option<&'static Stream<A>> {
    let slot = slot(cookie)?;
    // SAFETY: a slot outlives the run; who reads it asks `held` once more.
    let slot = unsafe { &*slot };
    (held(slot) == cookie).then_some(slot)
}

#[inline(always)]
fn slot<A: Family>(cookie: [u32; 2]) -> Option<*mut Stream<A>> {
    const { assert!(STREAMS_MAX.is_power_of_two()) };
    A::streams().get_ptr_mut(cookie[0] % STREAMS_MAX as u32)
}

/// Whose a slot is now.
#[inline(always)]
fn held<A: Family>(stream: &Stream<A>) -> [u32; 2] {
    let cookie = &raw const stream.cookie;
    // SAFETY: within the slot, on a boundary of four.
    unsafe {
        [
            cookie.cast::<u32>().read_volatile(),
            cookie.cast::<u32>().add(1).read_volatile(),
        ]
    }
}

/// Remembers what a TCP socket asked for, for `getpeername` and for who closes sockets to backends that are gone, and
/// reports it: a socket connects once.
#[inline(always)]
fn remember_stream<A: Family>(ctx: &SockAddrContext, asked: &Asked<A>, backend: &Backend<A>) {
    let cookie = cookie(ctx);
    if let Some(slot) = slot::<A>(cookie) {
        // SAFETY: within the slot. One that reads what another has just begun to write finds the other's cookie.
        unsafe {
            let held = (&raw mut (*slot).cookie).cast::<u32>();
            held.write_volatile(cookie[0]);
            held.add(1).write_volatile(cookie[1]);
            (*slot).backend = backend.address;
            (*slot).service = asked.address;
            (*slot).backend_port = backend.port;
            (*slot).service_port = asked.port;
        }
    }
    if events::listening(CONFIG_FLOWS) {
        report(asked, backend);
    }
}

/// Remembers what a UDP socket asked for, for the hooks that show it again, and reports it when it is new.
#[inline(never)]
fn remember<A: Family>(ctx: &SockAddrContext, asked: &Asked<A>, backend: &Backend<A>) {
    let key = SocketKey {
        cookie: cookie(ctx),
        address: backend.address,
        port: backend.port,
        _pad: 0,
    };
    // SAFETY: only compared.
    let known = unsafe { A::sockets().get(key) }
        .is_some_and(|origin| origin.port == asked.port && origin.address.same(asked.address));
    if known {
        return;
    }
    let origin = SocketOrigin {
        address: asked.address,
        port: asked.port,
        _pad: 0,
    };
    // A refusal costs the socket only the service's name in `getpeername` and `recvmsg`.
    let _ = A::sockets().insert(key, origin, 0);
    if events::listening(CONFIG_FLOWS) {
        report(asked, backend);
    }
}

#[inline(never)]
fn report<A: Family>(asked: &Asked<A>, backend: &Backend<A>) {
    let tuple = asked.tuple();
    let becomes = Tuple {
        destination: backend.address,
        destination_port: backend.port,
        ..tuple
    };
    events::flow(&tuple, &becomes, EVENT_FLOW, u32::from(KIND_SERVICE), 0);
}

/// Fails the call as if nobody listened, counts and reports it.
#[inline(never)]
fn refuse<A: Family>(reason: DropReason, asked: &Asked<A>) -> i32 {
    events::dropped(reason, &asked.tuple(), 0, 0);
    // SAFETY: the helper takes an integer; connect and sendmsg hooks may call it.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// A number for the socket, for [`service::choose`]. Where members rank it, any that stays the socket's will do. Among
/// slots it is one of theirs, spread evenly over sockets, by jump consistent hashing (Lamping and Veach, "A Fast, Minimal
/// Memory, Consistent Hash Algorithm", 2014): the same while the number of slots is, and where one is added only as many
/// sockets move as come to have their place there. Slots keep their backends, as far as these stay.
#[inline(always)]
fn spread<A: Family>(cookie: [u32; 2], service: &Service<A>) -> u32 {
    let cookie = u64::from(cookie[1]) << 32 | u64::from(cookie[0]);
    let mut key = (cookie ^ (u64::from(service.pool) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if service.flags & SERVICE_MEMBERS != 0 {
        return (key >> 32) as u32;
    }
    let (mut slot, mut next) = (0, 0);
    // About as many turns as the natural logarithm of the slots.
    for _ in 0..MOST_JUMPS {
        if next >= u64::from(service.count) {
            break;
        }
        slot = next;
        key = key.wrapping_mul(0x27bb_2ee6_87b0_b0fd).wrapping_add(1);
        next = ((slot + 1) << 31) / ((key >> 33) + 1);
    }
    slot as u32
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> [u32; 2] {
    // SAFETY: the kernel hands a valid context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    [cookie as u32, (cookie >> 32) as u32]
}

#[inline(always)]
fn protocol(sock: *mut bpf_sock_addr) -> u8 {
    // SAFETY: the kernel hands a valid context.
    (unsafe { (&raw const (*sock).protocol).read_volatile() }) as u8
}

#[inline(always)]
fn port(sock: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the kernel hands a valid context.
    u16::from_be(unsafe { (&raw const (*sock).user_port).read_volatile() } as u16)
}

#[inline(always)]
fn set_port(sock: *mut bpf_sock_addr, port: u16) {
    // SAFETY: the kernel hands a valid context, and lets these hooks write the port.
    unsafe { (&raw mut (*sock).user_port).write_volatile(u32::from(port.to_be())) };
}
