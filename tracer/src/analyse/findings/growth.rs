//! How something grows, in words.

use crate::report::{
    model::Step,
    units::{count, duration},
};

/// "growing all the time", or the steps that it grows by.
pub(super) fn how(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "growing all the time".into();
    }
    let each: Vec<String> = steps
        .iter()
        .map(|step| format!("+{} every {}", count(step.size), duration(step.period_ns)))
        .collect();
    let many = if steps.len() == 1 { "a step of" } else { "steps of" };
    format!(
        "growing in {many} {}: look for a job of that period",
        each.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_with_their_periods() {
        let step = |size, period_ns| Step {
            period_ns,
            size,
            p_value: 1e-9,
        };
        assert_eq!(how(&[]), "growing all the time");
        assert_eq!(
            how(&[step(40, 5_300_000_000)]),
            "growing in a step of +40 every 5.30 s: look for a job of that period"
        );
        assert_eq!(
            how(&[step(40, 5_300_000_000), step(2, 7_100_000_000)]),
            "growing in steps of +40 every 5.30 s and +2 every 7.10 s: look for a job of that period"
        );
    }
}
