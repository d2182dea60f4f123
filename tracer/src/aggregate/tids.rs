//! A few threads.

/// Threads by id, each once, in order: a list takes a fifth of a hash set's memory, and there are two for each lock and stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tids(Vec<u32>);

impl Tids {
    /// Adds one, unless there are `max` already.
    pub fn insert(&mut self, tid: u32, max: usize) {
        if let Err(at) = self.0.binary_search(&tid)
            && self.0.len() < max
        {
            self.0.insert(at, tid);
        }
    }

    /// Whether a thread is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|tid| other.0.binary_search(tid).is_ok())
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
        self.0.sort_unstable();
        self.0.dedup();
    }
}

impl IntoIterator for Tids {
    type Item = u32;
    type IntoIter = std::vec::IntoIter<u32>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_in_order_and_no_more_than_asked() {
        let (mut some, mut more) = (Tids::default(), Tids::default());
        for tid in [97, 23, 97, 5, 1009] {
            some.insert(tid, 3);
        }
        for tid in [7, 23] {
            more.insert(tid, 3);
        }
        assert_eq!(some, Tids(vec![5, 23, 97]));
        assert!(some.meets(&more) && !some.meets(&Tids(vec![6, 24])));
        some.merge(&more);
        assert_eq!(some.into_iter().collect::<Vec<_>>(), [5, 7, 23, 97]);
    }
}
