//! Byte streams to and from a container's processes: fifos, and the logger that reads their output.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use nix::sys::stat::Mode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::RuntimeError;
use crate::sys::fd::pass_from_three;

/// The input of a process; shutting it down (or dropping it) ends the input.
pub type StdinStream = Pin<Box<dyn AsyncWrite + Send>>;
/// The output of a process, up to its end of file.
pub type OutputStream = Pin<Box<dyn AsyncRead + Send>>;

/// In a container's I/O directory: the link to its log, which the logger is started with.
const LOG_LINK: &str = "log";
/// In a container's I/O directory: the fifo of its input.
pub(crate) const STDIN_FIFO: &str = "stdin";

/// What a container's I/O is made from.
pub(crate) struct ContainerIoSpec {
    pub(crate) dir: PathBuf,
    pub(crate) log_path: PathBuf,
    pub(crate) logger: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// A container's I/O as containerd is told of it. Keeps fifos open until it is dropped.
pub(crate) struct ContainerIo {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    _held: Vec<File>,
}

impl ContainerIo {
    /// Makes directory, link and fifos. Blocks.
    ///
    /// The shim starts the logger, except for a container with an input but no terminal: the shim's way of
    /// starting loggers has no input, so there we start it ourselves, on fifos.
    pub(crate) fn prepare(spec: &ContainerIoSpec) -> Result<Self, RuntimeError> {
        let make_dir = |dir: &Path| fs::create_dir_all(dir).map_err(RuntimeError::file("create", dir));
        make_dir(&spec.dir)?;
        if let Some(parent) = spec.log_path.parent() {
            make_dir(parent)?;
        }
        let link = spec.dir.join(LOG_LINK);
        std::os::unix::fs::symlink(&spec.log_path, &link).map_err(RuntimeError::file("create", &link))?;
        let text = |path: &Path| path.display().to_string();
        let mut stdin = String::new();
        if spec.stdin {
            let fifo = spec.dir.join(STDIN_FIFO);
            make_fifo(&fifo)?;
            stdin = text(&fifo);
        }
        if !spec.stdin || spec.tty {
            let uri = format!("binary://{}?logger={}", escape(&spec.logger), escape(&link));
            let stderr = if spec.tty { String::new() } else { uri.clone() };
            return Ok(Self {
                stdin,
                stdout: uri,
                stderr,
                _held: Vec::new(),
            });
        }
        let (out, err) = (spec.dir.join("stdout"), spec.dir.join("stderr"));
        let mut held = Vec::new();
        let mut read_ends = Vec::new();
        for fifo in [&out, &err] {
            make_fifo(fifo)?;
            // A fifo open for both ends never blocks an open and never ends.
            held.push(open_fifo(fifo, true)?);
            read_ends.push(OwnedFd::from(open_fifo(fifo, false)?));
        }
        start_logger(&spec.logger, &link, read_ends)?;
        Ok(Self {
            stdin,
            stdout: text(&out),
            stderr: text(&err),
            _held: held,
        })
    }
}

/// Starts the logger as the shim would: output at descriptors 3 and 4, readiness at 5.
fn start_logger(logger: &Path, link: &Path, outputs: Vec<OwnedFd>) -> Result<(), RuntimeError> {
    let (ready, is_ready) = io::pipe()
        .map_err(RuntimeError::system("make a pipe"))
        .map(|(r, w)| (w, r))?;
    let mut command = std::process::Command::new(logger);
    command.arg("logger").arg(link).current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    pass_from_three(
        &mut command,
        outputs.into_iter().chain([OwnedFd::from(ready)]).collect(),
    );
    let mut child = command.spawn().map_err(RuntimeError::file("start", logger))?;
    // Only the child has the pipe's other end from here on.
    drop(command);
    let mut is_ready = is_ready;
    io::Read::read(&mut is_ready, &mut [0]).map_err(RuntimeError::file("wait for", logger))?;
    if let Ok(Some(status)) = child.try_wait() {
        return Err(RuntimeError::file("run", logger)(io::Error::other(format!(
            "logger ended: {status}"
        ))));
    }
    // Somebody has to collect it when its container ends.
    std::thread::Builder::new()
        .name("logger".to_owned())
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map_err(RuntimeError::system("start a thread"))?;
    Ok(())
}

pub(crate) fn make_fifo(path: &Path) -> Result<(), RuntimeError> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(RuntimeError::file("create", path))
}

fn open_fifo(path: &Path, both: bool) -> Result<File, RuntimeError> {
    File::options()
        .read(true)
        .write(both)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(RuntimeError::file("open", path))
}

/// Opens a fifo for reading without waiting for a writer. The second value keeps it from ending before there
/// was one: drop it once the writer has opened its end.
pub(crate) fn open_output(path: &Path) -> Result<(pipe::Receiver, File), RuntimeError> {
    let held = open_fifo(path, true)?;
    let receiver = pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(RuntimeError::file("open", path))?;
    Ok((receiver, held))
}

/// Opens a fifo for writing without waiting for a reader.
pub(crate) fn open_input(path: &Path) -> Result<pipe::Sender, RuntimeError> {
    pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(path)
        .map_err(RuntimeError::file("open", path))
}

/// Percent-encodes a path for a URI (RFC 3986).
fn escape(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(*byte as char)
            }
            // Writing to a string cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

/// The writing end of a process's input, with what has to be done when it ends.
pub(crate) struct Input {
    pipe: Option<pipe::Sender>,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

impl Input {
    pub(crate) fn new(pipe: pipe::Sender, on_close: impl FnOnce() + Send + 'static) -> Self {
        Self {
            pipe: Some(pipe),
            on_close: Some(Box::new(on_close)),
        }
    }

    fn close(&mut self) {
        self.pipe = None;
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

/// The reading end of a process's output; tells when it has ended or is no longer wanted.
pub(crate) struct Output {
    pipe: pipe::Receiver,
    done: Option<oneshot::Sender<()>>,
}

impl Output {
    /// The second value resolves when the stream has ended or was dropped.
    pub(crate) fn new(pipe: pipe::Receiver) -> (Self, oneshot::Receiver<()>) {
        let (done, is_done) = oneshot::channel();
        (
            Self {
                pipe,
                done: Some(done),
            },
            is_done,
        )
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.pipe).poll_read(cx, buf);
        let ended =
            matches!(&result, Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0);
        if ended && let Some(done) = self.done.take() {
            // The receiver may have given up on us.
            let _ = done.send(());
        }
        result
    }
}
