//! Numbers with three digits, in units that a person reads.
//!
//! A number and what belongs to it are joined by [`GLUE`], so that wrapping does not part them.

use crate::report::model::{Hist, Mode};

/// A no-break space. The renderer makes it a space at the end; none comes from the target, as it is escaped there.
pub(crate) const GLUE: char = '\u{a0}';

/// Under this many samples a 99th percentile is shown with its interval.
const FEW: u64 = 1000;

/// From one unit to the next when the number no longer fits three digits; seconds last up to ten minutes.
const TIMES: [(f64, f64, &str); 7] = [
    (1.0, 999.5, "ns"),
    (1e3, 999.5, "us"),
    (1e6, 999.5, "ms"),
    (1e9, 599.5, "s"),
    (60e9, 99.95, "min"),
    (3600e9, 99.95, "h"),
    (86_400e9, f64::INFINITY, "d"),
];

fn unit(ns: u64) -> (f64, &'static str) {
    let value = ns as f64;
    let fits = TIMES
        .iter()
        .find(|(size, limit, _)| value / size < *limit)
        .unwrap_or(&TIMES[6]);
    (fits.0, fits.2)
}

fn digits(value: f64) -> String {
    let magnitude = value.abs();
    let places = if magnitude < 9.995 {
        2
    } else {
        usize::from(magnitude < 99.95)
    };
    format!("{value:.places$}")
}

fn in_unit(ns: u64, unit: (f64, &str)) -> String {
    if unit.1 == "ns" {
        ns.to_string()
    } else {
        digits(ns as f64 / unit.0)
    }
}

/// `20.3 ms`.
pub(crate) fn time(ns: u64) -> String {
    let unit = unit(ns);
    format!("{}{GLUE}{}", in_unit(ns, unit), unit.1)
}

/// [`time`] with an ordinary space, for text that leaves the renderer.
pub(crate) fn duration(ns: u64) -> String {
    plain(&time(ns))
}

/// [`percent`] with an ordinary space, for text that leaves the renderer.
pub(crate) fn portion(share: f64) -> String {
    plain(&percent(share))
}

/// `text` with ordinary spaces in place of [`GLUE`].
pub(crate) fn plain(text: &str) -> String {
    text.replace(GLUE, " ")
}

/// `12,345`.
pub(crate) fn count(n: u64) -> String {
    let plain = n.to_string();
    let mut out = String::new();
    for (i, digit) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 wait`, `2 waits`.
pub(crate) fn counted(n: u64, one: &str) -> String {
    format!("{} {one}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `12 %`, `1.8 %`, `< 0.1 %`.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p <= 0.0 => format!("0{GLUE}%"),
        p if p < 0.1 => format!("<{GLUE}0.1{GLUE}%"),
        p if p < 9.95 => format!("{p:.1}{GLUE}%"),
        p if p > 99.0 && p < 99.95 => format!("{p:.1}{GLUE}%"),
        p => format!("{p:.0}{GLUE}%"),
    }
}

/// `part` of `whole`, 0 when there is none.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// `38.2 MB`.
pub(crate) fn bytes(n: f64) -> String {
    let (size, name) = match n.abs() {
        b if b < 999.5 => return format!("{n:.0}{GLUE}B"),
        b if b < 999.5e3 => (1e3, "kB"),
        b if b < 999.5e6 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{}{GLUE}{name}", digits(n / size))
}

/// `+4.10`.
pub(crate) fn rate(per_s: f64) -> String {
    let sign = if per_s > 0.0 { "+" } else { "" };
    if per_s == 0.0 {
        "0".to_owned()
    } else {
        format!("{sign}{}", digits(per_s))
    }
}

fn range(hist: &Hist) -> Option<String> {
    let [low, high] = hist.p99_ci_ns.filter(|_| hist.count < FEW)?;
    let shown = unit(hist.p99_ns);
    if unit(high).1 == shown.1 {
        return Some(format!("{}–{}", in_unit(low, shown), in_unit(high, shown)));
    }
    Some(format!("{}–{}", time(low), time(high)))
}

/// `20.3 ms`, and under 1,000 samples `20.3 ms (19.8–20.9)`: for a table that has the samples in another column.
pub(crate) fn p99_cell(hist: &Hist) -> String {
    if hist.count == 0 {
        return "-".to_owned();
    }
    range(hist).map_or_else(
        || time(hist.p99_ns),
        |range| format!("{} ({range})", time(hist.p99_ns)),
    )
}

/// `p99 20.3 ms`, and under 1,000 samples `p99 20.3 ms (n=23, 19.8–20.9)`.
pub(crate) fn p99(hist: &Hist) -> String {
    let range = range(hist).map_or_else(String::new, |range| {
        format!("{GLUE}(n={},{GLUE}{range})", hist.count)
    });
    format!("p99{GLUE}{}{range}", time(hist.p99_ns))
}

/// What matters of a distribution: the middle, the tail and the worst.
pub(crate) fn tail(hist: &Hist) -> String {
    if hist.count == 0 {
        return "no samples".to_owned();
    }
    let (p50, max) = (time(hist.p50_ns), time(hist.max_ns));
    format!("p50{GLUE}{p50}, {}, max{GLUE}{max}", p99(hist))
}

/// A distribution in one line; no mean, which would hide the tail.
pub(crate) fn distribution(hist: &Hist) -> String {
    if hist.count == 0 {
        return "no samples".to_owned();
    }
    let (min, p50, p90, max) = (
        time(hist.min_ns),
        time(hist.p50_ns),
        time(hist.p90_ns),
        time(hist.max_ns),
    );
    let p999 = if hist.count < FEW {
        String::new()
    } else {
        format!(", p99.9{GLUE}{}", time(hist.p999_ns))
    };
    format!(
        "min{GLUE}{min}, p50{GLUE}{p50}, p90{GLUE}{p90}, {}{p999}, max{GLUE}{max}",
        p99(hist)
    )
}

/// `two populations: 92 % around 12.0 ms, 8.0 % around 797 ms`.
pub(crate) fn modes(modes: &[Mode]) -> Option<String> {
    let number = match modes.len() {
        0 | 1 => return None,
        2 => "two".to_owned(),
        3 => "three".to_owned(),
        n => n.to_string(),
    };
    let each: Vec<String> = modes
        .iter()
        .map(|mode| format!("{} around {}", percent(mode.share), time(mode.center_ns)))
        .collect();
    Some(format!("{number} populations: {}", each.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        let times = [
            (0, "0 ns"),
            (999, "999 ns"),
            (20_300, "20.3 us"),
            (999_700, "1.00 ms"),
            (20_300_000, "20.3 ms"),
            (1_240_000_000, "1.24 s"),
            (151_000_000_000, "151 s"),
            (1_000_000_000_000, "16.7 min"),
            (7_200_000_000_000, "2.00 h"),
            (u64::MAX, "213504 d"),
        ];
        for (ns, text) in times {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(
            [count(7), count(1234), count(1_234_567)],
            ["7", "1,234", "1,234,567"]
        );
        assert_eq!(
            [12.0, 38_200_000.0, -4e9].map(|n| plain(&bytes(n))),
            ["12 B", "38.2 MB", "-4.00 GB"]
        );
        assert_eq!([rate(4.1), rate(0.0), rate(-12.34)], ["+4.10", "0", "-12.3"]);
        let shares = [0.0, 0.0004, 0.018, 0.5, 0.993, 1.0].map(portion);
        assert_eq!(shares, ["0 %", "< 0.1 %", "1.8 %", "50 %", "99.3 %", "100 %"]);
    }
}
