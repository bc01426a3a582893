//! From one layout to another, member by member.

use super::btf::{Member, Type};

/// One step of a conversion; offsets and sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Copy {
        from: usize,
        to: usize,
        length: usize,
    },
    Number {
        from: usize,
        from_size: usize,
        signed: bool,
        to: usize,
        to_size: usize,
    },
}

/// How to make a new key or value of an old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversion {
    steps: Vec<Step>,
    size: usize,
}

/// Why two layouts cannot be converted: the member's path and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Incompatible {
    path: String,
    reason: &'static str,
}

impl Incompatible {
    fn new(reason: &'static str) -> Self {
        Self {
            path: String::new(),
            reason,
        }
    }

    fn within(mut self, name: &str) -> Self {
        self.path = match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{name}.{}", self.path),
        };
        self
    }
}

/// Whether a member says nothing: its name starts like `_pad`.
fn is_padding(member: &Member) -> bool {
    member.name.starts_with('_')
}

impl Conversion {
    /// A conversion of values: members that are new become zero, those that are gone are dropped, arrays are cut or
    /// filled up with zeros, and numbers keep their value.
    ///
    /// # Errors
    /// When a member is another kind of thing.
    pub fn of_values(from: &Type, to: &Type) -> Result<Self, Incompatible> {
        Self::between(from, to, false)
    }

    /// A conversion of keys, which keeps different keys different and leaves nothing to guess: both have the same
    /// members.
    ///
    /// # Errors
    /// When a member is new, gone or another kind of thing.
    pub fn of_keys(from: &Type, to: &Type) -> Result<Self, Incompatible> {
        Self::between(from, to, true)
    }

    fn between(from: &Type, to: &Type, key: bool) -> Result<Self, Incompatible> {
        let mut conversion = Self {
            steps: Vec::new(),
            size: to.size(),
        };
        conversion.plan((from, 0), (to, 0), key)?;
        Ok(conversion)
    }

    fn plan(&mut self, old: (&Type, usize), new: (&Type, usize), key: bool) -> Result<(), Incompatible> {
        let ((from, at), (to, there)) = (old, new);
        match (from, to) {
            (Type::Struct { members: olds, .. }, Type::Struct { members: news, .. }) => {
                if key
                    && let Some(gone) = olds
                        .iter()
                        .find(|old| !is_padding(old) && to.member(&old.name).is_none())
                {
                    return Err(Incompatible::new("no longer part of the key").within(&gone.name));
                }
                for new in news.iter().filter(|new| !is_padding(new)) {
                    let Some(old) = from.member(&new.name) else {
                        if key {
                            return Err(Incompatible::new("a new part of the key").within(&new.name));
                        }
                        continue;
                    };
                    self.plan((&old.of, at + old.offset), (&new.of, there + new.offset), key)
                        .map_err(|error| error.within(&new.name))?;
                }
            }
            _ if from == to => self.steps.push(Step::Copy {
                from: at,
                to: there,
                length: to.size(),
            }),
            (Type::Integer { size, signed }, Type::Integer { size: to_size, .. }) => {
                self.steps.push(Step::Number {
                    from: at,
                    from_size: *size,
                    signed: *signed,
                    to: there,
                    to_size: *to_size,
                });
            }
            (
                Type::Array { element, count },
                Type::Array {
                    element: wanted,
                    count: room,
                },
            ) => {
                if key && count != room {
                    return Err(Incompatible::new("an array of another length in the key"));
                }
                for index in 0..*count.min(room) {
                    let (old, new) = (at + index * element.size(), there + index * wanted.size());
                    self.plan((element, old), (wanted, new), key)?;
                }
            }
            // The same number in pieces of the machine's order, or together again.
            (Type::Integer { size, .. }, Type::Array { element, .. })
            | (Type::Array { element, .. }, Type::Integer { size, .. })
                if matches!(**element, Type::Integer { .. })
                    && from.size() == to.size()
                    && *size == to.size() =>
            {
                self.steps.push(Step::Copy {
                    from: at,
                    to: there,
                    length: *size,
                });
            }
            _ => return Err(Incompatible::new("another kind of thing")),
        }
        Ok(())
    }

    /// The new bytes; `None` when a number does not fit or the old bytes are too few.
    pub fn apply(&self, old: &[u8]) -> Option<Vec<u8>> {
        let mut new = vec![0; self.size];
        for step in &self.steps {
            match *step {
                Step::Copy { from, to, length } => new
                    .get_mut(to..to + length)?
                    .copy_from_slice(old.get(from..from + length)?),
                Step::Number {
                    from,
                    from_size,
                    signed,
                    to,
                    to_size,
                } => {
                    let number = read(old.get(from..from + from_size)?, signed)?;
                    write(new.get_mut(to..to + to_size)?, number)?;
                }
            }
        }
        Some(new)
    }
}

/// The number that the bytes are.
fn read(bytes: &[u8], signed: bool) -> Option<i128> {
    Some(match (bytes, signed) {
        ([byte], false) => i128::from(*byte),
        ([byte], true) => i128::from(byte.cast_signed()),
        (_, signed) => match (bytes.len(), signed) {
            (2, false) => i128::from(u16::from_ne_bytes(bytes.try_into().ok()?)),
            (2, true) => i128::from(i16::from_ne_bytes(bytes.try_into().ok()?)),
            (4, false) => i128::from(u32::from_ne_bytes(bytes.try_into().ok()?)),
            (4, true) => i128::from(i32::from_ne_bytes(bytes.try_into().ok()?)),
            (8, false) => i128::from(u64::from_ne_bytes(bytes.try_into().ok()?)),
            (8, true) => i128::from(i64::from_ne_bytes(bytes.try_into().ok()?)),
            _ => return None,
        },
    })
}

