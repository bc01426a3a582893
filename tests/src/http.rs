//! HTTP/1.1 requests, each on a connection of its own or all on one.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The head, as sent.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A header's value, by its name in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// `GET path`; anything but a complete 200 is an error.
///
/// # Errors
/// When the connection, the answer or its status is bad.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    request(address, "GET", path, "")
}

/// A request with a body; anything but a complete 200 is an error.
///
/// # Errors
/// When the connection, the answer or its status is bad.
pub fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    exchange(address, method, path, body, Duration::from_secs(5))
}

/// `GET /` with little patience.
///
/// # Errors
/// As [`get`].
pub fn quick(address: SocketAddr, patience: Duration) -> Result<Answer> {
    exchange(address, "GET", "/", "", patience)
}

fn exchange(address: SocketAddr, method: &str, path: &str, body: &str, patience: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, patience).context("failed to connect")?;
    stream
        .set_read_timeout(Some(patience))
        .context("failed to set a timeout")?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .context("failed to send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("failed to receive")?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("a cut-off answer: {answer:?}")
    };
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(Answer {
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// A connection that stays.
pub struct Kept(TcpStream);

impl Kept {
    /// Opens it.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("failed to connect")?;
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .context("failed to set a timeout")?;
        Ok(Self(stream))
    }

    /// `GET /` on it; returns the head and what came of the body with it.
    ///
    /// # Errors
    /// When it is broken.
    pub fn get(&mut self) -> Result<String> {
        self.0
            .write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            .context("failed to send")?;
        let mut answer = Vec::new();
        // A server sends head and body at once; a body that comes late would be the next answer's start.
        while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n\r\n") {
            let mut buffer = [0; 4096];
            let length = self.0.read(&mut buffer).context("failed to receive")?;
            if length == 0 {
                bail!("the connection was closed");
            }
            answer.extend(buffer.get(..length).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
