//! Who listens, and what the programs need to write for them. Without a listener they write nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use orch_ebpf::{config::CONFIG_DROPS, event::Event};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    filter::Filter,
    record::{self, Message, Names},
};

/// Lines that may wait for a listener before it loses some.
const QUEUE: usize = 4096;

/// The listeners.
pub struct Hub {
    listeners: Mutex<Listeners>,
    /// The agent's own log shows drops.
    logs: bool,
    switch: Box<dyn Fn(u32) + Send + Sync>,
}

#[derive(Default)]
struct Listeners {
    next: u64,
    list: Vec<Listener>,
    /// What the programs have been told.
    flags: u32,
}

struct Listener {
    number: u64,
    filter: Filter,
    lines: mpsc::Sender<Arc<str>>,
    lost: Arc<AtomicU64>,
}

/// A place in the hub; dropping it ends the listening.
pub struct Subscription {
    hub: Arc<Hub>,
    number: u64,
    /// What passes the filter, each a line without its end.
    pub lines: mpsc::Receiver<Arc<str>>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// How many lines were lost since this was last asked.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = self.hub.listeners.lock();
        listeners.list.retain(|listener| listener.number != self.number);
        self.hub.tell(&mut listeners);
    }
}

impl Hub {
    /// A hub without listeners. `switch` is given the flags of [`orch_ebpf::config::Config`] whenever they should be
    /// others; `logs` says that the agent's own log wants drops.
    pub fn new(logs: bool, switch: impl Fn(u32) + Send + Sync + 'static) -> Arc<Self> {
        let hub = Self {
            listeners: Mutex::default(),
            logs,
            switch: Box::new(switch),
        };
        // An earlier agent may have left the programs writing for nobody.
        let flags = hub.wanted(&hub.listeners.lock());
        hub.listeners.lock().flags = flags;
        (hub.switch)(flags);
        Arc::new(hub)
    }

    /// Listens until the subscription is dropped. Once this returns, the programs write what `filter` needs.
    pub fn subscribe(self: &Arc<Self>, filter: Filter) -> Subscription {
        let (sender, lines) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let mut listeners = self.listeners.lock();
        let number = listeners.next;
        listeners.next += 1;
        listeners.list.push(Listener {
            number,
            filter,
            lines: sender,
            lost: Arc::clone(&lost),
        });
        self.tell(&mut listeners);
        Subscription {
            hub: Arc::clone(self),
            number,
            lines,
            lost,
        }
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.listeners.lock().list.len()
    }

    fn wanted(&self, listeners: &Listeners) -> u32 {
        let own = if self.logs { CONFIG_DROPS } else { 0 };
        listeners
            .list
            .iter()
            .fold(own, |flags, listener| flags | listener.filter.flags())
    }

    fn tell(&self, listeners: &mut Listeners) {
        let flags = self.wanted(listeners);
        if flags != listeners.flags {
            listeners.flags = flags;
            // Under the lock, so that of two changes the later one is written last.
            (self.switch)(flags);
        }
    }

    /// Hands an event, which happened at `time`, to everybody whose filter it passes. Never waits.
    pub fn publish(&self, event: &Event, time: impl FnOnce() -> String, names: &impl Names) {
        let listeners = self.listeners.lock();
        let admitting = || {
            listeners
                .list
                .iter()
                .filter(|listener| listener.filter.admits(event))
        };
        if admitting().next().is_none() {
            return;
        }
        let Some(message) = record::describe(event, time(), names) else {
            return;
        };
        let mut passing = admitting()
            .filter(|listener| listener.filter.passes(&message))
            .peekable();
        // Encoded once for all, and for nobody not at all.
        let Some(line) = passing.peek().and_then(|_| encoded(&message)) else {
            return;
        };
        for listener in passing {
            if listener.lines.try_send(Arc::clone(&line)).is_err() {
                listener.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The message as a line; `None` cannot happen, since a message has no key that is not text.
pub fn encoded(message: &Message) -> Option<Arc<str>> {
    serde_json::to_string(message).ok().map(Arc::from)
}
