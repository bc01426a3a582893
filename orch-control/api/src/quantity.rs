//! [`Quantity`]: the numbers with suffixes that resources are counted in (`resource.Quantity`).
//!
//! The value is kept as an integer of nano units, which is as fine as Kubernetes counts; what is finer
//! is rounded up. Values are limited to ±(2^63 - 1) units.

use std::cmp::Ordering;
use std::fmt;

/// Nano units in a unit.
const NANO: i128 = 1_000_000_000;

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not have the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is well formed and its suffix is not.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Which family of suffixes a quantity is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// A quantity, e.g. `100m`, `1.5Gi`, `2e3`. Equality and order are those of the amounts.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (format, scale) = read_suffix(suffix)?;
        let nanos = nanos(whole, fraction, scale);
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    /// The amount in whole units, rounded up (`Value()`).
    pub fn value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded up (`MilliValue()`).
    pub fn milli_value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO / 1000))
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

/// What the suffix multiplies by.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn read_suffix(suffix: &str) -> Result<(Format, Scale), QuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, Scale::Ten(*power)));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, Scale::Two(*shift)));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E'])
        && let Ok(power) = exponent.parse::<i32>()
    {
        return Ok((Format::DecimalExponent, Scale::Ten(power.clamp(-1000, 1000))));
    }
    let allowed = |c: char| "eEinumkKMGTP+-0123456789".contains(c);
    Err(if suffix.chars().all(allowed) {
        QuantityError::Suffix
    } else {
        QuantityError::Format
    })
}

/// The largest amount, as Kubernetes caps it.
const MAX: i128 = (i64::MAX as i128) * NANO;

fn nanos(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // i128 holds 38 digits: keep 28, which leaves room for the scale, and round the others up.
    let dropped = digits.len().saturating_sub(28);
    let mut mantissa: i128 = digits[..digits.len() - dropped]
        .bytes()
        .fold(0, |n, d| n * 10 + i128::from(d - b'0'));
    if digits[digits.len() - dropped..].bytes().any(|d| d != b'0') {
        mantissa += 1;
    }
    let mut power = dropped as i64 - fraction.len() as i64 + 9;
    match scale {
        Scale::Ten(p) => power += i64::from(p),
        Scale::Two(shift) => match mantissa.checked_mul(1_i128 << shift) {
            Some(product) => mantissa = product,
            None => return MAX,
        },
    }
    for _ in 0..power.max(0) {
        mantissa = match mantissa.checked_mul(10) {
            Some(product) if product <= MAX * 10 => product,
            _ => return MAX,
        };
    }
    for _ in 0..(-power).clamp(0, 60) {
        mantissa = ceil_div(mantissa, 10);
    }
    mantissa.min(MAX)
}

/// Division that rounds away from zero.
fn ceil_div(n: i128, d: i128) -> i128 {
    let quotient = n / d;
    if n % d == 0 {
        quotient
    } else {
        quotient + n.signum()
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the amount exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1Ki there is no binary suffix, and fractions of a unit have none either.
        let whole = self.nanos % NANO == 0;
        if self.format == Format::BinarySi && whole && self.nanos.abs() >= 1024 * NANO {
            let units = self.nanos / NANO;
            let fitting = BINARY
                .iter()
                .rev()
                .find(|(_, shift)| units % (1_i128 << shift) == 0);
            return match fitting {
                Some((suffix, shift)) => write!(f, "{}{suffix}", units / (1_i128 << shift)),
                None => write!(f, "{units}"),
            };
        }
        let (mut mantissa, mut power) = (self.nanos, -9);
        while mantissa % 1000 == 0 && power < 18 {
            mantissa /= 1000;
            power += 3;
        }
        match (self.format, power) {
            (_, 0) => write!(f, "{mantissa}"),
            (Format::DecimalExponent, power) => write!(f, "{mantissa}e{power}"),
            (_, power) => {
                let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(s, _)| *s);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("0.1", "100m"),
            ("100m", "100m"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1500k", "1500k"),
            ("0.5Ki", "512"),
            ("-1.5", "-1500m"),
            ("1.", "1"),
            (".5", "500m"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("0.1n", "1n"),
            ("1Ei", "1Ei"),
            ("+2", "2"),
            ("1023Ki", "1023Ki"),
            ("1e0", "1"),
            ("100000000000000000000", "9223372036854775807"),
        ];
        for (text, canonical) in cases {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()).as_deref(),
                Ok(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed() {
        for text in ["", "a", "1.2.3", "1 Gi", "--1", "Mi", "1gb", ".", "1_000"] {
            assert_eq!(
                Quantity::parse(text).unwrap_err(),
                QuantityError::Format,
                "{text}"
            );
        }
        for text in ["1mM", "1KI", "1e", "1ee3"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts() {
        let q = |t: &str| Quantity::parse(t).unwrap();
        assert_eq!(q("1.5").value(), 2);
        assert_eq!(q("100m").milli_value(), 100);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1") && q("-1").is_negative() && q("0k").is_zero());
    }

    proptest! {
        #[test]
        fn printing_keeps_the_amount(whole in 0_i64..1_000_000_000, suffix in "(n|u|m||k|M|G|Ki|Mi|Gi|e3|e-2)") {
            let q = Quantity::parse(&format!("{whole}{suffix}")).unwrap();
            let printed = q.to_string();
            let again = Quantity::parse(&printed).unwrap();
            prop_assert_eq!(q, again);
            prop_assert_eq!(again.to_string(), printed);
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            if let Ok(q) = Quantity::parse(&text) { let _ = q.to_string(); }
        }

        #[test]
        fn never_panics_on_numbers(text in "[+-]?[0-9.]{0,60}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12}") {
            if let Ok(q) = Quantity::parse(&text) { let _ = (q.to_string(), q.value(), q.milli_value()); }
        }
    }
}