/// Writes a number; `None` when it does not fit, with a sign or without.
fn write(bytes: &mut [u8], number: i128) -> Option<()> {
    let bits = u32::try_from(bytes.len()).ok()?.checked_mul(8)?;
    let (least, most) = (-(1_i128 << (bits - 1)), (1_i128 << bits) - 1);
    if number < least || number > most {
        return None;
    }
    match bytes.len() {
        1 => bytes.copy_from_slice(&(number as u8).to_ne_bytes()),
        2 => bytes.copy_from_slice(&(number as u16).to_ne_bytes()),
        4 => bytes.copy_from_slice(&(number as u32).to_ne_bytes()),
        8 => bytes.copy_from_slice(&(number as u64).to_ne_bytes()),
        _ => return None,
    }
    Some(())
}

/// A whole unsigned number of eight bytes in a value, by its member's name: when an entry was last used.
#[derive(Debug, Clone, Copy)]
pub struct Stamp(usize);

impl Stamp {
    /// Where values of this type say when they were last used.
    pub fn of(value: &Type) -> Option<Self> {
        let member = value.member("last_seen").or_else(|| value.member("last_used"))?;
        (member.of.size() == 8).then_some(Self(member.offset))
    }

    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn read(self, value: &[u8]) -> u64 {
        let bytes = value.get(self.0..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const U16: Type = Type::Integer {
        size: 2,
        signed: false,
    };
    const U32: Type = Type::Integer {
        size: 4,
        signed: false,
    };
    const I8: Type = Type::Integer {
        size: 1,
        signed: true,
    };

    fn record(members: &[(&str, usize, Type)], size: usize) -> Type {
        let members = members.iter().map(|(name, offset, of)| Member {
            name: (*name).to_owned(),
            offset: *offset,
            of: of.clone(),
        });
        Type::Struct {
            size,
            members: members.collect(),
        }
    }

    fn array(element: Type, count: usize) -> Type {
        Type::Array {
            element: Box::new(element),
            count,
        }
    }

    #[test]
    fn members_move_come_and_go_by_name() {
        let old = record(
            &[("a", 0, U32), ("gone", 4, U32), ("c", 8, U16), ("_pad", 10, U16)],
            12,
        );
        let new = record(
            &[("c", 0, U32), ("fresh", 4, U32), ("a", 8, U32), ("_pad", 12, U32)],
            16,
        );
        let conversion = Conversion::of_values(&old, &new).unwrap();
        let bytes: Vec<u8> = [1_u32, 2, 0xffff_0003]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        let expected: Vec<u8> = [3_u32, 0, 1, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
        assert_eq!(conversion.apply(&bytes), Some(expected));
        assert_eq!(
            conversion.apply(&bytes[..10]),
            Some(conversion.apply(&bytes).unwrap())
        );
        assert_eq!(conversion.apply(&bytes[..9]), None);
    }

    #[test]
    fn numbers_keep_their_value_or_refuse() {
        let narrow = Conversion::of_values(&U32, &U16).unwrap();
        assert_eq!(
            narrow.apply(&7_u32.to_ne_bytes()),
            Some(7_u16.to_ne_bytes().to_vec())
        );
        assert_eq!(narrow.apply(&70_000_u32.to_ne_bytes()), None);
        let wide = Conversion::of_values(&I8, &U32).unwrap();
        assert_eq!(wide.apply(&[0xff]), Some((-1_i32).to_ne_bytes().to_vec()));
    }

    #[test]
    fn arrays_are_cut_and_filled_up_in_values_only() {
        let (two, three) = (array(U16, 2), array(U16, 3));
        let bytes: Vec<u8> = [1_u16, 2, 3].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let cut = Conversion::of_values(&three, &two).unwrap();
        assert_eq!(cut.apply(&bytes).unwrap(), bytes[..4]);
        let filled = Conversion::of_values(&two, &three)
            .unwrap()
            .apply(&bytes[..4])
            .unwrap();
        assert_eq!((&filled[..4], &filled[4..]), (&bytes[..4], &[0, 0][..]));
        assert!(Conversion::of_keys(&two, &three).is_err());
    }

    #[test]
    fn a_number_may_come_in_pieces() {
        let whole = Type::Integer {
            size: 8,
            signed: false,
        };
        let there = Conversion::of_keys(&whole, &array(U32, 2)).unwrap();
        let bytes = 0x0102_0304_0506_0708_u64.to_ne_bytes();
        assert_eq!(there.apply(&bytes), Some(bytes.to_vec()));
        assert!(Conversion::of_keys(&whole, &array(U32, 3)).is_err());
    }

    #[test]
    fn keys_keep_their_members_and_errors_name_them() {
        let old = record(&[("a", 0, U32), ("b", 4, U32)], 8);
        let new = record(&[("a", 0, U32)], 4);
        assert_eq!(
            Conversion::of_keys(&old, &new).unwrap_err().to_string(),
            "b: no longer part of the key"
        );
        assert_eq!(
            Conversion::of_keys(&new, &old).unwrap_err().to_string(),
            "b: a new part of the key"
        );
        let nested = |inner: Type| record(&[("outer", 0, record(&[("inner", 0, inner)], 4))], 4);
        let error = Conversion::of_values(&nested(U32), &nested(array(U16, 1))).unwrap_err();
        assert_eq!(error.to_string(), "outer.inner: another kind of thing");
    }
}
