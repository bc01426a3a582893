//! TCP as a benchmark sees it: round trips, a stream, connections, and a watch on whether anybody answers.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};

use super::Outcome;

/// Answers each byte with a byte.
pub const ECHO_PORT: u16 = 5201;
/// Reads and says nothing.
pub const SINK_PORT: u16 = 5202;
/// Answers one byte and ends the connection.
pub const CLOSE_PORT: u16 = 5203;
/// How much a stream writes and reads at once, as iperf3 does.
const BLOCK: usize = 128 * 1024;

/// Serves on all three ports, for both families, until killed.
///
/// # Errors
/// When a port is in use.
pub fn serve() -> Result<()> {
    let listen = |port| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("failed to listen on {port}"))
    };
    let (echo, sink, close) = (listen(ECHO_PORT)?, listen(SINK_PORT)?, listen(CLOSE_PORT)?);
    // Whoever started this waits for it.
    crate::term::data("serving");
    thread::spawn(move || each(&echo, answer));
    thread::spawn(move || each(&sink, swallow));
    // In one thread: what is measured is the kernel, not the making of threads.
    for mut stream in close.incoming().flatten() {
        let mut byte = [0];
        // A client that has gone is no reason to stop serving.
        let _ = stream
            .read_exact(&mut byte)
            .and_then(|()| stream.write_all(&byte));
    }
    Ok(())
}

fn each(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

/// Keeps this thread on the first CPU that it may use, and both ends of a round trip so on one: else it is the waking of
/// another CPU that is measured, and whether there was one to wake.
fn stay() -> io::Result<()> {
    let myself = Pid::from_raw(0);
    let allowed = sched_getaffinity(myself)?;
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.ok_or(io::ErrorKind::NotFound)?)?;
    Ok(sched_setaffinity(myself, &one)?)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stay()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
        .with_context(|| format!("failed to connect to {target}"))?;
    stream.set_nodelay(true).context("failed to set TCP_NODELAY")?;
    Ok(stream)
}

/// Something that a client does again and again.
pub trait Client {
    /// Does it once, and says how many bytes it sent that count.
    ///
    /// # Errors
    /// When the connection fails.
    fn once(&mut self) -> Result<u64>;
}

/// One byte there and back on one connection.
pub struct RoundTrips(TcpStream);

impl RoundTrips {
    /// Opens the connection, and keeps the thread where it is.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn new(target: SocketAddr) -> Result<Self> {
        stay().context("failed to stay on one CPU")?;
        connect(target).map(Self)
    }
}

impl Client for RoundTrips {
    fn once(&mut self) -> Result<u64> {
        let mut byte = [7];
        self.0
            .write_all(&byte)
            .and_then(|()| self.0.read_exact(&mut byte))
            .context("the connection broke")?;
        Ok(1)
    }
}

/// Bytes one way.
pub struct Stream {
    stream: TcpStream,
    block: Vec<u8>,
}

impl Stream {
    /// Opens the connection.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn new(target: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: connect(target)?,
            block: vec![7; BLOCK],
        })
    }
}

impl Client for Stream {
    fn once(&mut self) -> Result<u64> {
        self.stream
            .write_all(&self.block)
            .context("the connection broke")?;
        Ok(self.block.len() as u64)
    }
}

/// One connection after another.
pub struct Connections(pub SocketAddr);

impl Client for Connections {
    fn once(&mut self) -> Result<u64> {
        exchange(self.0, Duration::from_secs(5)).context("a connection failed")?;
        Ok(1)
    }
}

/// What one client has done.
#[derive(Default)]
struct Done {
    times: Vec<f64>,
    bytes: u64,
    took: Duration,
}

impl Done {
    fn go(&mut self, client: &mut impl Client, length: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < length {
            let once = Instant::now();
            self.bytes += client.once()?;
            self.times.push(once.elapsed().as_secs_f64());
        }
        self.took += began.elapsed();
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let mut outcome = Outcome {
            done: self.times.len() as u64,
            bytes: self.bytes,
            seconds: self.took.as_secs_f64(),
            ..Outcome::default()
        };
        outcome.times(self.times);
        outcome
    }
}

/// Lets a client go on for a while.
///
/// # Errors
/// When a connection fails.
pub fn alone(client: &mut impl Client, length: Duration) -> Result<Outcome> {
    let mut done = Done::default();
    done.go(client, length)?;
    Ok(done.outcome())
}

/// How long one of two clients goes on before the other does: shorter than what else the machine does lasts.
const TURN: Duration = Duration::from_millis(10);
/// After how many turns of each both connect anew: which CPUs a connection's ends run on, it keeps.
const TURNS: usize = 5;

/// Lets clients of two targets go on by turns, each for so long in all.
///
/// # Errors
/// When a connection fails.
pub fn by_turns<C: Client>(
    client: impl Fn(SocketAddr) -> Result<C>,
    targets: [SocketAddr; 2],
    length: Duration,
) -> Result<[Outcome; 2]> {
    let (mut one, mut two) = (Done::default(), Done::default());
    while two.took < length {
        let (mut first, mut second) = (client(targets[0])?, client(targets[1])?);
        for _ in 0..TURNS {
            one.go(&mut first, TURN)?;
            two.go(&mut second, TURN)?;
        }
    }
    Ok([one, two].map(Done::outcome))
}

fn exchange(target: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    // Ends with a reset: a socket that waits out its last minute would soon have used up the ports.
    let now = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &now).map_err(io::Error::from)
}

/// A connection every so often, each in its own thread, so that one that hangs delays no other.
///
/// # Errors
/// When a thread cannot be started.
pub fn probe(target: SocketAddr, every: Duration, patience: Duration, length: Duration) -> Result<Outcome> {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let times = Arc::new(Mutex::new(Vec::new()));
    let began = Instant::now();
    let mut threads = Vec::new();
    for number in 0.. {
        let due = every * number;
        if due >= length {
            break;
        }
        thread::sleep(due.saturating_sub(began.elapsed()));
        threads.retain(|thread: &thread::JoinHandle<()>| !thread.is_finished());
        let (outcome, times) = (Arc::clone(&outcome), Arc::clone(&times));
        let probe = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let opened = Instant::now();
            let result = exchange(target, patience);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(()) => {
                    outcome.done += 1;
                    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                    times.push(opened.elapsed().as_secs_f64());
                }
                Err(error) => outcome.fail(due.as_secs_f64(), &error),
            }
        });
        threads.push(probe.context("failed to start a thread")?);
    }
    for thread in threads {
        // A panic there would be a failure that nobody counted.
        thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"))?;
    }
    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
    outcome.seconds = began.elapsed().as_secs_f64();
    outcome.times(std::mem::take(
        &mut *times.lock().unwrap_or_else(PoisonError::into_inner),
    ));
    outcome.failures_at.sort_by(f64::total_cmp);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
        time::Duration,
    };

    use super::probe;

    #[test]
    fn a_probe_counts_answers_and_refusals() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
            }
            drop(listener);
        });
        let every = Duration::from_millis(20);
        let outcome = probe(target, every, Duration::from_secs(1), every * 10).unwrap();
        server.join().unwrap();
        // A connection that was in the queue as the listener went is reset, so exactly three are answered.
        assert_eq!((outcome.done, outcome.failed), (3, 7), "{outcome:?}");
        assert_eq!(outcome.failures_at.len(), 7);
    }
}
