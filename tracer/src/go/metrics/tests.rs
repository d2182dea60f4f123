//! Runtimes made by hand: their collections, and memory that holds anything.

use proptest::prelude::*;

use super::{
    find::{Place, handed},
    heap::{Controller, loads},
    sample::{COLLECTIONS, RING, whole},
    *,
};
use crate::go::memory::{Memory, Piece};

const BASE: u64 = 0x50_0000;

/// Memory that begins at [`BASE`]; nothing else can be read.
struct Image(Vec<u8>);

impl Memory for Image {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        let mut rest = into;
        for piece in pieces {
            let (part, after) = rest.split_at_mut(piece.len);
            let held = piece.address.checked_sub(BASE).and_then(|at| {
                let at = usize::try_from(at).ok()?;
                self.0.get(at..at.checked_add(piece.len)?)
            });
            if let Some(held) = held {
                part.copy_from_slice(held);
                piece.whole = true;
            }
            rest = after;
        }
    }
}

impl Image {
    fn set(&mut self, at: usize, value: u64, size: usize) {
        self.0[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// The pause of each collection, by number.
fn pause(number: u32) -> u64 {
    97 + u64::from(number) * 23 % 1009
}

/// Memory after so many collections, as the runtime writes it; each takes a second, and 300 ns of CPU, 100 of them on idle ones.
fn after(cycles: u32, forced: u32) -> Image {
    let mut image = Image(vec![0; COLLECTIONS + 88]);
    let first = cycles.saturating_sub(RING);
    for number in first..cycles {
        let slot = 8 * (number % RING) as usize;
        image.set(16 + slot, pause(number), 8);
        image.set(16 + 2048 + slot, u64::from(number) + 1, 8);
    }
    image.set(0, u64::from(cycles), 8);
    image.set(8, (0..cycles).map(pause).sum(), 8);
    image.set(4112, u64::from(cycles), 4);
    image.set(4116, u64::from(forced), 4);
    image.set(4128, u64::from(cycles) * 1_000_000_000, 8);
    for (at, each) in [
        (0, 50),
        (1, 100),
        (2, 100),
        (3, 50),
        (4, 300),
        (10, 2_000_000_000),
    ] {
        image.set(COLLECTIONS + 8 * at, u64::from(cycles) * each, 8);
    }
    image
}

fn metrics() -> Metrics {
    Metrics {
        collections: Some(BASE),
        cpu: Some(BASE + COLLECTIONS as u64),
        ..Metrics::default()
    }
}

fn sampled(cycles: u32, forced: u32) -> Sample {
    metrics().sample(&after(cycles, forced))
}

#[test]
fn each_pause_is_counted_once_however_samples_fall() {
    let mut track = GcTrack::new(sampled(97, 0));
    for cycles in [97, 98, 98, 120, 375, 376] {
        track.add(sampled(cycles, 1 + cycles % 2));
        // Of a process that ended nothing can be read.
        track.add(Sample::default());
    }
    let gc = gc(&track, 1_000_000_000_000).unwrap();
    let wanted: u64 = (97..376).map(pause).sum();
    assert_eq!((gc.cycles, gc.pauses.count, gc.pauses_lost), (279, 279, 0));
    assert_eq!((gc.pauses.total_ns, gc.pause_total_ns), (wanted, wanted));
    assert!((gc.pause_share - wanted as f64 / 1e12).abs() < 1e-9);
    // Two CPUs for a thousand seconds.
    assert_eq!(gc.cpu_ns, Some(279 * 200));
    let share = 279.0 * 200.0 / 2e12;
    assert!((gc.cpu_share.unwrap() / share - 1.0).abs() < 1e-9);
    assert!((gc.assist_share.unwrap() / (share / 4.0) - 1.0).abs() < 1e-9);
    assert_eq!((gc.stops, gc.run_queue, gc.heap_live_bytes), (None, None, None));
}

#[test]
fn pauses_that_were_overwritten_are_lost_but_in_the_sum() {
    let gc = between(&sampled(23, 0), &sampled(423, 97));
    assert_eq!((gc.cycles, gc.forced), (Some(400), 97));
    assert_eq!((gc.pauses.len(), gc.lost), (255, 145));
    assert_eq!(gc.pauses[0], pause(168));
    assert_eq!(gc.pauses[254], pause(422));
    assert_eq!(gc.pause_ns, (23..423).map(pause).sum::<u64>());
    // The numbers of another process, or none.
    assert_eq!(between(&sampled(23, 0), &sampled(22, 0)).cycles, None);
    assert_eq!(between(&sampled(23, 0), &Sample::default()).cycles, None);
}

#[test]
fn a_collection_that_ends_during_the_read_is_left_for_the_next() {
    // The number is read before and after the rest: 300, then 302. The two of them have overwritten 44 and 45, a third may be
    // overwriting 46.
    struct Torn;
    impl Memory for Torn {
        fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
            let mut rest = into;
            for piece in pieces {
                let (part, after) = rest.split_at_mut(piece.len);
                let cycles = if piece.len == 4 { 300 } else { 302 };
                self::after(cycles, 0).read_pieces(std::slice::from_mut(piece), part);
                rest = after;
            }
        }
    }
    let sample = metrics().sample(&Torn);
    let collections = sample.collections.as_ref().unwrap();
    assert_eq!(collections.cycles, 300);
    assert_eq!(collections.pause(299), Some(pause(299)));
    assert_eq!(collections.pause(47), Some(pause(47)));
    assert_eq!((collections.pause(46), collections.pause(300)), (None, None));
    let mut track = GcTrack::new(sampled(280, 0));
    track.add(sample);
    track.add(sampled(303, 0));
    let gc = gc(&track, 1).unwrap();
    assert_eq!((gc.cycles, gc.pauses_lost), (23, 0));
    assert_eq!(gc.pauses.total_ns, (280..303).map(pause).sum::<u64>());
}

#[test]
fn the_number_of_collections_wraps_round() {
    let image = |cycles: u32| {
        let mut image = after(256, 0);
        image.set(4112, u64::from(cycles), 4);
        metrics().sample(&image)
    };
    let gc = between(&image(u32::MAX - 3), &image(5));
    assert_eq!((gc.cycles, gc.pauses.len()), (Some(9), 9));
}

#[test]
fn what_contradicts_itself_is_no_runtime() {
    let good = |image: &Image| whole(&image.0[..COLLECTIONS]);
    for cycles in [0, 1, 23, 256, 300] {
        assert!(good(&after(cycles, 0)), "{cycles}");
    }
    for (at, value) in [(0, 7), (8, 1), (4112, 22), (4116, 24), (4128, 0)] {
        let mut image = after(23, 0);
        image.set(at, value, if at / 8 == 514 { 4 } else { 8 });
        assert!(!good(&image), "{at}");
    }
    let mut cpu = after(23, 0);
    cpu.set(COLLECTIONS + 32, 1, 8);
    assert_eq!(metrics().sample(&cpu).cpu, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_memory_is_sampled_and_added_up(
        bytes in proptest::collection::vec(any::<u8>(), 0..16384),
        other in proptest::collection::vec(any::<u64>(), 0..64),
        places: [u64; 8],
        far: u64,
        window: u64,
    ) {
        let form = |at: u64| if at.is_multiple_of(2) { Form::Sixteenths } else { Form::Quarters };
        let address = |at: u64| if at.is_multiple_of(13) { at } else { BASE + at % 16384 };
        let place = |at: u64| Place { at: address(at), form: form(at) };
        let metrics = Metrics {
            collections: Some(address(places[0])),
            cpu: Some(address(places[1])),
            stops: Some(place(places[2])),
            others: Some([place(places[3]), place(places[4]), place(far)]),
            run_queue: Some(place(places[5])),
            mutex_wait: Some(address(places[6])),
            heap: Some(Controller::made(address(places[7]))),
        };
        let mut changed = bytes.clone();
        for (at, word) in other.iter().enumerate() {
            let at = (*word as usize ^ at) % changed.len().saturating_sub(8).max(1);
            if let Some(part) = changed.get_mut(at..at + 8) {
                part.copy_from_slice(&word.to_le_bytes());
            }
        }
        let (one, two) = (metrics.sample(&Image(bytes)), metrics.sample(&Image(changed)));
        let mut track = GcTrack::new(one.clone());
        track.add(two.clone());
        track.add(one.clone());
        if let Some(gc) = gc(&track, window) {
            prop_assert!((0.0..=1.0).contains(&gc.pause_share));
            prop_assert!(gc.cpu_share.is_none_or(|share| (0.0..=1.0).contains(&share)));
            let _ = crate::analyse::gc::findings(&gc, window, window);
        }
        for (before, after) in [(&one, &two), (&two, &one)] {
            let gc = between(before, after);
            prop_assert_eq!(gc.pauses.len() + gc.lost as usize, gc.cycles.unwrap_or(0) as usize);
        }
    }

    #[test]
    fn any_code_is_looked_at(code in proptest::collection::vec(any::<u8>(), 0..2000), start: u64) {
        handed(&code, start);
        let code: Vec<_> = crate::go::code::instructions(&code, start).collect();
        prop_assert!(loads(&code).len() <= code.len());
        let _ = Controller::of(BASE, &code, &code, &code);
    }
}
