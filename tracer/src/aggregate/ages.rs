//! How many ended at which age: four classes to the octave, in a fixed place.

/// Ages under 2^16 ns (66 us) are one class: nothing that short is a question of growth.
const FIRST: u32 = 16;
/// Classes: up to 2^48 ns, three days; longer ones are in the last.
const CLASSES: usize = 128;

/// Counts by age, 512 bytes.
#[derive(Clone, Debug)]
pub(crate) struct Ages([u32; CLASSES]);

impl Default for Ages {
    fn default() -> Self {
        Self([0; CLASSES])
    }
}

impl Ages {
    pub(crate) fn add(&mut self, age_ns: u64) {
        if let Some(count) = self.0.get_mut(class(age_ns)) {
            *count = count.saturating_add(1);
        }
    }

    /// All of another one.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
    }

    /// Takes a part out of a sum.
    pub(crate) fn without(&mut self, part: &Self) {
        for (count, less) in self.0.iter_mut().zip(&part.0) {
            *count = count.saturating_sub(*less);
        }
    }

    /// How many were at least as old, those of the class that the age falls into included.
    pub(crate) fn since(&self, age_ns: u64) -> u64 {
        self.0
            .iter()
            .skip(class(age_ns))
            .map(|&count| u64::from(count))
            .sum()
    }

    /// Where classes begin between two ages, the longest first.
    pub(crate) fn borders(from_ns: u64, to_ns: u64) -> impl Iterator<Item = u64> {
        (class(from_ns)..=class(to_ns))
            .rev()
            .map(border)
            .filter(move |&ns| (from_ns..=to_ns).contains(&ns))
    }
}

fn class(ns: u64) -> usize {
    let log = ns.checked_ilog2().unwrap_or(0);
    if log < FIRST {
        return 0;
    }
    let quarter = (ns >> (log - 2)) & 3;
    (((log - FIRST) * 4) as usize + quarter as usize).min(CLASSES - 1)
}

/// The shortest age of a class.
fn border(class: usize) -> u64 {
    if class == 0 {
        return 0;
    }
    let log = FIRST + class as u32 / 4;
    (1_u64 << log) + (class as u64 % 4) * (1 << (log - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_borders_agree() {
        for at in 1..CLASSES {
            let from = border(at);
            assert_eq!((class(from), class(from - 1)), (at, at - 1), "{from}");
        }
        assert_eq!((class(0), class(u64::MAX)), (0, CLASSES - 1));
        let borders: Vec<u64> = Ages::borders(1_000_000_000, 2_000_000_000).collect();
        assert!(
            borders.len() == 4 && borders.is_sorted_by(|a, b| a > b),
            "{borders:?}"
        );
    }

    #[test]
    fn those_that_were_older() {
        let mut ages = Ages::default();
        for second in 1..=97_u64 {
            ages.add(second << 30);
        }
        assert_eq!(
            (ages.since(0), ages.since(64 << 30), ages.since(112 << 30)),
            (97, 34, 0)
        );
        let mut twice = ages.clone();
        twice.add_all(&ages);
        assert_eq!(twice.since(64 << 30), 68);
    }
}
