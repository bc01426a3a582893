//! TCP as a benchmark sees it: round trips, a stream, connections, and a watch on whether anybody answers.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

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

fn answer(mut stream: TcpStream) -> io::Result<()> {
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

/// One byte there and back on one connection.
///
/// # Errors
/// When the connection fails.
pub fn round_trips(target: SocketAddr, length: Duration) -> Result<Outcome> {
    let mut stream = connect(target)?;
    let mut byte = [7];
    let mut times = Vec::with_capacity(1 << 18);
    let began = Instant::now();
    while began.elapsed() < length {
        let sent = Instant::now();
        stream
            .write_all(&byte)
            .and_then(|()| stream.read_exact(&mut byte))
            .context("the connection broke")?;
        times.push(sent.elapsed().as_secs_f64());
    }
    let mut outcome = Outcome {
        done: times.len() as u64,
        seconds: began.elapsed().as_secs_f64(),
        ..Outcome::default()
    };
    outcome.times(times);
    Ok(outcome)
}

/// Bytes one way.
///
/// # Errors
/// When the connection fails.
pub fn stream(target: SocketAddr, length: Duration) -> Result<Outcome> {
    let mut stream = connect(target)?;
    let block = vec![7; BLOCK];
    let began = Instant::now();
    let mut bytes = 0;
    while began.elapsed() < length {
        stream.write_all(&block).context("the connection broke")?;
        bytes += block.len() as u64;
    }
    Ok(Outcome {
        done: 1,
        bytes,
        seconds: began.elapsed().as_secs_f64(),
        ..Outcome::default()
    })
}

/// One connection after another.
///
/// # Errors
/// When one fails.
pub fn connections(target: SocketAddr, length: Duration) -> Result<Outcome> {
    let mut times = Vec::with_capacity(1 << 17);
    let began = Instant::now();
    while began.elapsed() < length {
        let opened = Instant::now();
        exchange(target, Duration::from_secs(5)).context("a connection failed")?;
        times.push(opened.elapsed().as_secs_f64());
    }
    let mut outcome = Outcome {
        done: times.len() as u64,
        seconds: began.elapsed().as_secs_f64(),
        ..Outcome::default()
    };
    outcome.times(times);
    Ok(outcome)
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
