//! One HTTP/1.1 request on a connection of its own.

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
