//! Sockets that outlive the agent. While none runs, what is asked waits in them for the next one and is not refused.
//!
//! A process of its own keeps them (`orch-agent keep-sockets`, as small as a logger) and hands copies to whichever agent
//! asks. It and an agent of another version speak the same: a byte that says what is wanted, descriptors beside it
//! (unix(7), `SCM_RIGHTS`), and a byte that answers with how many descriptors come along.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, sendmsg, sockopt,
    },
};
use orch_dataplane::{namespace_cookie, socket_namespace};
use parking_lot::Mutex;

/// The socket's name in the agent's folder for what runs.
const FILE: &str = "sockets";
/// The most descriptors of a message: both sockets of an address of each family, and as many again.
const MOST: usize = 8;
/// Wanted: copies of all that is kept.
const TAKE: u8 = b't';
/// Wanted: that these are kept as well.
const KEEP: u8 = b'k';
/// Wanted: that nothing is kept any longer.
const DROP: u8 = b'd';
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the process looks whether it can still be found. In milliseconds.
const LOOK: u16 = 10_000;

/// Why sockets cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct KeeperError {
    action: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> KeeperError {
    move |source| KeeperError {
        action,
        source: source.into(),
    }
}

/// Sends a byte with descriptors.
fn send(stream: &UnixStream, byte: u8, sockets: &[OwnedFd]) -> Result<(), KeeperError> {
    let descriptors: Vec<RawFd> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let beside: &[_] = if descriptors.is_empty() { &[] } else { &rights };
    let bytes = [IoSlice::new(std::slice::from_ref(&byte))];
    sendmsg::<()>(stream.as_raw_fd(), &bytes, beside, MsgFlags::empty(), None)
        .map(drop)
        .map_err(failed("send sockets"))
}

/// Receives a byte with descriptors.
fn receive(stream: &UnixStream) -> Result<(u8, Vec<OwnedFd>), KeeperError> {
    let mut byte = 0;
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut bytes = [IoSliceMut::new(std::slice::from_mut(&mut byte))];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut bytes, Some(&mut space), flags)
        .map_err(failed("receive sockets"))?;
    let received = message.bytes;
    let mut sockets = Vec::new();
    for beside in message.cmsgs().map_err(failed("receive sockets"))? {
        if let ControlMessageOwned::ScmRights(descriptors) = beside {
            // SAFETY: the kernel has just made them for this process, and nobody else knows them.
            sockets.extend(
                descriptors
                    .into_iter()
                    .map(|new| unsafe { OwnedFd::from_raw_fd(new) }),
            );
        }
    }
    if received == 0 {
        return Err(failed("receive sockets")(io::Error::from(
            io::ErrorKind::UnexpectedEof,
        )));
    }
    Ok((byte, sockets))
}

/// Runs as the process that keeps sockets: `main` calls it before it starts anything else. Its standard input is the
/// listening socket that stands at `path`; it ends when that is no longer there.
///
/// # Errors
/// When its input is no such socket.
pub fn run(path: &Path) -> Result<(), KeeperError> {
    let input = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(failed("use the standard input"))?;
    let listener = UnixListener::from(input);
    let own = fs::metadata(path).map_err(failed("find the socket"))?.ino();
    let mut kept = Vec::new();
    loop {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(LOOK)) == Ok(0) {
            if fs::metadata(path).map_or(0, |found| found.ino()) != own {
                return Ok(());
            }
            continue;
        }
        let (stream, _) = listener.accept().map_err(failed("accept an agent"))?;
        // An agent that dies meanwhile has asked for nothing.
        let _ = answer(&stream, &mut kept);
    }
}

/// Does what one agent wants.
fn answer(stream: &UnixStream, kept: &mut Vec<OwnedFd>) -> Result<(), KeeperError> {
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(failed("wait for an agent"))?;
    let (wanted, sockets) = receive(stream)?;
    match wanted {
        TAKE => send(stream, kept.len() as u8, kept),
        KEEP if kept.len() + sockets.len() <= MOST => {
            kept.extend(sockets);
            send(stream, 0, &[])
        }
        DROP => {
            kept.clear();
            send(stream, 0, &[])
        }
        // The end of the connection is the answer.
        _ => Ok(()),
    }
}

