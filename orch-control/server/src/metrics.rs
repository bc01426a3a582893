//! What `/metrics` shows, in the names that Kubernetes' API server uses.

use std::{sync::atomic::AtomicI64, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The labels of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// In upper case, as Kubernetes has it.
    pub verb: String,
    /// Empty for the core group and for other paths.
    pub group: String,
    /// Empty for other paths.
    pub resource: String,
    /// Empty for the resource itself.
    pub subresource: String,
    /// The HTTP status code.
    pub code: u16,
}

/// The labels of a duration.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DurationLabels {
    /// In upper case, as Kubernetes has it.
    pub verb: String,
    /// Empty for other paths.
    pub resource: String,
}

/// Counters and their registry.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    /// Watches that run now.
    pub watches: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and HTTP code",
            requests.clone(),
        );
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let durations = Family::new_with_constructor(histogram);
        registry.register(
            "apiserver_request_duration_seconds",
            "How long requests other than watches took",
            durations.clone(),
        );
        let watches = Gauge::default();
        registry.register(
            "apiserver_longrunning_requests",
            "Watches that run now",
            watches.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            durations,
            watches,
        }
    }
}

impl Metrics {
    /// Counts a request that took `duration` until its answer began; `None` for watches.
    pub fn request(&self, labels: RequestLabels, duration: Option<Duration>) {
        if let Some(duration) = duration {
            let labels = DurationLabels {
                verb: labels.verb.clone(),
                resource: labels.resource.clone(),
            };
            self.durations
                .get_or_create(&labels)
                .observe(duration.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// The exposition text (OpenMetrics 1.0).
    ///
    /// # Errors
    /// When formatting fails.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}
