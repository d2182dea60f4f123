//! Tables made by hand: whole ones, and ones that no runtime would leave behind.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TABLE: u64 = 0x10_0000;
const ROOTS: u64 = 251;

/// Words by address; what is not there reads as 0, but outside the range nothing can be read.
#[derive(Default)]
struct Words(BTreeMap<u64, u64>);

impl Words {
    fn sudog(&mut self, at: u64, g: u64, semaphore: u64, [prev, next, waitlink]: [u64; 3]) {
        for (offset, word) in [(0, g), (8, next), (16, prev), (24, semaphore), (64, waitlink)] {
            self.0.insert(at + offset, word);
        }
    }

    fn root(&mut self, semaphore: u64, sudog: u64, count: u64) {
        let root = TABLE + (semaphore >> 3) % ROOTS * 64;
        self.0.insert(root + 8, sudog);
        self.0.insert(root + 16, count);
    }
}

impl Memory for Words {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        let mut rest = into;
        for piece in pieces {
            let Some((part, after)) = rest.split_at_mut_checked(piece.len) else {
                return;
            };
            piece.whole = (TABLE..1 << 32).contains(&piece.address);
            if piece.whole {
                for (number, word) in part.chunks_mut(8).enumerate() {
                    let value = self.0.get(&(piece.address + 8 * number as u64));
                    let bytes = value.copied().unwrap_or(0).to_le_bytes();
                    let len = word.len();
                    word.copy_from_slice(&bytes[..len]);
                }
            }
            rest = after;
        }
    }
}

fn table() -> Semaphores {
    Semaphores {
        table: TABLE,
        roots: ROOTS,
        stride: 64,
        tree: 8,
    }
}

fn walk(words: &Words) -> (Vec<(u64, u64, u32)>, Followed) {
    let (waiters, followed) = table().walk(words, &Sudogs::sample());
    let mut waiters: Vec<_> = waiters
        .iter()
        .map(|waiter| (waiter.semaphore, waiter.g, waiter.position))
        .collect();
    waiters.sort_by_key(|&(semaphore, _, position)| (semaphore, position));
    (waiters, followed)
}

/// Three semaphores of one root, and one of another.
fn whole() -> Words {
    let mut words = Words::default();
    let (low, middle, high) = (0x2_0004, 0x2_0004 + 8 * ROOTS, 0x2_0004 + 16 * ROOTS);
    words.root(middle, 0x30_0000, 5);
    words.sudog(0x30_0000, 0x50_0000, middle, [0x30_0100, 0x30_0200, 0x30_0300]);
    words.sudog(0x30_0100, 0x51_0000, low, [0; 3]);
    words.sudog(0x30_0200, 0x52_0000, high, [0; 3]);
    // Others in a queue: what they had in the tree does not matter.
    words.sudog(0x30_0300, 0x53_0000, middle, [0x30_0100, 0x30_0200, 0x30_0400]);
    words.sudog(0x30_0400, 0x54_0000, middle, [0; 3]);
    words.root(0x4_0000, 0x30_0500, 1);
    words.sudog(0x30_0500, 0x55_0000, 0x4_0000, [0; 3]);
    words
}

#[test]
fn trees_and_queues_are_followed_in_order() {
    let (low, middle, high) = (0x2_0004, 0x2_0004 + 8 * ROOTS, 0x2_0004 + 16 * ROOTS);
    let wanted = [
        (low, 0x51_0000, 0),
        (middle, 0x50_0000, 0),
        (middle, 0x53_0000, 1),
        (middle, 0x54_0000, 2),
        (high, 0x52_0000, 0),
        (0x4_0000, 0x55_0000, 0),
    ];
    assert_eq!(walk(&whole()), (wanted.to_vec(), Followed::default()));
    assert!(table().has_its_shape(&table().read(&whole()).unwrap()));
}

#[test]
fn a_queue_that_bites_its_tail_ends() {
    let mut words = whole();
    let middle = 0x2_0004 + 8 * ROOTS;
    words.sudog(0x30_0400, 0x54_0000, middle, [0, 0, 0x30_0000]);
    words.sudog(0x30_0100, 0x51_0000, 0x2_0004, [0x30_0000, 0x30_0200, 0x30_0100]);
    let (waiters, followed) = walk(&words);
    assert_eq!(waiters.len(), 6);
    assert_eq!(followed, Followed { torn: 4, cut: false });
}

#[test]
fn a_waiter_of_another_root_or_a_channel_is_none() {
    let mut words = whole();
    words.sudog(0x30_0100, 0x51_0000, 0x2_000c, [0; 3]);
    words.0.insert(0x30_0200 + 80, 0x60_0000);
    words.sudog(0x30_0300, 0x53_0000, 0x2_0004, [0, 0, 0x30_0400]);
    words.0.insert(0x30_0500 + 24, 0);
    let (waiters, followed) = walk(&words);
    assert_eq!(waiters, [(0x2_0004 + 8 * ROOTS, 0x50_0000, 0)]);
    assert_eq!(followed, Followed { torn: 4, cut: false });
}

#[test]
fn a_queue_without_end_is_cut() {
    let mut words = Words::default();
    words.root(0x4_0000, 0x100_0000, 1);
    for number in 0..MAX_WAITERS as u64 + 100 {
        let at = 0x100_0000 + 88 * number;
        words.sudog(at, 0x50_0000, 0x4_0000, [0, 0, at + 88]);
    }
    let (waiters, followed) = walk(&words);
    assert_eq!(waiters.len(), MAX_WAITERS);
    assert!(followed.cut);
}

#[test]
fn other_data_has_not_its_shape() {
    let bytes = table().read(&whole()).unwrap();
    for (at, byte) in [(8, 1), (19, 0xff), (20, 1), (63, 1), (250 * 64 + 40, 1)] {
        let mut other = bytes.clone();
        other[at] = byte;
        assert!(!table().has_its_shape(&other), "{at}");
    }
}

proptest! {
    /// Whatever lies where: each place is looked at once, and every waiter is in its root.
    #[test]
    fn any_memory_is_followed_to_an_end(
        roots in prop::collection::vec((0u64..ROOTS, 0u64..64), 0..64),
        sudogs in prop::collection::vec((0u64..64, 0u64..8, prop::array::uniform3(0u64..80)), 64),
    ) {
        let at = |number: u64| if number < 64 { 0x30_0000 + 88 * number } else { number };
        let mut words = Words::default();
        for (root, sudog) in roots {
            words.0.insert(TABLE + root * 64 + 8, at(sudog));
        }
        for (number, (g, semaphore, links)) in sudogs.into_iter().enumerate() {
            let semaphore = 0x4_0000 + 4 * semaphore;
            words.sudog(at(number as u64), 0x50_0000 + 8 * g, semaphore, links.map(at));
        }
        let (waiters, followed) = table().walk(&words, &Sudogs::sample());
        prop_assert!(waiters.len() <= 64 && !followed.cut);
        let mut places: Vec<_> = waiters.iter().map(|waiter| waiter.sudog).collect();
        places.sort_unstable();
        places.dedup();
        prop_assert_eq!(places.len(), waiters.len());
    }
}
