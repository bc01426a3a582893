//! Messages as bytes, cut to what the client can take.

use hickory_proto::{ProtoError, op::Message};

/// The message in at most `limit` bytes. What does not fit is left out: first the additional records, which may be
/// missing without a word (RFC 2181 section 9), then as many answers as need be, with the truncation bit set.
///
/// # Errors
/// When a record cannot be written at all.
pub(crate) fn encode(mut message: Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    if let Some(bytes) = fits(&message, limit)? {
        return Ok(bytes);
    }
    message.additionals.clear();
    if let Some(bytes) = fits(&message, limit)? {
        return Ok(bytes);
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let answers = std::mem::take(&mut message.answers);
    let mut best = message.to_vec()?;
    let (mut low, mut high) = (0, answers.len());
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        message.answers = answers[..middle].to_vec();
        match fits(&message, limit)? {
            Some(bytes) => {
                best = bytes;
                low = middle;
            }
            None => high = middle - 1,
        }
    }
    Ok(best)
}

fn fits(message: &Message, limit: u16) -> Result<Option<Vec<u8>>, ProtoError> {
    let bytes = message.to_vec()?;
    // The encoder itself leaves out what does not fit the largest message there can be; the header tells.
    let additionals = message.additionals.len() + usize::from(message.edns.is_some());
    let sections = [message.answers.len(), message.authorities.len(), additionals];
    let written = bytes
        .get(6..12)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|count| usize::from(u16::from_be_bytes([count[0], count[1]])));
    let whole = written.eq(sections);
    Ok((whole && bytes.len() <= usize::from(limit)).then_some(bytes))
}
