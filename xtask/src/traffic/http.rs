//! HTTP/1.1 at a fixed rate. Requests start on time whether or not those before them have ended ("open loop"), so
//! that a stall shows as many slow or failed requests and not as a pause.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::Outcome;

/// What to ask, how often and how long.
pub struct Load<'a> {
    /// The server.
    pub target: SocketAddr,
    /// The path.
    pub path: &'a str,
    /// Requests a second.
    pub rate: u32,
    /// Whether connections are used again.
    pub keep_alive: bool,
    /// How long to start requests.
    pub length: Duration,
}

/// How many requests can be under way: enough for the rate when each takes tens of milliseconds.
const WORKERS: usize = 64;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the load.
///
/// # Errors
/// When no request at all succeeded.
pub fn load(load: &Load<'_>) -> Result<Outcome> {
    let total = (f64::from(load.rate) * load.length.as_secs_f64()) as u32;
    let next = AtomicU32::new(0);
    let all = Mutex::new((Outcome::default(), Vec::with_capacity(total as usize)));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let (outcome, times) = work(load, total, &next, began);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.0.done += outcome.done;
                all.0.failed += outcome.failed;
                all.0.retried += outcome.retried;
                all.0.errors.extend(outcome.errors);
                all.0.failures_at.extend(outcome.failures_at);
                all.1.extend(times);
            });
        }
    });
    let (mut outcome, times) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.seconds = began.elapsed().as_secs_f64();
    outcome.times(times);
    outcome.failures_at.sort_by(f64::total_cmp);
    outcome.errors.truncate(5);
    if outcome.done == 0 {
        bail!("no request succeeded: {}", outcome.errors.join("; "));
    }
    Ok(outcome)
}

/// Takes the next request that nobody has taken until there is none left.
fn work(load: &Load<'_>, total: u32, next: &AtomicU32, began: Instant) -> (Outcome, Vec<f64>) {
    let mut outcome = Outcome::default();
    let mut times = Vec::new();
    let mut kept: Option<BufReader<TcpStream>> = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= total {
            return (outcome, times);
        }
        let due = Duration::from_secs_f64(f64::from(number) / f64::from(load.rate));
        thread::sleep(due.saturating_sub(began.elapsed()));
        match once(load, &mut kept, &mut outcome.retried) {
            // From when it was due: waiting for a free worker is part of what a user waits.
            Ok(()) => {
                outcome.done += 1;
                times.push(began.elapsed().saturating_sub(due).as_secs_f64());
            }
            Err(error) => {
                kept = None;
                outcome.fail(due.as_secs_f64(), &error);
            }
        }
    }
}

/// A request, on the kept connection where there is one. That one may have been ended by the server meanwhile: then,
/// as every HTTP client does, it is sent again on a new one, if no byte of an answer came.
fn once(load: &Load<'_>, kept: &mut Option<BufReader<TcpStream>>, retried: &mut u64) -> io::Result<()> {
    if let Some(mut stream) = kept.take() {
        match request(load, &mut stream) {
            Ok(reusable) => {
                *kept = reusable.then_some(stream);
                return Ok(());
            }
            Err(Failure::BeforeAnswer(_)) => *retried += 1,
            Err(Failure::InAnswer(error)) => return Err(error),
        }
    }
    let stream = TcpStream::connect_timeout(&load.target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    match request(load, &mut stream) {
        Ok(reusable) => {
            *kept = (reusable && load.keep_alive).then_some(stream);
            Ok(())
        }
        Err(Failure::BeforeAnswer(error) | Failure::InAnswer(error)) => Err(error),
    }
}

enum Failure {
    BeforeAnswer(io::Error),
    InAnswer(io::Error),
}

/// Sends and reads one answer whole; says whether the connection can be used again.
fn request(load: &Load<'_>, stream: &mut BufReader<TcpStream>) -> Result<bool, Failure> {
    let connection = if load.keep_alive { "keep-alive" } else { "close" };
    let text = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
        load.path, load.target
    );
    let mut first = [0];
    stream
        .get_mut()
        .write_all(text.as_bytes())
        .and_then(|()| stream.read_exact(&mut first))
        .map_err(Failure::BeforeAnswer)?;
    answer(first[0], stream).map_err(Failure::InAnswer)
}

/// Reads the rest of an answer with `Content-Length` (RFC 9112).
fn answer(first: u8, stream: &mut BufReader<TcpStream>) -> io::Result<bool> {
    let mut status = vec![first];
    stream.read_until(b'\n', &mut status)?;
    let status = String::from_utf8_lossy(&status).trim_end().to_owned();
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(status));
    }
    let mut length = None;
    let mut reusable = true;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "connection" => reusable = !value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let length = length.ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(reusable)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{TcpListener, TcpStream},
        thread,
        time::Duration,
    };

    use super::{Load, load};

    /// Answers `requests` requests and hangs up.
    fn serve(stream: &TcpStream, requests: usize) {
        let mut reader = BufReader::new(stream);
        for _ in 0..requests {
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 {
                    return;
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut stream = stream;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    }

    #[test]
    fn a_kept_connection_that_ends_between_requests_is_no_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(&stream, 1));
            }
        });
        let wanted = Load {
            target,
            path: "/",
            rate: 800,
            keep_alive: true,
            length: Duration::from_millis(500),
        };
        let outcome = load(&wanted).unwrap();
        assert_eq!((outcome.done, outcome.failed), (400, 0), "{outcome:?}");
        assert!(outcome.retried > 0, "{outcome:?}");
    }
}
