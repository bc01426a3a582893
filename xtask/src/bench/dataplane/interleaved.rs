//! Two ways beside each other: measured in turns, so that whatever else the machine does befalls both.

use anyhow::Result;

use crate::bench::median;

/// How often each way is measured: many short rounds, since a machine that is not ours alone changes its pace from one
/// second to the next.
const ROUNDS: usize = 31;
/// How long one takes, in seconds.
pub const LENGTH: &str = "0.5";

/// What came of both.
pub struct Compared {
    /// The middle of the first way's numbers.
    pub first: f64,
    /// The middle of the second way's.
    pub second: f64,
    /// The middle of the rounds' quotients, second over first.
    pub quotient: f64,
}

/// Measures both in each round, the one or the other first by turns.
///
/// # Errors
/// The first that fails.
pub fn compare(
    mut first: impl FnMut() -> Result<f64>,
    mut second: impl FnMut() -> Result<f64>,
) -> Result<Compared> {
    compare_pairs(|turned| {
        if turned {
            let two = second()?;
            Ok((first()?, two))
        } else {
            let one = first()?;
            Ok((one, second()?))
        }
    })
}

/// As [`compare`], of what measures both in one go: the second first when it is told so.
///
/// # Errors
/// The first that fails.
pub fn compare_pairs(mut both: impl FnMut(bool) -> Result<(f64, f64)>) -> Result<Compared> {
    let (mut firsts, mut seconds, mut quotients) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (one, two) = both(round % 2 == 1)?;
        firsts.push(one);
        seconds.push(two);
        quotients.push(two / one);
    }
    Ok(Compared {
        first: median(&mut firsts),
        second: median(&mut seconds),
        quotient: median(&mut quotients),
    })
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn an_outlier_in_one_round_does_not_move_the_quotient() {
        let mut round = 0;
        let slow_once = || {
            round += 1;
            Ok(if round == 3 { 1.0 } else { 50.0 })
        };
        let compared = compare(|| Ok(100.0), slow_once).unwrap();
        assert_eq!(
            (compared.first, compared.second, compared.quotient),
            (100.0, 50.0, 0.5)
        );
    }
}
