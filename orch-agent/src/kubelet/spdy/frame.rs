//! SPDY/3 frames (draft-mbelshe-httpbis-spdy-00, section 2.2): parsing from a buffer and writing.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The largest frame that is accepted, in bytes of payload; client-go writes at most 32 KiB at once.
pub const MAX_FRAME: usize = 1 << 20;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// One frame; header blocks are still compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: u32,
        /// The sender is done with the stream.
        fin: bool,
        /// The bytes.
        payload: Bytes,
    },
    /// A new stream.
    SynStream {
        /// Its number: odd from clients.
        stream: u32,
        /// The sender will send nothing on it.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// A new stream is accepted.
    SynReply {
        /// Its number.
        stream: u32,
        /// The sender will send nothing on it.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// The sender is done with the stream.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// The end of a stream, both ways.
    Reset {
        /// Its number.
        stream: u32,
        /// Why (section 2.4.2): 1 protocol error, 3 refused, 5 cancel.
        status: u32,
    },
    /// To be sent back as it is.
    Ping(u32),
    /// The peer opens no more streams.
    GoAway {
        /// The last stream it took.
        last: u32,
        /// 0 when all is well.
        status: u32,
    },
    /// A control frame that means nothing here (settings, window updates, credentials).
    Other(u16),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version of the protocol.
    #[error("SPDY version {0} is not supported")]
    Version(u16),
    /// Above [`MAX_FRAME`].
    #[error("a SPDY frame of {0} bytes is too large")]
    TooLarge(usize),
    /// A control frame shorter than its fields.
    #[error("a SPDY control frame of type {0} is too short")]
    Short(u16),
}

/// Takes one frame off the front of `buffer`, or nothing when it is not complete.
///
/// # Errors
/// When the bytes are no frame; the connection is then of no more use.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = buffer.first_chunk::<8>() else {
        return Ok(None);
    };
    let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let flags = header[4];
    let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
    let control = first >> 31 == 1;
    let version = (first >> 16) as u16 & 0x7fff;
    if control && version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let mut body = buffer.split_to(length).freeze();
    let fin = flags & FLAG_FIN != 0;
    if !control {
        return Ok(Some(Frame::Data {
            stream: first,
            fin,
            payload: body,
        }));
    }
    let kind = first as u16;
    let word = |body: &mut Bytes| body.try_get_u32().map_err(|_| FrameError::Short(kind));
    let stream = |body: &mut Bytes| word(body).map(|id| id & 0x7fff_ffff);
    let frame = match kind {
        SYN_STREAM => {
            let stream = stream(&mut body)?;
            // The associated stream, then priority and slot.
            word(&mut body)?;
            body.try_get_u16().map_err(|_| FrameError::Short(kind))?;
            Frame::SynStream {
                stream,
                fin,
                block: body,
            }
        }
        SYN_REPLY => Frame::SynReply {
            stream: stream(&mut body)?,
            fin,
            block: body,
        },
        HEADERS => Frame::Headers {
            stream: stream(&mut body)?,
            fin,
            block: body,
        },
        RST_STREAM => Frame::Reset {
            stream: stream(&mut body)?,
            status: word(&mut body)?,
        },
        PING => Frame::Ping(word(&mut body)?),
        GOAWAY => Frame::GoAway {
            last: stream(&mut body)?,
            status: word(&mut body)?,
        },
        other => Frame::Other(other),
    };
    Ok(Some(frame))
}

impl Frame {
    /// The frame's bytes. Payloads must be below 16 MiB; [`Frame::Other`] has no bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Data { stream, fin, payload } => {
                out.put_u32(*stream & 0x7fff_ffff);
                put_length(&mut out, *fin, payload.len());
                out.put_slice(payload);
            }
            Self::SynStream { stream, fin, block } => {
                control(&mut out, SYN_STREAM, *fin, 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(block);
            }
            Self::SynReply { stream, fin, block } => {
                control(&mut out, SYN_REPLY, *fin, 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(block);
            }
            Self::Headers { stream, fin, block } => {
                control(&mut out, HEADERS, *fin, 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(block);
            }
            Self::Reset { stream, status } => {
                control(&mut out, RST_STREAM, false, 8);
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Self::Ping(id) => {
                control(&mut out, PING, false, 4);
                out.put_u32(*id);
            }
            Self::GoAway { last, status } => {
                control(&mut out, GOAWAY, false, 8);
                out.put_u32(*last);
                out.put_u32(*status);
            }
            Self::Other(_) => {}
        }
        out.freeze()
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(out, fin, length);
}

fn put_length(out: &mut BytesMut, fin: bool, length: usize) {
    out.put_u8(u8::from(fin) * FLAG_FIN);
    out.put_uint(length as u64, 3);
}
