//! `cargo xtask traffic`: the small servers and clients that benchmarks start inside namespaces.
//!
//! Not for people: each client prints one JSON object, [`Outcome`], and one with two targets a list of both's.

mod http;
mod tcp;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

pub use tcp::{CLOSE_PORT, ECHO_PORT, SINK_PORT};
use tcp::{Client, Connections, RoundTrips, Stream};

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Traffic {
    /// Serves all three kinds of TCP traffic on every address of the namespace, until killed
    Serve,
    /// One byte there and one back on one connection, again and again
    RoundTrips(Target),
    /// As many bytes as fit through one connection
    Stream(Target),
    /// A connection, a byte there and one back, the end of the connection, again and again
    Connections(Target),
    /// GET requests at a fixed rate, whatever becomes of those before
    Http(HttpTarget),
    /// A connection each few milliseconds, to see when a target answers and when not
    Probe(ProbeTarget),
}

/// Whom to talk to, and for how long.
#[derive(clap::Args, Debug)]
pub struct Target {
    /// Address and port
    target: SocketAddr,
    /// Another one, in turn with the first and for as long
    #[arg(long)]
    beside: Option<SocketAddr>,
    /// For how long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

impl Target {
    /// Measures, and prints what came of it.
    fn measure<C: Client>(&self, client: impl Fn(SocketAddr) -> Result<C>) -> Result<()> {
        let length = Duration::from_secs_f64(self.seconds);
        match self.beside {
            None => print(&tcp::alone(&mut client(self.target)?, length)?),
            Some(beside) => print(&tcp::by_turns(client, [self.target, beside], length)?),
        }
    }
}

/// A rate of HTTP requests.
#[derive(clap::Args, Debug)]
pub struct HttpTarget {
    /// Address and port
    target: SocketAddr,
    /// The path to get
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests a second
    #[arg(long)]
    rate: u32,
    /// Connections that are used again; without it each request has its own
    #[arg(long)]
    keep_alive: bool,
    /// For how long
    #[arg(long)]
    seconds: f64,
}

/// A target to watch.
#[derive(clap::Args, Debug)]
pub struct ProbeTarget {
    /// Address and port
    target: SocketAddr,
    /// Milliseconds between two connections
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Milliseconds until one counts as lost
    #[arg(long, default_value_t = 500)]
    patience: u64,
    /// For how long
    #[arg(long)]
    seconds: f64,
}

/// What a client measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests, round trips, writes or connections that succeeded.
    pub done: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The middle of the times of one, in microseconds.
    pub median_us: f64,
    /// The time that one in a hundred is over, in microseconds.
    pub p99_us: f64,
    /// How many failed.
    pub failed: u64,
    /// Requests sent again on a new connection, as the old one ended before a byte of the answer (RFC 9110, 9.2.2).
    pub retried: u64,
    /// What the first failures said.
    pub errors: Vec<String>,
    /// When the failures were, in seconds since the start, first to last.
    pub failures_at: Vec<f64>,
}

impl Outcome {
    /// How many succeeded in a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// Bits a second.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds
    }

    /// Counts a failure at a time, and keeps the words of the first few.
    fn fail(&mut self, at: f64, error: &dyn std::fmt::Display) {
        self.failed += 1;
        self.failures_at.push(at);
        if self.errors.len() < 5 {
            self.errors.push(error.to_string());
        }
    }

    /// Fills in the quantiles from the times of each, in seconds.
    fn times(&mut self, mut seconds: Vec<f64>) {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (seconds.len() as f64 * share) as usize;
            seconds
                .get(index.min(seconds.len().saturating_sub(1)))
                .map_or(0.0, |value| value * 1e6)
        };
        self.median_us = at(0.5);
        self.p99_us = at(0.99);
    }
}

/// Serves, or measures and prints the outcome.
///
/// # Errors
/// When the target cannot be reached at all.
pub fn run(traffic: &Traffic) -> Result<()> {
    let time = Duration::from_secs_f64;
    match traffic {
        Traffic::Serve => tcp::serve(),
        Traffic::RoundTrips(target) => target.measure(RoundTrips::new),
        Traffic::Stream(target) => target.measure(Stream::new),
        Traffic::Connections(target) => target.measure(|target| Ok(Connections(target))),
        Traffic::Http(options) => print(&http::load(&http::Load {
            target: options.target,
            path: &options.path,
            rate: options.rate,
            keep_alive: options.keep_alive,
            length: time(options.seconds),
        })?),
        Traffic::Probe(options) => print(&tcp::probe(
            options.target,
            Duration::from_millis(options.every),
            Duration::from_millis(options.patience),
            time(options.seconds),
        )?),
    }
}

fn print(outcome: &impl Serialize) -> Result<()> {
    crate::term::data(&serde_json::to_string(outcome).context("failed to write the outcome")?);
    Ok(())
}
