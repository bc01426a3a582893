//! How large TCP aggregates an interface is handed whole ("BIG TCP"), of which Debian 12's `ip` knows only IPv6's half.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

/// The kernel's default, in bytes with headers (`GSO_LEGACY_MAX_SIZE` in linux/netdevice.h).
pub const DEFAULT: u32 = 65_536;
/// The most that a veth takes (`GSO_MAX_SIZE` there).
pub const MOST: u32 = 524_280;
/// `IFLA_GSO_MAX_SIZE` and `IFLA_GSO_IPV4_MAX_SIZE` (linux/if_link.h).
const ATTRIBUTES: [u16; 2] = [41, 63];
/// Bytes of `struct nlmsghdr`, of `struct ifinfomsg`, and of an attribute of four bytes.
const LENGTHS: [u32; 3] = [16, 16, 8];

/// Sets it for both families. Kernels that do not know IPv4's, before 6.3, pass over it.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn set(interface: &str, bytes: u32) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("failed to find interface {interface}"))?;
    let what = || format!("failed to set what {interface} takes in one piece");
    let code = ask(&request(index, bytes)).with_context(what)?;
    if code != 0 {
        return Err(std::io::Error::from_raw_os_error(code.saturating_neg())).with_context(what);
    }
    Ok(())
}

/// As [`set`], of an interface in another network namespace.
///
/// # Errors
/// The same, and when the namespace cannot be entered.
pub fn set_inside(netns: &Path, interface: &str, bytes: u32) -> Result<()> {
    let namespace = File::open(netns).with_context(|| format!("failed to open {}", netns.display()))?;
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("failed to enter a namespace")?;
            set(interface, bytes)
        });
        work.join().unwrap_or_else(|_| bail!("a thread panicked"))
    })
}

/// `RTM_SETLINK` (rtnetlink(7)), in the byte order of the machine.
fn request(index: u32, bytes: u32) -> Vec<u8> {
    let [header, body, attribute] = LENGTHS;
    let mut message = Vec::new();
    message.extend((header + body + attribute * ATTRIBUTES.len() as u32).to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    // Sequence and port, then the interface's family and kind.
    message.extend([0; 12]);
    message.extend(index.to_ne_bytes());
    // Flags and which of them to change.
    message.extend([0; 8]);
    for kind in ATTRIBUTES {
        message.extend((attribute as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(bytes.to_ne_bytes());
    }
    message
}

/// Sends a request and returns the number in the answer: zero, or a negative error.
fn ask(request: &[u8]) -> Result<i32> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    sendto(
        socket.as_raw_fd(),
        request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer
        .get(16..20)
        .filter(|_| length >= 20)
        .and_then(|code| code.try_into().ok());
    code.map(i32::from_ne_bytes)
        .context("the kernel's answer is too short")
}
