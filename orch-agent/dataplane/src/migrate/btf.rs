//! Reads BTF (Linux, Documentation/bpf/btf.rst) as far as the types of maps' keys and values need it.

use std::io;

const MAGIC: u16 = 0xeb9f;
/// How deep types may nest before they are taken for a loop.
const DEPTH_MAX: usize = 32;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
const ENCODING_SIGNED: u32 = 1;

/// A type's layout. Two are equal when any bytes mean the same in both, whatever the types are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// A number, or an enumeration.
    Integer {
        /// Bytes: 1, 2, 4 or 8.
        size: usize,
        /// Whether the highest bit is a sign.
        signed: bool,
    },
    /// Elements in a row.
    Array {
        /// What each of them is.
        element: Box<Self>,
        /// How many there are.
        count: usize,
    },
    /// Members with names.
    Struct {
        /// Bytes, the padding included.
        size: usize,
        /// The members.
        members: Vec<Member>,
    },
    /// Something that is only ever copied as it is: a union, a floating-point number, bit fields.
    Opaque {
        /// Number of the kind.
        kind: u32,
        /// Bytes.
        size: usize,
    },
}

/// A struct's member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// What it is.
    pub of: Type,
}

impl Type {
    /// Bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Integer { size, .. } | Self::Struct { size, .. } | Self::Opaque { size, .. } => *size,
            Self::Array { element, count } => element.size().saturating_mul(*count),
        }
    }

    /// A struct's member by its name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        match self {
            Self::Struct { members, .. } => members.iter().find(|member| member.name == name),
            _ => None,
        }
    }
}

/// One of the types as it stands in the bytes.
#[derive(Debug, Clone, Copy)]
struct Record {
    kind: u32,
    /// Whether members may be bit fields.
    flag: bool,
    /// Members, enumerators or parameters.
    length: usize,
    /// Size, or another type's number.
    size_or_type: u32,
    /// Where what follows the first twelve bytes starts.
    data: usize,
}

/// A BTF object.
#[derive(Debug)]
pub struct Btf<'a> {
    bytes: &'a [u8],
    /// Types by number less one.
    records: Vec<Record>,
    strings: usize,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("BTF: {what}"))
}

impl<'a> Btf<'a> {
    /// Reads the table of types.
    ///
    /// # Errors
    /// When the bytes are no BTF of this machine's byte order, or hold a kind of type that nobody had heard of.
    pub fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        let mut btf = Self {
            bytes,
            records: Vec::new(),
            strings: 0,
        };
        if btf.half(0)? != MAGIC {
            return Err(broken("not this machine's"));
        }
        let header = btf.word(4)? as usize;
        let types = header.saturating_add(btf.word(8)? as usize);
        let end = types.saturating_add(btf.word(12)? as usize);
        btf.strings = header.saturating_add(btf.word(16)? as usize);
        let mut at = types;
        while at < end {
            let info = btf.word(at + 4)?;
            let record = Record {
                kind: info >> 24 & 0x1f,
                flag: info >> 31 != 0,
                length: (info & 0xffff) as usize,
                size_or_type: btf.word(at + 8)?,
                data: at + 12,
            };
            at = record.data
                + match record.kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * record.length,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * record.length,
                    kind if kind > 0 && kind <= KIND_ENUM64 => 0,
                    _ => return Err(broken("a kind that is not known")),
                };
            btf.records.push(record);
        }
        Ok(btf)
    }

    fn half(&self, at: usize) -> io::Result<u16> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes
            .map(|bytes| u16::from_ne_bytes(*bytes))
            .ok_or_else(|| broken("cut off"))
    }

    fn word(&self, at: usize) -> io::Result<u32> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .ok_or_else(|| broken("cut off"))
    }

    fn string(&self, offset: u32) -> io::Result<String> {
        let start = self.strings.saturating_add(offset as usize);
        let rest = self
            .bytes
            .get(start..)
            .ok_or_else(|| broken("a name out of bounds"))?;
        let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// The layout of the type of this number.
    ///
    /// # Errors
    /// When the number or one that it leads to names no type of data.
    pub fn layout(&self, number: u32) -> io::Result<Type> {
        self.at_depth(number, DEPTH_MAX)
    }

    fn at_depth(&self, number: u32, depth: usize) -> io::Result<Type> {
        let index = (number as usize).checked_sub(1);
        let record = index
            .and_then(|index| self.records.get(index))
            .ok_or_else(|| broken("no type of this number"))?;
        let depth = depth.checked_sub(1).ok_or_else(|| broken("types in a loop"))?;
        let size = record.size_or_type as usize;
        let opaque = Type::Opaque {
            kind: record.kind,
            size,
        };
        match record.kind {
            KIND_INT => {
                let data = self.word(record.data)?;
                // Bits of the number, and where they start.
                let whole = (data & 0xff) as usize == size * 8 && data >> 16 & 0xff == 0;
                Ok(match size {
                    1 | 2 | 4 | 8 if whole => Type::Integer {
                        size,
                        signed: data >> 24 & ENCODING_SIGNED != 0,
                    },
                    _ => opaque,
                })
            }
            KIND_ENUM | KIND_ENUM64 if matches!(size, 1 | 2 | 4 | 8) => Ok(Type::Integer {
                size,
                signed: record.flag,
            }),
            KIND_ARRAY => Ok(Type::Array {
                element: Box::new(self.at_depth(self.word(record.data)?, depth)?),
                count: self.word(record.data + 8)? as usize,
            }),
            KIND_STRUCT => {
                let mut members = Vec::with_capacity(record.length);
                for index in 0..record.length {
                    let at = record.data + 12 * index;
                    let bits = self.word(at + 8)?;
                    let (width, offset) = match record.flag {
                        true => (bits >> 24, bits & 0x00ff_ffff),
                        false => (0, bits),
                    };
                    if width != 0 || offset % 8 != 0 {
                        return Ok(opaque);
                    }
                    let member = Member {
                        name: self.string(self.word(at)?)?,
                        offset: offset as usize / 8,
                        of: self.at_depth(self.word(at + 4)?, depth)?,
                    };
                    if member.offset.saturating_add(member.of.size()) > size {
                        return Err(broken("a member outside its struct"));
                    }
                    members.push(member);
                }
                Ok(Type::Struct { size, members })
            }
            KIND_UNION | KIND_FLOAT => Ok(opaque),
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                self.at_depth(record.size_or_type, depth)
            }
            _ => Err(broken("not a type of data")),
        }
    }
}
