//! Is it a change? Rates and percentiles with standard errors that know of bursts, compared by their logarithms.

/// Errors of a rate, at least: nothing is told to more than this.
const SE_MIN: f64 = 1e-3;
/// Slots that must be told apart.
const SLOTS_MIN: usize = 6;
/// Slots that waits must be spread over, as if evenly, before their lengths are told.
const SPREAD_MIN: f64 = 4.0;
/// Without slots, waits are taken to come in bursts of this many.
const BURST: f64 = 10.0;

/// A part of a run: its length, the waits that ended in it, and their time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slot {
    /// Length.
    pub duration_ns: f64,
    /// Waits.
    pub count: f64,
    /// Their time.
    pub total_ns: f64,
}

/// What a run tells of waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Waits.
    pub count: f64,
    /// Their time.
    pub total_ns: f64,
    /// Window.
    pub duration_ns: f64,
    /// Upper bound and number of each bucket, by bound.
    pub buckets: Vec<(u64, u64)>,
    /// When only some were recorded: as many of equal weight tell as much.
    pub recorded: Option<f64>,
    /// Parts of the window; empty: not told.
    pub slots: Vec<Slot>,
}

/// A positive number and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Standard error of its logarithm.
    pub se: f64,
    /// Degrees of freedom of that.
    pub df: f64,
    /// Samples that count.
    pub effective: f64,
}

/// Two estimates compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tested {
    /// Second to first.
    pub ratio: f64,
    /// 95 % interval.
    pub ci: [f64; 2],
    /// Of such a difference without a change, two-sided.
    pub p: f64,
}

/// What of a slot is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Waits.
    Count,
    /// Their time.
    Total,
}

impl Sample {
    fn of(&self, of: Of) -> f64 {
        match of {
            Of::Count => self.count,
            Of::Total => self.total_ns,
        }
    }

    /// Square of the coefficient of variation of one wait, by the buckets.
    fn cv2(&self) -> f64 {
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for &(upper, count) in &self.buckets {
            let (upper, count) = (upper as f64, count as f64);
            n += count;
            sum += upper * count;
            squares += upper * upper * count;
        }
        if sum <= 0.0 || n <= 0.0 {
            return 0.0;
        }
        (squares * n / (sum * sum) - 1.0).max(0.0)
    }

    /// Number of samples as good as independent, bursts left aside.
    fn samples(&self) -> f64 {
        self.recorded.unwrap_or(self.count).min(self.count)
    }

    /// Sum per second of the window. None without waits.
    ///
    /// Its error is the largest of: that of independent waits (a compound Poisson process), and those by the differences of slots,
    /// of pairs of slots, of four and so on: bursts longer than a slot show in the longer ones.
    #[must_use]
    pub fn rate(&self, of: Of) -> Option<Estimate> {
        let (sum, n) = (self.of(of), self.samples());
        if sum <= 0.0 || self.count <= 0.0 || self.duration_ns <= 0.0 || n <= 0.0 {
            return None;
        }
        let one = match of {
            Of::Count => 1.0,
            Of::Total => 1.0 + self.cv2(),
        };
        let mut best = (one / n, 1e4);
        if let Some(spread) = self.spread(|slot| {
            let value = match of {
                Of::Count => slot.count,
                Of::Total => slot.total_ns,
            };
            (value, slot.duration_ns)
        }) {
            if spread.0 > best.0 {
                best = spread;
            } else {
                best.1 = spread.1;
            }
        } else {
            best = (BURST * one / n, 10.0);
        }
        Some(Estimate {
            value: sum / self.duration_ns * 1e9,
            se: best.0.sqrt().max(SE_MIN),
            df: best.1,
            effective: (one / best.0).min(n),
        })
    }

    /// Variance of the ratio of two sums over slots, relative to its square, and degrees of freedom: the largest by blocks of one
    /// slot, two, four…. `parts` gives numerator and denominator of a slot.
    fn spread(&self, parts: impl Fn(&Slot) -> (f64, f64)) -> Option<(f64, f64)> {
        let pairs: Vec<(f64, f64)> = self.slots.iter().map(parts).collect();
        let (sum, base) = pairs
            .iter()
            .fold((0.0, 0.0), |(a, b), pair| (a + pair.0, b + pair.1));
        if sum <= 0.0 || base <= 0.0 || pairs.len() < SLOTS_MIN {
            return None;
        }
        let ratio = sum / base;
        let mut worst: Option<(f64, f64)> = None;
        let mut long = 1;
        while pairs.len() / long >= SLOTS_MIN {
            let blocks: Vec<f64> = pairs
                .chunks(long)
                .map(|block| block.iter().map(|pair| pair.0 - ratio * pair.1).sum())
                .collect();
            let k = blocks.len() as f64;
            let squares: f64 = blocks.iter().map(|residual| residual * residual).sum();
            let variance = squares * k / (k - 1.0) / (sum * sum);
            if worst.is_none_or(|(most, _)| variance > most) {
                worst = Some((variance, k - 1.0));
            }
            long *= 2;
        }
        worst
    }

    /// How many times fewer samples tell as much, as neighbours in time are alike: by how much the mean differs between slots.
    fn design(&self) -> f64 {
        let cv2 = self.cv2();
        if self.slots.is_empty() || self.samples() <= 0.0 {
            return BURST;
        }
        let independent = cv2.max(1e-6) / self.samples();
        self.spread(|slot| (slot.total_ns, slot.count))
            .map_or(BURST, |(variance, _)| (variance / independent).max(1.0))
    }

