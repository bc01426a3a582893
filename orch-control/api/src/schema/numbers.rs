//! The protobuf field numbers of the types, read on first use from `schemas/v1.36.numbers.txt`.
//!
//! The file has a line per message and, indented, a line per field: JSON name, number and `*` if Go holds
//! a scalar by pointer. `A.B` is field B of a message that JSON inlines and protobuf nests at field A.
//! Fields of v1.36 that the source of the numbers does not have yet are left out, and so not read from
//! protobuf. `examples/generate_numbers.rs` writes the file.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::definitions::{Field, definition};

/// The file.
const TEXT: &str = include_str!("../../schemas/v1.36.numbers.txt");

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Numbered {
    /// The number of the message it is inlined from, or 0.
    outer: u8,
    number: u8,
    /// Whether a zero is told apart from absence.
    pub pointer: bool,
    /// The field in JSON.
    pub field: &'static Field,
}

/// What a field number leads to.
pub(crate) enum Found<'a> {
    Field(&'a Numbered),
    /// A message whose fields belong to the same JSON object; see [`Message::inner`].
    Inlined,
    Unknown,
}

/// A protobuf message: a type beside its numbers.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<Numbered>);

impl Message {
    /// The field with this number.
    pub fn field(&self, number: u32) -> Found<'_> {
        match self.inner(0, number) {
            Some(field) => Found::Field(field),
            None if self.0.iter().any(|f| u32::from(f.outer) == number) => Found::Inlined,
            None => Found::Unknown,
        }
    }

    /// The field with this number in the message inlined at `outer`.
    pub fn inner(&self, outer: u32, number: u32) -> Option<&Numbered> {
        self.0
            .iter()
            .find(|f| u32::from(f.outer) == outer && u32::from(f.number) == number)
    }
}

/// The message of the type called `name`.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    static MESSAGES: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    MESSAGES.get_or_init(|| read(TEXT)).get(name)
}

fn read(text: &'static str) -> HashMap<&'static str, Message> {
    let mut out: HashMap<&'static str, Message> = HashMap::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some(line) = line.strip_prefix(' ') else {
            current = line;
            out.entry(current).or_default();
            continue;
        };
        let mut words = line.split(' ');
        let field = definition(current)
            .zip(words.next())
            .and_then(|(d, w)| d.field(w));
        let path = words.next().unwrap_or_default();
        let (outer, number) = path.split_once('.').unwrap_or(("0", path));
        if let (Some(field), Ok(outer), Ok(number)) = (field, outer.parse(), number.parse()) {
            out.entry(current).or_default().0.push(Numbered {
                outer,
                number,
                pointer: words.next() == Some("*"),
                field,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KINDS;
    use crate::schema::definitions::Shape;

    #[test]
    fn every_line_is_read_and_no_number_stands_twice() {
        let messages = read(TEXT);
        let lines = TEXT.lines().filter(|l| l.starts_with(' ')).count();
        assert_eq!(messages.values().map(|m| m.0.len()).sum::<usize>(), lines);
        assert!(lines > 900, "only {lines} fields");
        for (name, message) in &messages {
            for f in &message.0 {
                assert_ne!(f.number, 0, "{name}.{}", f.field.name);
                let same = message
                    .0
                    .iter()
                    .filter(|o| (o.outer, o.number) == (f.outer, f.number));
                assert_eq!(same.count(), 1, "{name}.{}", f.field.name);
                // A number cannot be a field and an inlined message at once.
                assert!(f.outer == 0 || message.inner(0, f.outer.into()).is_none());
            }
        }
    }

    #[test]
    fn what_is_reachable_by_numbers_has_numbers() {
        for kind in KINDS {
            assert!(message(kind.schema).is_some(), "{}", kind.schema);
        }
        for message_ in read(TEXT).values() {
            for f in &message_.0 {
                let mut shape = &f.field.shape;
                while let Shape::List(inner) | Shape::Map(inner) = shape {
                    shape = inner;
                }
                if let Shape::Object(name) = shape {
                    assert!(message(name).is_some(), "{name}");
                }
            }
        }
    }
}
