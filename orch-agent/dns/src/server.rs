//! The sockets of one address: datagrams, and connections with any number of questions each.

use std::{io, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DnsError, Keeper,
    handler::{Handler, Transport},
};

/// How long an idle TCP client is kept, and how long one may take to read an answer.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// TCP clients of one address at most.
const TCP_CLIENTS: usize = 512;
/// The longest request: a question with its options has a few hundred bytes at most.
const MAX_REQUEST: usize = 4096;
/// Pause between attempts to bind an address that is not there yet, and after an error of a socket.
const RETRY: Duration = Duration::from_millis(250);
/// How long questions are left in the sockets while nothing is known yet. Resolvers ask again after five seconds
/// (resolv.conf(5), `timeout`), and take a SERVFAIL for the end.
const UNKNOWING: Duration = Duration::from_secs(3);
/// Room for the questions that come while nobody reads, in bytes of the kernel's: some thousands.
const ROOM: usize = 4 << 20;

/// Answers on one address until `stop`, by the sockets that the keeper has, or by new ones, which it gets. Waits for an
/// address that does not exist yet or that a predecessor holds.
///
/// # Errors
/// When the address cannot be bound for a reason that waiting does not cure, or what the keeper has is of no use.
pub(crate) async fn serve(
    address: SocketAddr,
    keeper: Arc<dyn Keeper>,
    handler: Arc<Handler>,
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let serving = async {
        let (udp, tcp) = open(address, keeper).await?;
        // Whoever asks meanwhile waits: the questions are in the sockets.
        let _ = timeout(UNKNOWING, handler.ready()).await;
        tracing::info!(%address, "serving DNS");
        tokio::join!(datagrams(udp, &handler, &stop), connections(tcp, &handler, &stop));
        Ok(())
    };
    tokio::select! {
        result = serving => result,
        () = stop.cancelled() => Ok(()),
    }
}

async fn open(address: SocketAddr, keeper: Arc<dyn Keeper>) -> Result<(UdpSocket, TcpListener), DnsError> {
    let failed = |source| DnsError::Bind { address, source };
    if let Some((udp, tcp)) = keeper.take(address) {
        let adopt = || {
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
        };
        return adopt().map_err(failed);
    }
    let (udp, tcp) = bind(address).await?;
    // Without the privilege it is what the system gives anybody.
    let _ = setsockopt(&udp, sockopt::RcvBufForce, &ROOM);
    let copies = udp
        .as_fd()
        .try_clone_to_owned()
        .and_then(|udp| Ok([udp, tcp.as_fd().try_clone_to_owned()?]))
        .map_err(failed)?;
    // It may start a process, and must not hold up who serves other addresses.
    let _ = tokio::task::spawn_blocking(move || keeper.keep(copies)).await;
    Ok((udp, tcp))
}

async fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let mut said = false;
    loop {
        let both = match TcpListener::bind(address).await {
            Ok(tcp) => UdpSocket::bind(address).await.map(|udp| (udp, tcp)),
            Err(error) => Err(error),
        };
        match both {
            Ok(both) => return Ok(both),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
                ) =>
            {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%address, %error, "cannot bind the DNS address yet, retrying");
                }
            }
            Err(source) => return Err(DnsError::Bind { address, source }),
        }
        sleep(RETRY).await;
    }
}

async fn datagrams(socket: UdpSocket, handler: &Arc<Handler>, stop: &CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "cannot receive a DNS request");
                sleep(RETRY).await;
                continue;
            }
        };
        let (socket, handler, stop) = (socket.clone(), handler.clone(), stop.clone());
        let request: Box<[u8]> = buffer[..length].into();
        // What is forwarded must not keep the others waiting; how much that can be is the forwarder's to bound.
        tokio::spawn(async move {
            let answered = async {
                if let Some(answer) = handler.respond(&request, Transport::Udp).await
                    && let Err(error) = socket.send_to(&answer, peer).await
                {
                    tracing::debug!(%peer, %error, "cannot send a DNS answer");
                }
            };
            tokio::select! {
                () = answered => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn connections(listener: TcpListener, handler: &Arc<Handler>, stop: &CancellationToken) {
    let clients = Arc::new(Semaphore::new(TCP_CLIENTS));
    loop {
        // Whoever comes when there are too many waits in the kernel's queue.
        let Ok(permit) = clients.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a DNS client");
                sleep(RETRY).await;
                continue;
            }
        };
        let (handler, stop) = (handler.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                result = connection(stream, &handler) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a DNS client's connection ended");
                    }
                }
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }
}

/// One question after the other (RFC 7766), until the client closes, is idle or sends what is none.
async fn connection(mut stream: TcpStream, handler: &Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        let length = match timeout(TCP_IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        if length > MAX_REQUEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a request of that size is none",
            ));
        }
        request.resize(length, 0);
        timeout(TCP_IDLE, stream.read_exact(&mut request)).await??;
        let Some(answer) = handler.respond(&request, Transport::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let answer = [&length.to_be_bytes()[..], &answer].concat();
        timeout(TCP_IDLE, stream.write_all(&answer)).await??;
    }
}
