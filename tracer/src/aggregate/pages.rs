//! Pages of memory that were touched for the first time, by who did.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::stacks::StackId;

/// Pages remembered. Beyond, one in two is forgotten, and those that are left stand for twice as many.
const PAGES_MAX: usize = 16_384;
/// Whether they are still there is looked up so often, and the more seldom the more there are: a look takes half a microsecond a page.
const LOOK_NS: u64 = 2_000_000_000;
const LOOK_PAGES: u64 = 2048;

/// A page that was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// By whom.
    pub stack: StackId,
    /// How much memory it stands for.
    pub bytes: u64,
}

/// The pages of a window that were sampled and are still there.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    known: FxHashMap<(u32, u64), Touched>,
    /// Pages are remembered whose number, mixed up, ends in so many zeros.
    zeros: u32,
    /// Records of this window.
    records: u64,
    /// Processes that have ended in this window.
    ended: FxHashSet<u32>,
    looked_ns: u64,
}

/// A number's bits mixed up (the finaliser of splitmix64), so that every bit of it tells one half of all numbers from the other.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Pages {
    /// A process touched a page, which stands for so many bytes.
    pub fn on_fault(&mut self, tgid: u32, page: u64, touched: Touched) {
        if mixed(page).trailing_zeros() < self.zeros {
            return;
        }
        // Who touched it last did so after it had been given back.
        self.known.insert((tgid, page), touched);
        while self.known.len() > PAGES_MAX {
            self.zeros += 1;
            let zeros = self.zeros;
            self.known
                .retain(|(_, page), _| mixed(*page).trailing_zeros() >= zeros);
        }
    }

    /// A page fault had a record.
    pub const fn on_record(&mut self) {
        self.records += 1;
    }

    /// Records of this window.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Forgets those that are not there any more, when it is time to look or it must be known `now`.
    pub fn look(&mut self, now_ns: u64, now: bool, mut is_there: impl FnMut(u32, u64) -> bool) {
        let wait_ns = LOOK_NS * (self.known.len() as u64).div_ceil(LOOK_PAGES);
        if !now && now_ns.saturating_sub(self.looked_ns) < wait_ns {
            return;
        }
        self.looked_ns = now_ns;
        let ended = &self.ended;
        self.known
            .retain(|&(tgid, page), _| ended.contains(&tgid) || is_there(tgid, page));
    }

    /// A process has another program image, or its number is another one's.
    pub fn forget(&mut self, tgid: u32) {
        self.ended.remove(&tgid);
        self.known.retain(|of, _| of.0 != tgid);
    }

    /// A process has ended: what was there at the last look is told as what was there at its end.
    pub fn on_exit(&mut self, tgid: u32) {
        if self.known.keys().any(|of| of.0 == tgid) {
            self.ended.insert(tgid);
        }
    }

    /// What is still there: process, who touched it, and how many bytes each stands for.
    pub fn rows(&self) -> impl Iterator<Item = (u32, Touched)> {
        let scale = 1u64 << self.zeros.min(63);
        self.known.iter().map(move |(&(tgid, _), touched)| {
            let touched = Touched {
                bytes: touched.bytes.saturating_mul(scale),
                ..*touched
            };
            (tgid, touched)
        })
    }

    /// Begins a new window.
    pub fn reset(&mut self) {
        *self = Self {
            looked_ns: self.looked_ns,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn touched(stack: u32) -> Touched {
        Touched {
            stack: StackId(stack),
            bytes: 4096,
        }
    }

    fn bytes_of(pages: &Pages, stack: u32) -> u64 {
        let own = pages.rows().filter(|(_, row)| row.stack == StackId(stack));
        own.map(|(_, row)| row.bytes).sum()
    }

    #[test]
    fn a_page_is_of_who_touched_it_last_and_is_forgotten_when_it_is_gone() {
        let mut pages = Pages::default();
        for page in 0..10 {
            pages.on_fault(7, page, touched(1));
        }
        pages.on_fault(7, 3, touched(2));
        pages.on_fault(8, 3, touched(3));
        assert_eq!(
            [1, 2, 3].map(|stack| bytes_of(&pages, stack)),
            [9 * 4096, 4096, 4096]
        );
        pages.look(1, true, |tgid, page| tgid == 7 && page < 5);
        assert_eq!(
            [1, 2, 3].map(|stack| bytes_of(&pages, stack)),
            [4 * 4096, 4096, 0]
        );
        pages.on_exit(7);
        pages.look(2, true, |_, _| false);
        assert_eq!(bytes_of(&pages, 1), 4 * 4096);
        pages.forget(7);
        assert_eq!(pages.rows().count(), 0);
    }

    /// Three of four are one stack's, in whatever order of pages.
    #[test]
    fn more_pages_than_fit_are_thinned_and_stand_for_more() {
        let mut pages = Pages::default();
        let all = 40 * PAGES_MAX as u64;
        for page in 0..all {
            let stack = if page % 4 == 0 { 2 } else { 1 };
            pages.on_fault(7, 0x7f_0000_0000 + page, touched(stack));
        }
        let [one, two] = [1, 2].map(|stack| bytes_of(&pages, stack) as f64 / (all as f64 * 4096.0));
        assert!(pages.rows().count() <= PAGES_MAX);
        // Standard deviations of 12,000 draws.
        assert!(
            (one - 0.75).abs() < 0.04 && (two - 0.25).abs() < 0.03,
            "{one} {two}"
        );
    }

    #[test]
    fn many_pages_are_looked_up_seldom() {
        let mut pages = Pages::default();
        for page in 0..2 * LOOK_PAGES {
            pages.on_fault(7, page, touched(1));
        }
        let mut looks = 0;
        for second in 1..=20 {
            let mut looked = false;
            pages.look(second * 1_000_000_000, false, |_, _| {
                looked = true;
                true
            });
            looks += u32::from(looked);
        }
        assert_eq!(looks, 5);
    }
}
