use super::*;
use crate::go::memory::Piece;

/// Memory from 0x1000 on.
struct Image(Vec<u64>);

const START: u64 = 0x1000;

impl Memory for Image {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        let mut rest = into;
        for piece in pieces {
            let (part, after) = rest.split_at_mut(piece.len);
            rest = after;
            let from = piece.address.checked_sub(START).filter(|from| from % 8 == 0);
            let from = from.and_then(|from| usize::try_from(from / 8).ok());
            let found = from.and_then(|from| self.0.get(from..from.checked_add(piece.len / 8)?));
            for (bytes, word) in part.chunks_exact_mut(8).zip(found.into_iter().flatten()) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            piece.whole = found.is_some();
        }
    }
}

/// Code, in this image.
fn is_code(pc: u64) -> bool {
    (0x40_0000..0x50_0000).contains(&pc)
}

fn at(word: usize) -> u64 {
    START + 8 * word as u64
}

/// Three heads: of allocations, of blocking with two records, of mutexes with one.
fn image() -> (Image, Profiler) {
    let mut words = vec![0, at(3), at(12)];
    words.extend([0, at(21), 2, 0x97, 0, 1, 0x40_1000, 23f64.to_bits(), 9700]);
    words.extend([0, 0, 3, 0x23, 0, 1, 0x40_2000, 5f64.to_bits(), 130]);
    words.extend([0, 0, 2, 0x98, 0, 2, 0x40_1000, 0x40_3000, 7f64.to_bits(), 70]);
    let profiler = Profiler {
        block_rate: 0,
        mutex_fraction: 0,
        scaled: true,
        heads: vec![at(0), at(1), at(2)],
    };
    (Image(words), profiler)
}

#[test]
fn lists_are_read_to_their_end() {
    let (image, profiler) = image();
    let mut buckets = Buckets::default();
    let reading = buckets.read(&image, &is_code, &profiler).unwrap();
    let sum = |kind, record| reading.sums.get(&(kind, record)).copied().unwrap();
    let is = |count, ticks| Sum { count, ticks };
    assert_eq!(reading.sums.len(), 3);
    assert_eq!(sum(Kind::Block, at(3)), is(23.0, 9700));
    assert_eq!(sum(Kind::Block, at(21)), is(7.0, 70));
    assert_eq!(sum(Kind::Mutex, at(12)), is(5.0, 130));
    assert_eq!(buckets.stack(at(21)), Some(&[0x40_1000, 0x40_3000][..]));
    assert_eq!((reading.unreadable, reading.cut), (0, false));
}

#[test]
fn what_is_no_record_is_not_believed() {
    let damaged = |word: usize, value: u64| {
        let (mut image, profiler) = image();
        image.0[word] = value;
        Buckets::default().read(&image, &is_code, &profiler)
    };
    // A stack outside the code, sums that cannot be: that record is left out.
    for (word, value) in [
        (9, 0x1000),
        (9, 0),
        (10, f64::NAN.to_bits()),
        (10, (-1f64).to_bits()),
        (11, u64::MAX),
    ] {
        let reading = damaged(word, value).unwrap();
        assert_eq!(
            (reading.unreadable, reading.sums.len()),
            (1, 2),
            "{word} {value:#x}"
        );
    }
    // So is one without a stack.
    let reading = damaged(26, 0).unwrap();
    assert_eq!((reading.unreadable, reading.sums.len()), (1, 2));
    // A list that leads elsewhere is none.
    for (word, value) in [(4, 8), (4, at(12)), (23, 1), (25, 8), (26, u64::MAX)] {
        assert_eq!(damaged(word, value), None, "{word} {value:#x}");
    }
    // A head that leads to no record is that of something else, and the same list twice is none.
    assert_eq!(damaged(1, 3).unwrap().sums.len(), 1);
    assert_eq!(damaged(4, 0x1001).unwrap().sums.len(), 1);
    assert_eq!(damaged(0, at(3)), None);
    // A circle has an end.
    let circle = damaged(22, at(3)).unwrap();
    assert!(circle.cut && circle.sums.len() == 3);
}

#[test]
fn a_mark_is_no_address() {
    let (mut image, profiler) = image();
    image.0[27] = MARK;
    let mut buckets = Buckets::default();
    let reading = buckets.read(&image, &is_code, &profiler).unwrap();
    assert_eq!(
        (reading.unreadable, buckets.stack(at(21))),
        (0, Some(&[0x40_3000][..]))
    );
}

#[test]
fn no_image_makes_it_panic() {
    let mut random = 97u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 33
    };
    for _ in 0..2000 {
        let (mut image, profiler) = image();
        for _ in 0..=next() % 4 {
            let word = next() as usize % image.0.len();
            image.0[word] = match next() % 4 {
                0 => next(),
                1 => at(next() as usize % 40),
                2 => next() % 8,
                _ => u64::MAX - next() % 64,
            };
        }
        // Circles are read to the limit, which takes its time; there are few.
        if let Some(reading) = Buckets::default().read(&image, &is_code, &profiler) {
            assert!(reading.sums.values().all(|sum| sum.count.is_finite()));
        }
    }
}
