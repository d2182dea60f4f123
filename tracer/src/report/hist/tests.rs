use super::*;

/// A seeded linear congruential generator (Knuth's MMIX constants): the same samples on every machine.
struct Lcg(u64);

impl Lcg {
    /// Uniform over (0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Standard normal, by the Box–Muller transform.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }
}

fn of(samples: impl IntoIterator<Item = f64>) -> Hist {
    let mut collected = Histogram::new();
    samples.into_iter().for_each(|ns| collected.record(ns as u64));
    hist(&collected)
}

#[test]
fn nothing_seen() {
    let empty = hist(&Histogram::new());
    assert_eq!(
        (empty.count, empty.max_ns, empty.p99_ns, empty.total_ns),
        (0, 0, 0, 0)
    );
    assert_eq!(empty.p99_ci_ns, None);
    assert!(empty.buckets.is_empty() && empty.modes.is_empty());
}

#[test]
fn one_sample_is_every_percentile() {
    let one = of([20_300_017.0]);
    assert_eq!(
        [
            one.min_ns,
            one.p50_ns,
            one.p99_ns,
            one.p999_ns,
            one.max_ns,
            one.mean_ns
        ],
        [20_300_017; 6]
    );
    assert_eq!(one.p99_ci_ns, Some([20_300_017; 2]));
}

#[test]
fn the_longest_time_there_is() {
    let mut collected = Histogram::new();
    collected.record(0);
    collected.record(u64::MAX);
    let report = hist(&collected);
    assert_eq!((report.min_ns, report.p50_ns, report.max_ns), (0, 0, u64::MAX));
    assert!(
        report.p999_ns >= u64::MAX - 1,
        "hdrhistogram's last bucket ends one short"
    );
}

#[test]
fn percentiles_have_three_digits_and_sums_are_exact() {
    let even = of((1..=10_000).map(|i| f64::from(i) * 1000.0));
    let near = |value: u64, truth: f64| (value as f64 / truth - 1.0).abs() <= 0.001;
    assert!(
        near(even.p50_ns, 5e6) && near(even.p90_ns, 9e6),
        "{} {}",
        even.p50_ns,
        even.p90_ns
    );
    assert!(
        near(even.p99_ns, 9.9e6) && near(even.p999_ns, 9.99e6),
        "{} {}",
        even.p99_ns,
        even.p999_ns
    );
    assert_eq!(even.total_ns, 10_000 * 10_001 / 2 * 1000);
    assert_eq!(even.mean_ns, 5_000_500);
    assert_eq!(even.buckets.iter().map(|&(_, count)| count).sum::<u64>(), 10_000);
}

#[test]
fn ranks_of_the_interval() {
    // Computed apart, in exact fractions, from the distribution function of the binomial (n, 1/100).
    assert_eq!(p99_ranks(1), (1, None));
    assert_eq!(p99_ranks(23), (22, None));
    assert_eq!(p99_ranks(367), (359, None));
    assert_eq!(p99_ranks(368), (360, Some(368)));
    assert_eq!(p99_ranks(1000), (983, Some(997)));
    let (exact, normal) = (exact_bounds(EXACT_BINOMIAL), normal_bounds(EXACT_BINOMIAL));
    assert!(
        exact.0.unwrap().abs_diff(normal.0.unwrap()) <= 1,
        "{exact:?} {normal:?}"
    );
    assert!(exact.1.abs_diff(normal.1) <= 1, "{exact:?} {normal:?}");
}

/// The promise of the interval itself: it holds the true percentile in 95 % of repetitions.
#[test]
fn the_interval_covers() {
    let mut random = Lcg(7);
    let truth = 1e6 * (2.326_348_f64).exp();
    let held = (0..400)
        .filter(|_| {
            let [low, high] = of((0..1000).map(|_| random.lognormal(1e6, 1.0)))
                .p99_ci_ns
                .unwrap();
            (low as f64) <= truth && truth <= high as f64 * 1.001
        })
        .count();
    assert!((372..=399).contains(&held), "{held} of 400");
}

#[test]
fn two_populations_are_recovered() {
    for seed in 1..=20 {
        let mut random = Lcg(seed);
        let samples: Vec<f64> = (0..2000)
            .map(|_| {
                if random.uniform() < 0.92 {
                    random.lognormal(12e6, 0.25)
                } else {
                    random.lognormal(800e6, 0.15)
                }
            })
            .collect();
        let modes = of(samples).modes;
        assert_eq!(modes.len(), 2, "seed {seed}: {modes:?}");
        for (mode, center, share) in [(&modes[0], 12e6, 0.92), (&modes[1], 800e6, 0.08)] {
            assert!(
                (mode.center_ns as f64 / center - 1.0).abs() < 0.1,
                "seed {seed}: {modes:?}"
            );
            assert!((mode.share - share).abs() < 0.03, "seed {seed}: {modes:?}");
        }
    }
}

#[test]
fn three_populations_and_stray_samples() {
    let mut random = Lcg(3);
    let mut samples: Vec<f64> = Vec::new();
    for (median, count) in [(50e3, 500), (2e6, 1000), (90e6, 500)] {
        samples.extend((0..count).map(|_| random.lognormal(median, 0.2)));
    }
    samples.extend([4e9, 5e9, 6e9]);
    let centers: Vec<u64> = of(samples)
        .modes
        .iter()
        .map(|mode| mode.center_ns / 1000)
        .collect();
    assert!(
        matches!(centers[..], [45..55, 1800..2200, 81_000..99_000]),
        "{centers:?}"
    );
}

#[test]
fn heavy_tails_are_one_population() {
    for seed in 1..=100 {
        for n in [50, 300, 2000, 20_000] {
            for sigma in [0.1, 0.5, 1.0, 2.0] {
                let mut random = Lcg(seed);
                let lognormal = of((0..n).map(|_| random.lognormal(1e6, sigma)));
                assert!(
                    lognormal.modes.is_empty(),
                    "lognormal {sigma}, {n}, seed {seed}: {:?}",
                    lognormal.modes
                );
            }
            for alpha in [0.3, 0.6, 1.0, 2.0] {
                let mut random = Lcg(seed);
                let pareto = of((0..n).map(|_| 1e4 * random.uniform().powf(-1.0 / alpha)));
                assert!(
                    pareto.modes.is_empty(),
                    "pareto {alpha}, {n}, seed {seed}: {:?}",
                    pareto.modes
                );
            }
            let mut random = Lcg(seed);
            assert!(
                of((0..n).map(|_| 1e6 * random.uniform())).modes.is_empty(),
                "uniform {n}, seed {seed}"
            );
        }
    }
}

#[test]
fn too_few_or_too_near_is_no_population() {
    let clusters = |a: (f64, usize), b: (f64, usize)| {
        of(std::iter::repeat_n(a.0, a.1).chain(std::iter::repeat_n(b.0, b.1)))
            .modes
            .len()
    };
    assert_eq!(clusters((1e6, 500), (100e6, 19)), 0);
    assert_eq!(clusters((1e6, 2000), (100e6, 39)), 0);
    assert_eq!(clusters((1e6, 500), (2.4e6, 500)), 0);
    assert_eq!(clusters((1e6, 500), (2.6e6, 500)), 2);
    assert_eq!(clusters((1e6, 20), (100e6, 20)), 2);
}
