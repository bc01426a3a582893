//! The agent's end of the monitor's socket: a line with a filter comes in, lines with events go out.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    filter::Filter,
    hub::{Hub, Subscription, encoded},
    record::Message,
};

/// Most listeners at once.
const LISTENERS: usize = 16;
/// Longest filter in bytes.
const FILTER_BYTES: u64 = 64 * 1024;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the names are brought up to date while somebody listens.
const REFRESH: Duration = Duration::from_secs(1);
/// Lines that are written with one system call.
const LINES: usize = 256;

/// The names' keeper, as far as the server needs it.
pub trait Keeper: Send + Sync + 'static {
    /// Name of this node.
    fn node(&self) -> &str;
    /// Brings the names up to date; may take long.
    fn refresh(&self);
    /// Forgets them.
    fn forget(&self);
}

impl Keeper for super::names::Naming {
    fn node(&self) -> &str {
        self.node()
    }

    fn refresh(&self) {
        self.refresh();
    }

    fn forget(&self) {
        self.forget();
    }
}

/// Takes the socket over from an earlier agent.
///
/// # Errors
/// When the folder or the file refuses.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the task is dropped.
pub async fn serve<K: Keeper>(listener: UnixListener, hub: Arc<Hub>, names: Arc<K>) {
    let mut clients = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(client(stream, Arc::clone(&hub), Arc::clone(&names)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a monitor");
                    tokio::time::sleep(REFRESH).await;
                }
            },
            Some(_) = clients.join_next() => {
                if hub.listeners() == 0 {
                    names.forget();
                }
            }
            _ = ticks.tick(), if hub.listeners() > 0 => refresh(&names).await,
        }
    }
}

async fn refresh<K: Keeper>(names: &Arc<K>) {
    let names = Arc::clone(names);
    // Not the place to notice that the work panicked: names stay as they were.
    let _ = tokio::task::spawn_blocking(move || names.refresh()).await;
}

async fn client<K: Keeper>(stream: UnixStream, hub: Arc<Hub>, names: Arc<K>) {
    // The permissions of the file came after it did.
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
        return;
    }
    let (read, write) = stream.into_split();
    let mut write = BufWriter::new(write);
    let mut read = BufReader::new(read);
    let filter = match tokio::time::timeout(PATIENCE, asked(&mut read)).await {
        Ok(Ok(filter)) => filter,
        Ok(Err(error)) => return refuse(&mut write, &error.to_string()).await,
        Err(_) => return refuse(&mut write, "no filter came in time").await,
    };
    if hub.listeners() >= LISTENERS {
        return refuse(&mut write, &format!("{LISTENERS} monitors run already")).await;
    }
    refresh(&names).await;
    let subscription = hub.subscribe(filter);
    let ready = Message::Ready {
        node: names.node().to_owned(),
    };
    let result = async {
        send(&mut write, &ready).await?;
        write.flush().await?;
        pass_on(subscription, &mut read, &mut write).await
    };
    if let Err(error) = result.await {
        tracing::debug!(%error, "a monitor ended");
    }
}

async fn asked(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Filter> {
    let mut line = String::new();
    read.take(FILTER_BYTES).read_line(&mut line).await?;
    serde_json::from_str(&line)
        .map_err(|error| io::Error::other(format!("the filter cannot be read: {error}")))
}

async fn refuse(write: &mut BufWriter<OwnedWriteHalf>, message: &str) {
    let message = Message::Error {
        message: message.to_owned(),
    };
    // A client that does not wait for its refusal needs none.
    let _ = send(write, &message).await;
    let _ = write.flush().await;
}

async fn send(write: &mut BufWriter<OwnedWriteHalf>, message: &Message) -> io::Result<()> {
    let line = encoded(message).unwrap_or_default();
    write.write_all(line.as_bytes()).await?;
    write.write_all(b"\n").await
}

/// Writes until the client goes.
async fn pass_on(
    mut subscription: Subscription,
    read: &mut BufReader<OwnedReadHalf>,
    write: &mut BufWriter<OwnedWriteHalf>,
) -> io::Result<()> {
    let mut lines = Vec::with_capacity(LINES);
    let mut byte = [0];
    loop {
        tokio::select! {
            // Without this, a client that went while nothing happens would be listened for until something does.
            _ = read.read(&mut byte) => return Ok(()),
            count = subscription.lines.recv_many(&mut lines, LINES) => if count == 0 {
                return Ok(());
            },
        }
        for line in lines.drain(..) {
            write.write_all(line.as_bytes()).await?;
            write.write_all(b"\n").await?;
        }
        let lost = subscription.lost();
        if lost > 0 {
            send(write, &Message::Lost { count: lost }).await?;
        }
        write.flush().await?;
    }
}
