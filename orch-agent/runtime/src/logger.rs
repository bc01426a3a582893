//! The process behind containerd's `binary://` logging: one per container, outliving the agent.
//!
//! It writes the CRI log format (<https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>):
//! `<RFC 3339 time> stdout|stderr F|P <line>`. It also passes output on to whoever is attached, through a socket.
//! Plain threads and small buffers, because there is one of it for every container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::RuntimeError;
use crate::sys::fd::inherited;

/// The socket's name beside the link that the logger is started with.
pub(crate) const ATTACH_SOCKET: &str = "attach";
/// A frame on the socket: one byte for the stream, four for the length (big endian), then the data.
pub(crate) const FRAME_HEADER: usize = 5;
/// The stream of a new client's first frame, which is empty and says that nothing from now on is missed.
pub(crate) const HELLO: u8 = 0;
/// The stream's number in a frame.
pub(crate) const STDOUT: u8 = 1;
/// The stream's number in a frame.
pub(crate) const STDERR: u8 = 2;

/// The descriptors that containerd's shim gives a logger: output, errors, and one to close when it is ready.
const FDS: [i32; 3] = [3, 4, 5];

/// The longest part of a line in one entry, as kubelet expects it.
const ENTRY_MAX: usize = 16 << 10;

/// A log is put aside when it would grow beyond this (kubelet's `containerLogMaxSize`).
const FILE_MAX: u64 = 10 << 20;

/// So many files are kept, the current one included (kubelet's `containerLogMaxFiles`).
const FILES_MAX: usize = 5;

/// How long an attached client may take no data before it is cut off.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// How long to go on reading after the shim has asked us to end.
const LAST_READ: Duration = Duration::from_millis(500);

/// Runs as the logger of one container until its output ends: `main` calls it for `orch-agent logger FILE`
/// before it starts anything else (no tokio, no tracing). Returns when the container's output is closed.
///
/// `path` is the log, or a link to it; beside a link the socket for attaching is made.
pub fn run(path: &Path) -> Result<(), RuntimeError> {
    let [stdout, stderr, ready] = FDS.map(inherited);
    let descriptor = |file: io::Result<File>| file.map_err(RuntimeError::system("use descriptors 3 to 5"));
    let (stdout, stderr, ready) = (descriptor(stdout)?, descriptor(stderr)?, descriptor(ready)?);
    // Blocked in all threads: the shim sends it when it is done with us, but we must read what is left first.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals
        .thread_block()
        .map_err(RuntimeError::system("block signals"))?;

    let listener = match fs::read_link(path) {
        Ok(_) => path.parent().map(listen).transpose()?,
        Err(_) => None,
    };
    let log_path = fs::canonicalize(path)
        .or_else(|_| fs::read_link(path))
        .unwrap_or_else(|_| path.to_owned());
    let log = LogFile::open(log_path.clone()).map_err(RuntimeError::file("open", &log_path))?;
    let shared = Arc::new(Shared {
        log: Mutex::new(log),
        clients: Mutex::default(),
    });
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let builder = thread::Builder::new().name(name.to_owned()).stack_size(128 << 10);
        builder
            .spawn(work)
            .map_err(RuntimeError::system("start a thread"))
    };
    if let Some(listener) = listener {
        let shared = Arc::clone(&shared);
        spawn("attach", Box::new(move || accept(&listener, &shared)))?;
    }
    let copies = [(STDOUT, stdout), (STDERR, stderr)].map(|(stream, source)| {
        let shared = Arc::clone(&shared);
        spawn("copy", Box::new(move || copy(stream, source, &shared)))
    });
    spawn("signals", Box::new(move || end_on_signal(signals)))?;
    drop(ready);
    for copy in copies {
        // A thread that panicked has nothing more to copy.
        let _ = copy?.join();
    }
    Ok(())
}

/// When told to end, leaves the copying threads a moment to read what is there.
fn end_on_signal(signals: SigSet) {
    if signals.wait().is_ok() {
        thread::sleep(LAST_READ);
        std::process::exit(0);
    }
}

/// Listens in `dir`. By a relative name, because an address may have 108 bytes only.
fn listen(dir: &Path) -> Result<UnixListener, RuntimeError> {
    std::env::set_current_dir(dir).map_err(RuntimeError::file("enter", dir))?;
    // Only this container's logger is ever here.
    let _ = fs::remove_file(ATTACH_SOCKET);
    let listener = UnixListener::bind(ATTACH_SOCKET).map_err(RuntimeError::file("listen in", dir))?;
    std::env::set_current_dir("/").map_err(RuntimeError::file("enter", Path::new("/")))?;
    Ok(listener)
}

struct Shared {
    log: Mutex<LogFile>,
    clients: Mutex<Vec<UnixStream>>,
}

/// A poisoned lock protects nothing here that a panic could have broken.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &UnixListener, shared: &Shared) {
    for mut client in listener.incoming().flatten() {
        let mut clients = lock(&shared.clients);
        let patient = client.set_write_timeout(Some(CLIENT_PATIENCE)).is_ok();
        if patient && client.write_all(&[HELLO, 0, 0, 0, 0]).is_ok() {
            clients.push(client);
        }
    }
}

