//! Header blocks (draft-mbelshe-httpbis-spdy-00, section 2.6.10): name-value pairs, compressed over the connection.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Names in lower case; a name's values are in one string, separated by NUL.
pub type Headers = BTreeMap<String, String>;

/// The most that one block may inflate to.
const MAX_BLOCK: usize = 64 << 10;

/// A header block that cannot be read; the connection is then of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad SPDY header block: {0}")]
pub struct HeaderError(String);

/// The receiving side's state: one for the whole connection.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// Inflates and reads one block.
    ///
    /// # Errors
    /// When it is not zlib data of this connection or not a list of pairs.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        let mut out = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            // What was consumed is never more than the block, which is in memory.
            let used = (self.0.total_in() - start) as usize;
            let before = out.len();
            match self
                .0
                .decompress_vec(&block[used..], &mut out, FlushDecompress::Sync)
            {
                Ok(Status::StreamEnd) => break,
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|e| HeaderError(e.to_string()))?;
                    continue;
                }
                Err(error) => return Err(HeaderError(error.to_string())),
            }
            let used = (self.0.total_in() - start) as usize;
            if out.len() > MAX_BLOCK {
                return Err(HeaderError(format!("more than {MAX_BLOCK} bytes")));
            }
            if out.len() == out.capacity() {
                out.reserve(out.len());
            } else if used == block.len() || out.len() == before {
                break;
            }
        }
        decode(&out)
    }
}

/// The sending side's state: one for the whole connection.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Self, HeaderError> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress
            .set_dictionary(&DICTIONARY)
            .map_err(|e| HeaderError(e.to_string()))?;
        Ok(Self(compress))
    }

    pub(super) fn write(&mut self, headers: &Headers) -> Result<Bytes, HeaderError> {
        let plain = encode(headers);
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            self.0
                .compress_vec(&plain[used..], &mut out, FlushCompress::Sync)
                .map_err(|e| HeaderError(e.to_string()))?;
            if out.len() < out.capacity() {
                return Ok(out.into());
            }
            out.reserve(out.len().max(64));
        }
    }
}

/// The uncompressed form of a block.
pub(super) fn encode(headers: &Headers) -> Vec<u8> {
    let mut out = Vec::new();
    // Both lengths are of strings in memory and far below 4 GiB.
    out.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// Reads an uncompressed block.
pub(super) fn decode(mut bytes: &[u8]) -> Result<Headers, HeaderError> {
    let short = || HeaderError("it is cut off".into());
    let count = bytes.try_get_u32().map_err(|_| short())?;
    let mut text = || -> Result<String, HeaderError> {
        let length = bytes.try_get_u32().map_err(|_| short())? as usize;
        let (text, rest) = bytes.split_at_checked(length).ok_or_else(short)?;
        bytes = rest;
        String::from_utf8(text.to_vec()).map_err(|_| HeaderError("it is not text".into()))
    };
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text()?.to_ascii_lowercase();
        headers.insert(name, text()?);
    }
    Ok(headers)
}
