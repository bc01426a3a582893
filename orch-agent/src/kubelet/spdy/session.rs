//! One connection: hands out the streams that the client opens and keeps them fed.

use std::{collections::HashMap, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Mutex, mpsc},
};

use super::{
    frame::{Frame, parse},
    headers::{Deflater, Headers, Inflater},
};

/// Frames of one stream that wait for their reader before the connection waits too.
const BACKLOG: usize = 64;
/// Streams open at once: two for each connection through a port-forward.
const MAX_STREAMS: usize = 2048;
/// The most bytes of one data frame.
const CHUNK: usize = 32 << 10;
/// RST_STREAM status: refused stream.
const REFUSED: u32 = 3;
/// RST_STREAM status: cancel.
const CANCEL: u32 = 5;

type Writer = Arc<Mutex<Output>>;

struct Output {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    deflater: Deflater,
}

impl Output {
    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.io.write_all(&frame.to_bytes()).await?;
        self.io.flush().await
    }
}

/// A connection; streams come from [`Session::accept`].
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    writer: Writer,
    reader: tokio::task::JoinHandle<()>,
}

/// A stream that the client opened.
pub struct Stream {
    /// Its headers.
    pub headers: Headers,
    /// What the client sends on it; ends with the client's half of the stream.
    pub input: mpsc::Receiver<Bytes>,
    /// What is sent to the client.
    pub output: StreamWriter,
}

/// The server's half of a stream.
#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    writer: Writer,
}

impl Session {
    /// Starts to serve a connection after its upgrade.
    ///
    /// # Errors
    /// When the header compressor cannot be set up.
    pub fn start<T>(io: T) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let deflater = Deflater::new().map_err(io::Error::other)?;
        let writer: Writer = Arc::new(Mutex::new(Output {
            io: Box::new(write),
            deflater,
        }));
        let (opened, streams) = mpsc::channel(16);
        let replies = writer.clone();
        let reader = tokio::spawn(async move {
            if let Err(error) = receive(read, &replies, &opened).await {
                tracing::debug!(%error, "SPDY connection ended");
            }
        });
        Ok(Self {
            streams,
            writer,
            reader,
        })
    }

    /// The next stream, `None` when the client is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Says good-bye and closes the connection.
    pub async fn close(self) {
        let mut writer = self.writer.lock().await;
        // The client may be gone already, which is what was wanted.
        let _ = writer.send(&Frame::GoAway { last: 0, status: 0 }).await;
        let _ = writer.io.shutdown().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl StreamWriter {
    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&self, bytes: Bytes) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let payload = rest.split_to(rest.len().min(CHUNK));
            self.frame(&Frame::Data {
                stream: self.id,
                fin: false,
                payload,
            })
            .await?;
        }
        Ok(())
    }

    /// Ends the server's half.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn finish(&self) -> io::Result<()> {
        self.frame(&Frame::Data {
            stream: self.id,
            fin: true,
            payload: Bytes::new(),
        })
        .await
    }

    /// Ends the stream, both ways.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn reset(&self) -> io::Result<()> {
        self.frame(&Frame::Reset {
            stream: self.id,
            status: CANCEL,
        })
        .await
    }

    async fn frame(&self, frame: &Frame) -> io::Result<()> {
        self.writer.lock().await.send(frame).await
    }
}

async fn receive(
    mut io: impl AsyncRead + Unpin,
    writer: &Writer,
    opened: &mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut inflater = Inflater::default();
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let mut buffer = BytesMut::with_capacity(16 << 10);
    loop {
        while let Some(frame) = parse(&mut buffer).map_err(io::Error::other)? {
            match frame {
                Frame::SynStream { stream, fin, block } => {
                    let headers = inflater.read(&block).map_err(io::Error::other)?;
                    inputs.retain(|_, input| !input.is_closed());
                    let mut output = writer.lock().await;
                    if stream % 2 == 0 || inputs.contains_key(&stream) || inputs.len() >= MAX_STREAMS {
                        output
                            .send(&Frame::Reset {
                                stream,
                                status: REFUSED,
                            })
                            .await?;
                        continue;
                    }
                    let block = output.deflater.write(&Headers::new()).map_err(io::Error::other)?;
                    output
                        .send(&Frame::SynReply {
                            stream,
                            fin: false,
                            block,
                        })
                        .await?;
                    drop(output);
                    let (send, input) = mpsc::channel(BACKLOG);
                    if !fin {
                        inputs.insert(stream, send);
                    }
                    let output = StreamWriter {
                        id: stream,
                        writer: writer.clone(),
                    };
                    if opened
                        .send(Stream {
                            headers,
                            input,
                            output,
                        })
                        .await
                        .is_err()
                    {
                        return Ok(());
                    }
                }
                Frame::Data { stream, fin, payload } => {
                    if let Some(input) = inputs.get(&stream).filter(|_| !payload.is_empty()) {
                        // A stream whose reader is gone still has bytes on the way.
                        let _ = input.send(payload).await;
                    }
                    if fin {
                        inputs.remove(&stream);
                    }
                }
                Frame::Headers { stream, fin, block } => {
                    inflater.read(&block).map_err(io::Error::other)?;
                    if fin {
                        inputs.remove(&stream);
                    }
                }
                Frame::SynReply { block, .. } => {
                    inflater.read(&block).map_err(io::Error::other)?;
                }
                Frame::Reset { stream, .. } => {
                    inputs.remove(&stream);
                }
                Frame::Ping(id) => writer.lock().await.send(&Frame::Ping(id)).await?,
                // The client closes the connection when it is done with its streams.
                Frame::GoAway { .. } | Frame::Other(_) => {}
            }
        }
        if io.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