/// Copies one stream to the log and the clients until it ends.
fn copy(stream: u8, mut source: File, shared: &Shared) {
    let mut lines = Lines::new(if stream == STDOUT { "stdout" } else { "stderr" });
    let mut buffer = vec![0; FRAME_HEADER + ENTRY_MAX];
    loop {
        let count = match source.read(&mut buffer[FRAME_HEADER..]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let entries = lines.push(&buffer[FRAME_HEADER..][..count]);
        lock(&shared.log).write(entries);
        buffer[0] = stream;
        buffer[1..FRAME_HEADER].copy_from_slice(&(count as u32).to_be_bytes());
        let frame = &buffer[..FRAME_HEADER + count];
        lock(&shared.clients).retain_mut(|client| client.write_all(frame).is_ok());
    }
    let entries = lines.finish();
    lock(&shared.log).write(entries);
}

/// Cuts a stream into entries.
struct Lines {
    name: &'static str,
    /// The beginning of a line whose end has not come yet.
    pending: Vec<u8>,
    entries: Vec<u8>,
}

impl Lines {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            pending: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// Takes what was read; returns the entries that are complete.
    fn push(&mut self, data: &[u8]) -> &[u8] {
        self.entries.clear();
        let now = jiff::Timestamp::now();
        let mut rest = data;
        while !rest.is_empty() {
            let room = ENTRY_MAX - self.pending.len();
            match rest.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.pending.extend_from_slice(&rest[..end]);
                    rest = &rest[end + 1..];
                    self.entry(now, "F");
                }
                None if rest.len() >= room => {
                    self.pending.extend_from_slice(&rest[..room]);
                    rest = &rest[room..];
                    self.entry(now, "P");
                }
                None => {
                    self.pending.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
        &self.entries
    }

    /// The entry of a last line without an end.
    fn finish(&mut self) -> &[u8] {
        self.entries.clear();
        if !self.pending.is_empty() {
            self.entry(jiff::Timestamp::now(), "F");
        }
        &self.entries
    }

    fn entry(&mut self, now: jiff::Timestamp, tag: &str) {
        // Writing to a vector cannot fail.
        let _ = write!(self.entries, "{now:.9} {} {tag} ", self.name);
        self.entries.append(&mut self.pending);
        self.entries.push(b'\n');
    }
}

/// The log and those put aside.
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    /// Writes entries. A full disk loses them rather than stop the container.
    fn write(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if self.size > 0 && self.size + entries.len() as u64 > FILE_MAX {
            // On failure the log goes on in the file it has.
            let _ = self.rotate();
        }
        if self.file.write_all(entries).is_ok() {
            self.size += entries.len() as u64;
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(jiff::Timestamp::now().strftime(".%Y%m%d-%H%M%S-%9f").to_string());
        fs::rename(&self.path, &aside)?;
        *self = Self::open(self.path.clone())?;
        let mut old = rotated(&self.path)?;
        old.sort();
        for file in old.iter().rev().skip(FILES_MAX - 1) {
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// The files that were put aside, in no order.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let entries = fs::read_dir(dir)?.flatten();
    Ok(entries
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries without their times.
    fn bare(entries: &[u8]) -> Vec<String> {
        String::from_utf8_lossy(entries)
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn lines_become_entries() {
        let mut lines = Lines::new("stdout");
        assert_eq!(bare(lines.push(b"one\ntw")), ["stdout F one"]);
        assert_eq!(bare(lines.push(b"o\n\nrest")), ["stdout F two", "stdout F "]);
        assert_eq!(bare(lines.finish()), ["stdout F rest"]);
        assert_eq!(bare(lines.finish()), [""; 0]);
    }

    #[test]
    fn long_lines_are_split() {
        let mut lines = Lines::new("stderr");
        let line = vec![b'x'; 2 * ENTRY_MAX + 3];
        let parts: Vec<(String, usize)> = bare(lines.push(&line))
            .into_iter()
            .map(|e| (e[..9].to_owned(), e.len() - 9))
            .collect();
        assert_eq!(
            parts,
            [
                ("stderr P ".to_owned(), ENTRY_MAX),
                ("stderr P ".to_owned(), ENTRY_MAX)
            ]
        );
        assert_eq!(bare(lines.push(b"\n")), ["stderr F xxx"]);
        // A line of just the limit is one entry.
        let mut exact = vec![b'y'; ENTRY_MAX];
        exact.push(b'\n');
        assert_eq!(bare(lines.push(&exact)).len(), 1);
    }

    #[test]
    fn logs_rotate_and_old_ones_go() {
        let dir = PathBuf::from(format!("/tmp/ort-{}", crate::sys::unique()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        let chunk = vec![b'z'; (FILE_MAX / 2 + 1) as usize];
        for _ in 0..FILES_MAX + 3 {
            log.write(&chunk);
        }
        let kept = rotated(&path).unwrap().len();
        let current = fs::metadata(&path).unwrap().len();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(kept, FILES_MAX - 1);
        assert_eq!(current, chunk.len() as u64);
    }
}
