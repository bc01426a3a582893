//! Streams of a container's own process: its logger passes on what it reads.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::io::{Input, STDIN_FIFO, open_input};
use crate::logger::{ATTACH_SOCKET, FRAME_HEADER, HELLO, STDERR, STDOUT};
use crate::{ContainerState, Exec, OutputStream, ProcessControl, Runtime, RuntimeError, StdinStream};

/// How much output may wait for its reader.
const BUFFER: usize = 64 << 10;

impl Runtime {
    /// The streams of a running container's process from now on; stdin only if it was created with one.
    ///
    /// A client that takes no output for ten seconds is cut off, so that it cannot stop the container.
    pub async fn attach(self: &Arc<Self>, id: &str) -> Result<Exec, RuntimeError> {
        let status = self
            .container(id)
            .await?
            .ok_or_else(|| RuntimeError::NoSuchContainer(id.to_owned()))?;
        if status.state == ContainerState::Exited {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let (_, meta) = self.require(id).await?;
        let dir = self.io_dir(id);
        let socket = connect(&dir).await?;
        let (stdout, stdout_end) = duplex(BUFFER);
        let (stderr, stderr_end) = duplex(BUFFER);
        tokio::spawn(demultiplex(socket, stdout_end, stderr_end));
        let stdin = match meta.stdin {
            false => None,
            true => {
                let pipe = open_input(&dir.join(STDIN_FIFO))?;
                let (runtime, id) = (Arc::clone(self), id.to_owned());
                let close = move || {
                    if meta.stdin_once {
                        runtime.close_stdin_later(id, String::new());
                    }
                };
                Some(Box::pin(Input::new(pipe, close)) as StdinStream)
            }
        };
        let (exited, exit) = watch::channel(None);
        let (runtime, container) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                code = runtime.wait_exit(&container, "") => drop(exited.send_replace(code)),
                () = exited.closed() => {}
            }
        });
        Ok(Exec {
            stdin,
            stdout: Some(Box::pin(stdout)),
            stderr: (!meta.tty).then(|| Box::pin(stderr) as OutputStream),
            control: ProcessControl {
                runtime: Arc::clone(self),
                container: id.to_owned(),
                exec_id: String::new(),
                exit,
            },
        })
    }
}

/// Connects to the logger. The socket's address goes through /proc, because an address may have 108 bytes only.
async fn connect(dir: &Path) -> Result<UnixStream, RuntimeError> {
    use std::os::fd::AsRawFd;
    let path = dir.join(ATTACH_SOCKET);
    let handle = std::fs::File::open(dir).map_err(RuntimeError::file("open", dir))?;
    let address = format!("/proc/self/fd/{}/{ATTACH_SOCKET}", handle.as_raw_fd());
    let mut socket = UnixStream::connect(address)
        .await
        .map_err(RuntimeError::file("connect to", &path))?;
    match read_frame(&mut socket, &mut Vec::new()).await {
        Ok(HELLO) => Ok(socket),
        Ok(_) => Err(RuntimeError::file("attach to", &path)(io::Error::from(
            io::ErrorKind::InvalidData,
        ))),
        Err(error) => Err(RuntimeError::file("attach to", &path)(error)),
    }
}

/// Sorts the logger's frames into the two streams until either side has gone.
async fn demultiplex(mut socket: UnixStream, stdout: DuplexStream, stderr: DuplexStream) {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut data = Vec::new();
    while let Ok(stream) = read_frame(&mut socket, &mut data).await {
        let target = match stream {
            STDOUT => &mut stdout,
            STDERR => &mut stderr,
            _ => return,
        };
        if let Some(open) = target
            && open.write_all(&data).await.is_err()
        {
            *target = None;
        }
        if stdout.is_none() && stderr.is_none() {
            return;
        }
    }
}

async fn read_frame(socket: &mut UnixStream, data: &mut Vec<u8>) -> io::Result<u8> {
    let mut header = [0; FRAME_HEADER];
    socket.read_exact(&mut header).await?;
    let [stream, length @ ..] = header;
    data.resize(u32::from_be_bytes(length) as usize, 0);
    socket.read_exact(data).await?;
    Ok(stream)
}
