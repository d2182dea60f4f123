use proptest::prelude::*;

use super::*;

/// xorshift64*: tests draw the same numbers each time.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -self.next().ln()
    }
}

/// Seconds of waits that come in bursts of `burst` on average, of a mean length each of which is drawn; 32 slots.
fn bursty(draws: &mut Draws, seconds: f64, per_s: f64, burst: f64, mean_ns: f64) -> Sample {
    const SLOTS: usize = 32;
    let mut waits: Vec<(f64, u64)> = Vec::new();
    let mut now = 0.0;
    loop {
        now += draws.exponential() * burst / per_s;
        if now >= seconds {
            break;
        }
        // Geometric, so that some bursts are much larger than others; those of one burst are alike.
        let size = (draws.exponential() * burst).ceil() as u64;
        let scale = 0.3 + draws.exponential();
        for _ in 0..size {
            waits.push((now, (mean_ns * scale * draws.exponential()) as u64 + 1));
        }
    }
    let slot_s = seconds / SLOTS as f64;
    let mut sample = Sample {
        count: waits.len() as f64,
        total_ns: waits.iter().map(|&(_, ns)| ns as f64).sum(),
        duration_ns: seconds * 1e9,
        slots: vec![
            Slot {
                duration_ns: slot_s * 1e9,
                ..Slot::default()
            };
            SLOTS
        ],
        ..Sample::default()
    };
    let mut buckets = std::collections::BTreeMap::new();
    for (at, ns) in waits {
        let slot = &mut sample.slots[((at / slot_s) as usize).min(SLOTS - 1)];
        slot.count += 1.0;
        slot.total_ns += ns as f64;
        *buckets.entry(ns).or_default() += 1;
    }
    sample.buckets = buckets.into_iter().collect();
    sample
}

fn p_of(one: &Sample, two: &Sample, of: impl Fn(&Sample) -> Option<Estimate>) -> Option<f64> {
    Some(compare(&of(one)?, &of(two)?, 0.0, (1.0, 0.0)).p)
}

#[test]
fn students_t_is_as_in_the_tables() {
    let table = [
        (12.706, 1.0, 0.05),
        (2.228, 10.0, 0.05),
        (3.169, 10.0, 0.01),
        (2.042, 30.0, 0.05),
        (1.960, 1e6, 0.05),
        (3.291, 1e6, 0.001),
        (0.0, 5.0, 1.0),
    ];
    for (t, df, p) in table {
        assert!(
            (t_two_sided(t, df) - p).abs() < 2e-4,
            "{t} {df}: {}",
            t_two_sided(t, df)
        );
    }
    assert!(t_two_sided(40.0, 31.0) < 1e-20);
    for (t, df) in [(f64::NAN, 3.0), (f64::INFINITY, 3.0), (1.0, 0.0), (1.0, f64::NAN)] {
        assert!((t_two_sided(t, df) - 1.0).abs() < 1e-12);
    }
}

#[test]
fn holm_is_as_in_his_example() {
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    let expected = [0.03, 0.06, 0.06, 0.02];
    for (adjusted, expected) in adjusted.iter().zip(expected) {
        assert!((adjusted - expected).abs() < 1e-12);
    }
    assert_eq!(holm(&[]), Vec::<f64>::new());
}

/// Without any allowance for differences between runs, and with bursts of 23 waits: an independent count would cry wolf half of the time.
#[test]
fn bursts_do_not_cry_wolf() {
    const PAIRS: usize = 400;
    let mut draws = Draws(0x5eed_2397);
    let (mut rate, mut count, mut tail, mut naive, mut tails) = (0, 0, 0, 0, 0);
    for _ in 0..PAIRS {
        let [one, two] = [(); 2].map(|()| bursty(&mut draws, 10.0, 500.0, 23.0, 1e6));
        rate += usize::from(p_of(&one, &two, |s| s.rate(Of::Total)).unwrap() < 0.05);
        count += usize::from(p_of(&one, &two, |s| s.rate(Of::Count)).unwrap() < 0.05);
        if let Some(p) = p_of(&one, &two, |s| s.percentile(0.9)) {
            tails += 1;
            tail += usize::from(p < 0.05);
        }
        let poisson = |s: &Sample| {
            Some(Estimate {
                value: s.count,
                se: (1.0 / s.count).sqrt(),
                df: 1e4,
                effective: s.count,
            })
        };
        naive += usize::from(p_of(&one, &two, poisson).unwrap() < 0.05);
    }
    println!("of {PAIRS}: time {rate}, count {count}, p90 {tail} of {tails}, Poisson {naive}");
    // 5 % of 400 are 20; binomial, 34 are three standard deviations more.
    assert!(rate <= 34 && count <= 34, "{rate} {count}");
    assert!(tails > PAIRS / 2 && tail <= 34, "{tail} of {tails}");
    assert!(naive > PAIRS / 3, "the bursts are none: {naive}");
}

