//! The wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding): tags and their contents.

/// Bytes that are not in the format.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// A field's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// Integers and truth values.
    Varint(u64),
    /// Doubles.
    Fixed64(u64),
    /// Floats; no type of Kubernetes has one.
    Fixed32,
    /// Text, bytes and messages.
    Bytes(&'a [u8]),
}

/// The fields of a message, in order, each with its number. Ends after the first error.
pub(super) fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<(u64, Field<'a>), Malformed> {
    let tag = varint(rest)?;
    let field = match tag & 7 {
        0 => Field::Varint(varint(rest)?),
        1 => Field::Fixed64(u64::from_le_bytes(*take::<8>(rest)?)),
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Malformed("a length is too large"))?;
            let (content, after) = rest
                .split_at_checked(length)
                .ok_or(Malformed("the message is cut off"))?;
            *rest = after;
            Field::Bytes(content)
        }
        5 => {
            take::<4>(rest)?;
            Field::Fixed32
        }
        _ => return Err(Malformed("a wire type is unknown")),
    };
    Ok((tag >> 3, field))
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Malformed> {
    let (content, after) = rest
        .split_first_chunk::<N>()
        .ok_or(Malformed("the message is cut off"))?;
    *rest = after;
    Ok(content)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = *take::<1>(rest)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed("a number is too long"))
}
