//! Random numbers from a seed that is printed, and the distributions that histories are made of.

use std::hash::{BuildHasher as _, RandomState};

/// `SplitMix64` (Steele, Lea and Flood 2014).
pub(crate) struct Dice(u64);

/// The seed of this run: `CTRACE_SEED`, or another one each time.
pub(crate) fn seed(of: &str) -> u64 {
    let seed = std::env::var("CTRACE_SEED")
        .ok()
        .map_or_else(|| RandomState::new().hash_one(0), |seed| seed.parse().unwrap());
    println!("{of}: CTRACE_SEED={seed}");
    seed
}

impl Dice {
    /// Those of one history of a kind.
    pub(crate) fn of(seed: u64, kind: usize, at: usize) -> Self {
        let mut own = Self(seed);
        let kind = own.next() ^ kind as u64;
        let at = Self(kind).next() ^ at as u64;
        Self(Self(at).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform over (0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// As likely between 1 and 10 as between 10 and 100.
    pub(crate) fn scale(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.unit())
    }

    pub(crate) fn number(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    pub(crate) fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    pub(crate) fn pareto(&mut self, least: f64, alpha: f64) -> f64 {
        least * self.unit().powf(-1.0 / alpha)
    }

    /// Poisson arrivals in a time, at a rate that changes but never exceeds `most`.
    pub(crate) fn arrivals(&mut self, from: f64, to: f64, most: f64, rate: impl Fn(f64) -> f64) -> Vec<f64> {
        let (mut at, mut times) = (from, Vec::new());
        loop {
            at += self.exponential(1.0 / most);
            if at >= to {
                return times;
            }
            if self.unit() * most < rate(at) {
                times.push(at);
            }
        }
    }

    /// Poisson arrivals at one rate.
    pub(crate) fn poisson(&mut self, from: f64, to: f64, rate: f64) -> Vec<f64> {
        self.arrivals(from, to, rate, |_| rate)
    }
}
