//! Whether one figure holds against its limit.

/// What a bystander that calls the system must not notice: half of what a probe on a system call costs it. An A/A row that
/// strays farther cannot tell.
const TELLABLE_NS: f64 = 5.0;

#[derive(Clone, Copy)]
pub(super) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Pass,
    Fail,
    /// And why.
    Inconclusive(String),
}

/// Says nothing when A/A alone strays as far as the measured lies from the limit.
pub(super) fn hold(measured: f64, limit: Limit, noise: Option<f64>) -> Outcome {
    let (holds, distance) = match limit {
        Limit::AtLeast(limit) => (measured >= limit, (measured - limit).abs()),
        Limit::AtMost(limit) => (measured <= limit, (measured - limit).abs()),
    };
    match noise {
        None => Outcome::Inconclusive("no A/A".to_owned()),
        Some(noise) if noise > distance => Outcome::Inconclusive(format!("A/A strays by {}", short(noise))),
        Some(_) if holds => Outcome::Pass,
        Some(_) => Outcome::Fail,
    }
}

/// What nobody can tell from A/A.
pub(super) fn unnoticed(measured: f64, noise: f64) -> Outcome {
    if noise > TELLABLE_NS {
        Outcome::Inconclusive(format!("more than {TELLABLE_NS} ns cannot tell"))
    } else if measured <= noise {
        Outcome::Pass
    } else {
        Outcome::Fail
    }
}

/// Three digits after the point for a ratio, one for ns.
fn short(value: f64) -> String {
    if value < 1.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_or_not_or_cannot_be_told() {
        let pass = |value, limit, noise| hold(value, limit, Some(noise));
        assert_eq!(pass(0.963, Limit::AtLeast(0.95), 0.005), Outcome::Pass);
        assert_eq!(pass(0.93, Limit::AtLeast(0.95), 0.005), Outcome::Fail);
        assert_eq!(pass(1.04, Limit::AtMost(1.05), 0.005), Outcome::Pass);
        assert_eq!(pass(1.06, Limit::AtMost(1.05), 0.005), Outcome::Fail);
        for measured in [1.06, 1.04] {
            let outcome = pass(measured, Limit::AtMost(1.05), 0.02);
            assert_eq!(outcome, Outcome::Inconclusive("A/A strays by 0.020".to_owned()));
        }
        assert!(matches!(
            hold(1.0, Limit::AtMost(2.0), None),
            Outcome::Inconclusive(_)
        ));
    }

    #[test]
    fn what_a_bystander_does_not_notice_lies_within_a_a() {
        assert_eq!(unnoticed(0.3, 0.5), Outcome::Pass);
        assert_eq!(unnoticed(-2.0, 0.5), Outcome::Pass);
        assert_eq!(unnoticed(1.3, 0.5), Outcome::Fail);
        assert!(matches!(unnoticed(1.3, 8.0), Outcome::Inconclusive(_)));
    }
}