/// The agent's side.
pub struct Keeper {
    path: PathBuf,
    executable: PathBuf,
    /// What an earlier agent has left and nobody has asked for yet.
    left: Mutex<Vec<OwnedFd>>,
    /// One at a time, or two would start a process each.
    asking: Mutex<()>,
}

impl Keeper {
    /// Asks for what an earlier agent has left for these addresses. Where it is for others or of another network
    /// namespace, or cannot be had, nothing is kept from here on.
    #[must_use]
    pub fn find(run_dir: &Path, executable: PathBuf, addresses: &[SocketAddr]) -> Self {
        let keeper = Self {
            path: run_dir.join(FILE),
            executable,
            left: Mutex::default(),
            asking: Mutex::default(),
        };
        let left = match keeper.ask(TAKE, &[]) {
            Ok((_, left)) => left,
            Err(error) => {
                tracing::debug!(%error, "no sockets of an earlier agent");
                // Who keeps them and does not hand them out would hold the addresses for good; now it ends.
                let _ = fs::remove_file(&keeper.path);
                return keeper;
            }
        };
        let fits = |socket: &OwnedFd| {
            is_here(socket) && local_address(socket).is_some_and(|own| addresses.contains(&own))
        };
        if left.iter().all(fits) {
            *keeper.left.lock() = left;
        } else if let Err(error) = keeper.ask(DROP, &[]) {
            tracing::warn!(%error, "sockets that nobody needs any longer are kept");
        }
        keeper
    }

    fn ask(&self, wanted: u8, sockets: &[OwnedFd]) -> Result<(u8, Vec<OwnedFd>), KeeperError> {
        let stream = UnixStream::connect(&self.path).map_err(failed("connect to the sockets' keeper"))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(failed("wait for the sockets' keeper"))?;
        send(&stream, wanted, sockets)?;
        receive(&stream)
    }

    /// Starts the process, which outlives this one.
    fn start(&self) -> Result<(), KeeperError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the socket of an earlier keeper")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&self.path).map_err(failed("make the keeper's socket"))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
            .map_err(failed("close the keeper's socket to others"))?;
        Command::new(&self.executable)
            .arg(COMMAND)
            .arg(&self.path)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What a terminal sends the agent is not for it.
            .process_group(0)
            .spawn()
            .map(drop)
            .map_err(failed("start the sockets' keeper"))
    }
}

/// The word by which `main` knows that it is the process that keeps sockets.
pub const COMMAND: &str = "keep-sockets";

impl orch_dns::Keeper for Keeper {
    fn take(&self, address: SocketAddr) -> Option<(UdpSocket, TcpListener)> {
        let mut left = self.left.lock();
        let find = |kind: SockType, left: &[OwnedFd]| {
            left.iter().position(|socket| {
                local_address(socket) == Some(address) && getsockopt(socket, sockopt::SockType) == Ok(kind)
            })
        };
        let udp = find(SockType::Datagram, &left)?;
        let udp = UdpSocket::from(left.swap_remove(udp));
        let tcp = find(SockType::Stream, &left)?;
        Some((udp, TcpListener::from(left.swap_remove(tcp))))
    }

    fn keep(&self, sockets: [OwnedFd; 2]) {
        let _one = self.asking.lock();
        let kept = self.ask(KEEP, &sockets).or_else(|_| {
            self.start()?;
            self.ask(KEEP, &sockets)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "names are refused while no agent runs: their sockets are not kept");
        }
    }
}

/// The address that a socket is bound to.
fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    // What the call needs is the same for every kind of socket.
    UdpSocket::from(socket.try_clone().ok()?).local_addr().ok()
}

/// Whether a socket is of this process's network namespace.
fn is_here(socket: &OwnedFd) -> bool {
    match (namespace_cookie(), socket_namespace(socket)) {
        (Ok(here), Ok(there)) => here == there,
        _ => false,
    }
}