    /// Over how many slots the waits are spread, as if evenly; None without slots.
    fn spread_over(&self) -> Option<f64> {
        let squares: f64 = self.slots.iter().map(|slot| slot.count * slot.count).sum();
        let sum: f64 = self.slots.iter().map(|slot| slot.count).sum();
        (squares > 0.0).then(|| sum * sum / squares)
    }

    /// A percentile. None with too few samples: five that count must lie on either side of it.
    ///
    /// Its error is half the distance, in logarithms, between those order statistics that lie one standard error of the binomial
    /// distribution below and above it.
    #[must_use]
    pub fn percentile(&self, q: f64) -> Option<Estimate> {
        let n = self.samples() / self.design();
        if n * (1.0 - q) < 5.0 || n * q < 5.0 {
            return None;
        }
        // Of one burst, nobody knows how the next one will be.
        if self.spread_over().is_some_and(|slots| slots < SPREAD_MIN) {
            return None;
        }
        let step = (q * (1.0 - q) / n).sqrt();
        let (low, value, high) = (self.at(q - step)?, self.at(q)?, self.at(q + step)?);
        if low <= 0.0 || value <= 0.0 || high <= 0.0 {
            return None;
        }
        // The wider side counts for both: the tail above is the one seen worst.
        let se = (high / value).ln().max((value / low).ln());
        Some(Estimate {
            value,
            se: se.max(SE_MIN),
            df: (self.slots.len().max(SLOTS_MIN) - 1) as f64,
            effective: n,
        })
    }

    /// The time that this part of the waits does not exceed.
    fn at(&self, q: f64) -> Option<f64> {
        let all: f64 = self.buckets.iter().map(|&(_, count)| count as f64).sum();
        let rank = (q.clamp(0.0, 1.0) * all).max(1.0);
        let mut seen = 0.0;
        for &(upper, count) in &self.buckets {
            seen += count as f64;
            if seen >= rank {
                return Some(upper as f64);
            }
        }
        self.buckets.last().map(|&(upper, _)| upper as f64)
    }
}

/// An upper bound of what was not seen at all, from what the other run shows: three waits like its own.
#[must_use]
pub fn nothing_like(seen: &Sample, of: Of, duration_ns: f64) -> Estimate {
    let mean = if seen.count > 0.0 {
        seen.of(of) / seen.count
    } else {
        1.0
    };
    Estimate {
        value: (3.0 * mean / duration_ns.max(1.0) * 1e9).max(f64::MIN_POSITIVE),
        se: 1.0,
        df: 1e4,
        effective: 0.0,
    }
}

/// Compares. `noise` is the standard deviation of a run's logarithm that the run itself does not show; `scale` divides the ratio,
/// with a standard error of its own.
#[must_use]
pub fn compare(before: &Estimate, after: &Estimate, noise: f64, scale: (f64, f64)) -> Tested {
    let log = (after.value / before.value).ln() - scale.0.ln();
    let parts = [
        (before.se.powi(2), before.df),
        (after.se.powi(2), after.df),
        (2.0 * noise * noise + scale.1 * scale.1, 1e4),
    ];
    let variance: f64 = parts.iter().map(|(variance, _)| variance).sum();
    // Welch and Satterthwaite.
    let df = variance * variance
        / parts
            .iter()
            .map(|(variance, df)| variance * variance / df.max(1.0))
            .sum::<f64>();
    let se = variance.sqrt();
    let reach = t_quantile(df) * se;
    Tested {
        ratio: log.exp(),
        ci: [(log - reach).exp(), (log + reach).exp()],
        p: t_two_sided(log / se, df),
    }
}

/// Holm's adjusted probabilities: calling those changed that stay under α keeps the probability of any false one under α.
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut most = 0.0_f64;
    for (rank, &at) in order.iter().enumerate() {
        most = most.max(p[at] * (p.len() - rank) as f64).min(1.0);
        adjusted[at] = most;
    }
    adjusted
}

/// Probability that Student's t with `df` degrees of freedom is at least this far from 0.
#[must_use]
pub fn t_two_sided(t: f64, df: f64) -> f64 {
    if !t.is_finite() || !df.is_finite() || df <= 0.0 {
        return 1.0;
    }
    // Beyond, it is the normal distribution.
    let df = df.min(1e4);
    incomplete_beta(df / (df + t * t), df / 2.0, 0.5)
}

/// The t that is exceeded on either side with 5 % probability, by bisection.
pub(crate) fn t_quantile(df: f64) -> f64 {
    let (mut low, mut high) = (1.0, 1000.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if t_two_sided(middle, df) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Regularised incomplete beta function (its continued fraction by Lentz's method).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(x, a, b) / a
    } else {
        1.0 - front * fraction(1.0 - x, b, a) / b
    }
}

#[allow(clippy::many_single_char_names, reason = "as the literature has them")]
fn fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let nonzero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for step in 1..500 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / nonzero(1.0 + even * d);
        c = nonzero(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / nonzero(1.0 + odd * d);
        c = nonzero(1.0 + odd / c);
        let delta = d * c;
        value *= delta;
        if (delta - 1.0).abs() < 1e-12 {
            break;
        }
    }
    value
}

/// Logarithm of the gamma function for x > 0 (Stirling's series above 8, the recurrence below).
fn ln_gamma(mut x: f64) -> f64 {
    let mut below = 0.0;
    while x < 8.0 {
        below += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let series = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - below
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
