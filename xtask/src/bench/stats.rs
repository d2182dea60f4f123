//! Medians, spreads, and an "on" window against those beside it.

use std::collections::BTreeMap;

/// What is known of one window, by name: what the load says of itself, and what was seen around it.
pub(super) type Window = BTreeMap<String, f64>;

/// Not a number when the window does not say.
pub(super) fn get(window: &Window, key: &str) -> f64 {
    window.get(key).copied().unwrap_or(f64::NAN)
}

/// An "on" window's figure by the mean of those of the "off" windows beside it.
pub(super) fn ratio(before: f64, on: f64, after: f64) -> f64 {
    on / f64::midpoint(before, after)
}

/// How much more it is than that mean.
pub(super) fn added(before: f64, on: f64, after: f64) -> f64 {
    on - f64::midpoint(before, after)
}

/// Median and range of the values that are numbers; `None` when there are none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)
        };
        Some(Self {
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// `median [min–max]`
    pub(super) fn text(self, digits: usize) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(|value| number(value, digits));
        format!("{median} [{min}–{max}]")
    }

    /// The farthest of its values from `value`.
    pub(super) fn farthest_from(self, value: f64) -> f64 {
        (self.max - value).abs().max((value - self.min).abs())
    }
}

/// With a real minus sign, which beside the dash of a range is told from it.
pub(super) fn number(value: f64, digits: usize) -> String {
    // A sum of nothing is −0.
    format!("{:.digits$}", value + 0.0).replace('-', "−")
}

/// `median [min–max]`, or a dash.
pub(crate) fn text(values: impl IntoIterator<Item = f64>, digits: usize) -> String {
    Spread::of(values).map_or_else(|| "–".to_owned(), |spread| spread.text(digits))
}

/// The median alone, or a dash.
pub(super) fn median(values: impl IntoIterator<Item = f64>, digits: usize) -> String {
    Spread::of(values).map_or_else(|| "–".to_owned(), |spread| number(spread.median, digits))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers and halves are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_by_the_mean_of_both_neighbours() {
        assert_eq!(ratio(90.0, 95.0, 100.0), 1.0);
        assert_eq!(added(90.0, 97.0, 100.0), 2.0);
        assert!(ratio(f64::NAN, 1.0, 1.0).is_nan());
    }

    #[test]
    fn medians_of_odd_even_and_no_values() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(of(&[f64::NAN]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_is_no_number_does_not_count() {
        let spread = Spread::of([f64::NAN, 1.0, f64::INFINITY, 3.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(spread.farthest_from(1.5), 1.5);
    }

    #[test]
    fn minus_signs_are_told_from_dashes() {
        assert_eq!(text([-1.25, 0.5, -3.0], 1), "−1.2 [−3.0–0.5]");
        assert_eq!(text([], 1), "–");
        assert_eq!(number(-0.0, 1), "0.0");
        assert_eq!(median([2.0, 4.0], 0), "3");
    }
}
