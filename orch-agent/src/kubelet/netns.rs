//! Connecting from inside another network namespace.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// How long a connection on a pod's own loopback may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a port on the loopback of the namespace (`None`: the agent's own), by IPv4, then by IPv6. The socket
/// stays in that namespace.
///
/// # Errors
/// When the namespace is gone or nothing listens.
pub(super) async fn dial(netns: Option<PathBuf>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let (tell, told) = oneshot::channel();
    // A thread of its own: one of tokio's would stay in the namespace and take other tasks there.
    std::thread::Builder::new()
        .name("dial".into())
        .stack_size(128 << 10)
        .spawn(move || {
            // The other side is gone when the client is.
            let _ = tell.send(connect(netns, port));
        })?;
    let stream = told.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    if let Some(path) = netns {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&v4, CONNECT)
        .or_else(|error| TcpStream::connect_timeout(&v6, CONNECT).map_err(|_| error))
}
