//! Kubernetes quantities ("250m", "1.5Gi", "1e3") as whole numbers.
//!
//! The grammar is that of the API's `Quantity`: a signed decimal, then a binary suffix (Ki…Ei), a decimal one (n…E)
//! or an exponent. Fractions of the wanted unit are rounded up, as Kubernetes does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity that does not follow the grammar, or does not fit 64 bits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("quantity {0:?} is not a number with an optional suffix")]
pub struct QuantityError(String);

/// The quantity in whole units (bytes, cores), rounded up.
///
/// # Errors
/// When the text is not a quantity or does not fit.
pub fn whole(quantity: &Quantity) -> Result<i64, QuantityError> {
    scaled(&quantity.0, 1)
}

/// The quantity in thousandths (millicores), rounded up.
///
/// # Errors
/// When the text is not a quantity or does not fit.
pub fn milli(quantity: &Quantity) -> Result<i64, QuantityError> {
    scaled(&quantity.0, 1000)
}

fn scaled(text: &str, unit: i128) -> Result<i64, QuantityError> {
    parse(text.trim(), unit)
        .and_then(|n| i64::try_from(n).ok())
        .ok_or_else(|| QuantityError(text.to_owned()))
}

/// `text` times `unit`, rounded away from zero.
fn parse(text: &str, unit: i128) -> Option<i128> {
    let end = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if integer.is_empty() && fraction.is_empty()
        || !(integer.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let mantissa: i128 = format!("0{integer}{fraction}").parse().ok()?;
    let mut exponent = -i32::try_from(fraction.len()).ok()?;
    let mut binary = 0u32;
    match suffix {
        "" => {}
        "n" => exponent -= 9,
        "u" => exponent -= 6,
        "m" => exponent -= 3,
        "k" => exponent += 3,
        "M" => exponent += 6,
        "G" => exponent += 9,
        "T" => exponent += 12,
        "P" => exponent += 15,
        "E" => exponent += 18,
        "Ki" => binary = 10,
        "Mi" => binary = 20,
        "Gi" => binary = 30,
        "Ti" => binary = 40,
        "Pi" => binary = 50,
        "Ei" => binary = 60,
        _ => exponent += suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?,
    }
    let value = mantissa
        .checked_mul(unit)?
        .checked_mul(1i128.checked_shl(binary)?)?;
    let value = if exponent >= 0 {
        value.checked_mul(10i128.checked_pow(exponent.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(exponent.unsigned_abs())?;
        value.checked_add(divisor - 1)? / divisor
    };
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_suffix_and_rounds_up() {
        let cases = [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("250m", 1, 250),
            ("1.5", 2, 1500),
            (".5", 1, 500),
            ("100Mi", 104_857_600, 104_857_600_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("1e3", 1000, 1_000_000),
            ("2E", 2_000_000_000_000_000_000, -1),
            ("5n", 1, 1),
            ("+3k", 3000, 3_000_000),
            ("-1", -1, -1000),
        ];
        for (text, units, thousandths) in cases {
            assert_eq!(whole(&Quantity(text.into())), Ok(units), "{text}");
            if thousandths != -1 {
                assert_eq!(milli(&Quantity(text.into())), Ok(thousandths), "{text}");
            }
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "",
            "abc",
            "1..2",
            "1Zi",
            "m",
            "1e",
            "--1",
            "99999999999999999999E",
        ] {
            assert!(whole(&Quantity(text.into())).is_err(), "{text}");
        }
    }
}
