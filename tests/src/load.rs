//! A constant stream of requests, on new connections or on one that stays, and what became of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::http::{self, Kept};

/// A running stream; [`Load::stop`] ends it.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Tally>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many were answered with 200.
    pub answered: u64,
    /// What went wrong with the others.
    pub failures: Vec<String>,
    /// How many answers each body got.
    pub bodies: BTreeMap<String, u64>,
}

/// Requests `path` from `workers` threads, each with a short pause after an answer; ends by itself after two minutes.
#[must_use]
pub fn start(address: SocketAddr, path: &'static str, workers: usize) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let workers = (0..workers)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || work(address, path, &stop))
        })
        .collect();
    Load { stop, workers }
}

/// Requests from one connection that is never made anew; ends by itself after two minutes.
///
/// # Errors
/// When there is no connection.
pub fn keep(address: SocketAddr) -> anyhow::Result<Load> {
    let mut kept = Kept::open(address)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let worker = std::thread::spawn(move || {
        let mut tally = Tally::default();
        for _ in 0..6_000 {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            match kept.get() {
                Ok(_) => tally.answered += 1,
                Err(error) => {
                    tally.failures.push(format!("{error:#}"));
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        tally
    });
    Ok(Load {
        stop,
        workers: vec![worker],
    })
}

fn work(address: SocketAddr, path: &str, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..24_000 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match http::get(address, path) {
            Ok(answer) => {
                tally.answered += 1;
                *tally.bodies.entry(answer.body).or_default() += 1;
            }
            Err(error) => tally.failures.push(format!("{error:#}")),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tally
}

impl Load {
    /// Ends the stream and adds up.
    ///
    /// # Panics
    /// When a worker did.
    #[must_use]
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for worker in self.workers {
            let Ok(tally) = worker.join() else {
                panic!("a load worker panicked")
            };
            total.answered += tally.answered;
            total.failures.extend(tally.failures);
            for (body, count) in tally.bodies {
                *total.bodies.entry(body).or_default() += count;
            }
        }
        total
    }
}