#[test]
fn twice_the_time_is_seen() {
    let mut draws = Draws(0x5eed_0097);
    let mut seen = 0;
    for _ in 0..100 {
        let one = bursty(&mut draws, 10.0, 500.0, 3.0, 1e6);
        let two = bursty(&mut draws, 10.0, 500.0, 3.0, 2e6);
        let (one, two) = (one.rate(Of::Total).unwrap(), two.rate(Of::Total).unwrap());
        let tested = compare(&one, &two, 0.1, (1.0, 0.0));
        seen += usize::from(tested.p < 1e-3 && tested.ci[0] < 2.0 && tested.ci[1] > 2.0);
    }
    assert!(seen >= 85, "{seen}");
}

#[test]
fn a_load_is_divided_out() {
    let estimate = |value| Estimate {
        value,
        se: 0.01,
        df: 30.0,
        effective: 1e4,
    };
    let tested = compare(&estimate(100.0), &estimate(200.0), 0.0, (2.0, 0.0));
    assert!((tested.ratio - 1.0).abs() < 1e-9 && tested.p > 0.99);
}

#[test]
fn nothing_is_told_of_nothing() {
    let empty = Sample::default();
    assert_eq!(empty.rate(Of::Total), None);
    assert_eq!(empty.percentile(0.99), None);
    let few = Sample {
        count: 40.0,
        total_ns: 4000.0,
        duration_ns: 1e9,
        buckets: vec![(100, 40)],
        ..Sample::default()
    };
    assert_eq!(few.percentile(0.99), None);
    // Without slots, waits are taken to be bursts of ten.
    assert!((few.rate(Of::Count).unwrap().se - 0.5).abs() < 1e-9);
}

proptest! {
    /// Whatever a hostile report says, there are no panics, and what is told is finite.
    #[test]
    fn anything_can_be_compared(
        counts in prop::collection::vec((any::<u32>(), any::<u64>()), 0..40),
        buckets in prop::collection::vec((any::<u64>(), any::<u64>()), 0..40),
        count in any::<u64>(), total in any::<u64>(), duration in any::<u64>(),
        recorded in prop::option::of(any::<u64>()),
    ) {
        let mut buckets = buckets;
        buckets.sort_unstable();
        let sample = Sample {
            count: count as f64,
            total_ns: total as f64,
            duration_ns: duration as f64,
            buckets,
            recorded: recorded.map(|n| n as f64),
            slots: counts
                .iter()
                .map(|&(n, ns)| Slot { duration_ns: 1e7, count: f64::from(n), total_ns: ns as f64 })
                .collect(),
        };
        let estimates = [sample.rate(Of::Total), sample.rate(Of::Count), sample.percentile(0.5), sample.percentile(0.99)];
        for one in estimates.iter().flatten() {
            for two in estimates.iter().flatten() {
                let tested = compare(one, two, 0.1, (1.0, 0.0));
                prop_assert!((0.0..=1.0).contains(&tested.p), "{tested:?}");
            }
        }
    }

    #[test]
    fn holm_keeps_the_order(p in prop::collection::vec(0.0_f64..=1.0, 0..50)) {
        let adjusted = holm(&p);
        for (at, &one) in p.iter().enumerate() {
            prop_assert!(adjusted[at] >= one && adjusted[at] <= 1.0);
            for (other_at, &other) in p.iter().enumerate() {
                prop_assert!(one > other || adjusted[at] <= adjusted[other_at]);
            }
        }
    }
}
