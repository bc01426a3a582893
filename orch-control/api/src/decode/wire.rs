//! The protobuf wire format: fields of a message, without knowing the message.
//!
//! <https://protobuf.dev/programming-guides/encoding/>. Groups are refused: Kubernetes has none.

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("unexpected EOF")]
    Truncated,
    #[error("integer overflow")]
    Overflow,
    #[error("illegal tag {0}")]
    Tag(u64),
    #[error("illegal wireType {0}")]
    WireType(u8),
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    /// Integers and truth values.
    Varint(u64),
    /// Eight bytes, little-endian.
    Fixed64(u64),
    /// Text, bytes, messages, entries of maps and packed lists.
    Bytes(&'a [u8]),
    /// Four bytes, little-endian.
    Fixed32(u32),
}

/// The fields of a message, in the order written. It ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn next_field(&mut self) -> Result<(u32, Wire<'a>), WireError> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Tag(tag >> 3))?;
        if number == 0 || number > (1 << 29) - 1 {
            return Err(WireError::Tag(number.into()));
        }
        let value = match tag & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => Wire::Fixed64(u64::from_le_bytes(array(&mut self.rest)?)),
            2 => {
                let length = varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
                Wire::Bytes(take(&mut self.rest, length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(array(&mut self.rest)?)),
            other => return Err(WireError::WireType(other as u8)),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The integers of a packed list.
pub(super) fn packed(mut bytes: &[u8]) -> Result<Vec<u64>, WireError> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        out.push(varint(&mut bytes)?);
    }
    Ok(out)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (head, tail) = rest.split_at_checked(length).ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(head)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (head, tail) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

/// Seven bits per byte, the lowest first; ten bytes hold 64 bits.
fn varint(rest: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = array(rest)?;
        if shift == 63 && byte > 1 {
            return Err(WireError::Overflow);
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(WireError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, WireError> {
        Fields::new(bytes).collect()
    }

    fn write(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = value;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        out
    }

    #[test]
    fn reads_each_wire_type() {
        let bytes = b"\x08\x96\x01\x12\x02hi\x19\x01\0\0\0\0\0\0\0\x25\x02\0\0\0";
        let want = vec![
            (1, Wire::Varint(150)),
            (2, Wire::Bytes(b"hi")),
            (3, Wire::Fixed64(1)),
            (4, Wire::Fixed32(2)),
        ];
        assert_eq!(read(bytes), Ok(want));
    }

    #[test]
    fn refuses_what_is_no_message() {
        for (bytes, error) in [
            (&b"\x08"[..], WireError::Truncated),
            (b"\x0a\x02a", WireError::Truncated),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                WireError::Truncated,
            ),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                WireError::Overflow,
            ),
            (b"\x00\x00", WireError::Tag(0)),
            (b"\x80\x80\x80\x80\x10\x00", WireError::Tag(1 << 29)),
            (b"\x0b\x0c", WireError::WireType(3)),
            (b"\x0f", WireError::WireType(7)),
        ] {
            assert_eq!(read(bytes), Err(error), "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn integers_return(value: u64, number in 1_u32..(1 << 29)) {
            let bytes = [write(u64::from(number) << 3), write(value)].concat();
            prop_assert_eq!(read(&bytes), Ok(vec![(number, Wire::Varint(value))]));
            prop_assert_eq!(packed(&write(value)), Ok(vec![value]));
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            let _ = read(&bytes);
            let _ = packed(&bytes);
        }
    }
}
