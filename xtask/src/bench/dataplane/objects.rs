//! Thousands of services: written through `kubectl proxy`, since one kubectl a thousand objects takes minutes.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::fixture::NAMESPACE;
use crate::cluster::kubectl;

/// How many write at once.
const WRITERS: usize = 4;
/// Endpoints of each service.
pub const ENDPOINTS: usize = 10;

/// A running `kubectl proxy`.
struct Proxy {
    child: Child,
    address: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It never ends by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start() -> Result<Self> {
        let mut child = kubectl::command(&["proxy", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start kubectl proxy")?;
        let output = child.stdout.take().context("kubectl proxy has no output")?;
        let mut proxy = Self {
            child,
            address: String::new(),
        };
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .context("failed to hear from kubectl proxy")?;
        proxy.address = line
            .trim()
            .rsplit(' ')
            .next()
            .filter(|word| word.starts_with("127.0.0.1:"))
            .with_context(|| format!("kubectl proxy did not start: {line}"))?
            .to_owned();
        Ok(proxy)
    }
}

/// Creates services without selectors, numbered `from..to`, each with a slice of [`ENDPOINTS`] endpoints.
///
/// # Errors
/// When the API server refuses one.
pub fn create_services(from: usize, to: usize) -> Result<()> {
    let proxy = Proxy::start()?;
    let next = AtomicUsize::new(from);
    let write = || -> Result<()> {
        let stream = TcpStream::connect(&proxy.address).context("failed to reach kubectl proxy")?;
        let mut stream = BufReader::new(stream);
        let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= to {
                return Ok(());
            }
            post(&mut stream, &services, &service(number))?;
            post(&mut stream, &slices, &slice(number))?;
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        writers.into_iter().try_for_each(|writer| match writer.join() {
            Ok(written) => written,
            Err(_) => bail!("a writer panicked"),
        })
    })
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("filler-{number}")},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

/// Endpoints in a documentation range and beyond, on no node: nobody ever talks to them.
fn slice(number: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|index| {
            let host = number * ENDPOINTS + index;
            let address = format!("10.{}.{}.{}", 160 + host / 65_536, host / 256 % 256, host % 256);
            json!({"addresses": [address], "conditions": {"ready": true}})
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("filler-{number}"),
            "labels": {"kubernetes.io/service-name": format!("filler-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
}

/// One POST on a connection that stays.
fn post(stream: &mut BufReader<TcpStream>, path: &str, object: &Value) -> Result<()> {
    let body = object.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .get_mut()
        .write_all(format!("{head}{body}").as_bytes())
        .context("failed to send a request")?;
    let (status, body) = answer(stream)?;
    if !status.contains(" 201 ") {
        let message = serde_json::from_slice::<Value>(&body).ok();
        let message = message.as_ref().and_then(|status| status["message"].as_str());
        bail!("the API server answers {status}: {}", message.unwrap_or_default());
    }
    Ok(())
}

/// Status line and body; the body has a length or comes in chunks (RFC 9112).
fn answer(stream: &mut impl std::io::BufRead) -> Result<(String, Vec<u8>)> {
    let mut status = String::new();
    stream
        .read_line(&mut status)
        .context("failed to read an answer")?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).context("failed to read an answer")?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("an answer has no length")?;
        }
        chunked |= name.eq_ignore_ascii_case("transfer-encoding") && value.trim() == "chunked";
    }
    let mut body = Vec::new();
    let mut take = |body: &mut Vec<u8>, length: usize| {
        let start = body.len();
        body.resize(start + length, 0);
        stream
            .read_exact(body.get_mut(start..).unwrap_or_default())
            .map(|()| start)
    };
    if !chunked {
        take(&mut body, length).context("failed to read an answer")?;
        return Ok((status.trim_end().to_owned(), body));
    }
    loop {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            take(&mut size, 1).context("failed to read a chunk")?;
        }
        let size = String::from_utf8_lossy(&size).trim().to_owned();
        let size = usize::from_str_radix(&size, 16).context("a chunk has no size")?;
        take(&mut body, size + 2).context("failed to read a chunk")?;
        body.truncate(body.len() - 2);
        if size == 0 {
            return Ok((status.trim_end().to_owned(), body));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{answer, slice};

    #[test]
    fn answers_are_read_to_their_end() {
        let mut text =
            &b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
            HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}"[..];
        assert_eq!(
            answer(&mut text).unwrap(),
            ("HTTP/1.1 201 Created".into(), b"abcde".to_vec())
        );
        assert_eq!(
            answer(&mut text).unwrap(),
            ("HTTP/1.1 409 Conflict".into(), b"{}".to_vec())
        );
        assert!(text.is_empty());
    }

    #[test]
    fn no_two_services_share_an_endpoint() {
        let address = |number: usize, index: usize| slice(number)["endpoints"][index]["addresses"][0].clone();
        assert_eq!(address(0, 0), "10.160.0.0");
        assert_eq!(address(9999, 9), "10.161.134.159");
        assert_ne!(address(1, 0), address(0, 9));
    }
}
