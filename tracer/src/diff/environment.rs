//! What neighbours do: where CPUs are scarce, everything that waits for a thread waits longer.

use super::{
    item::Class,
    judge::{Draft, Rule, SMALL},
};
use crate::report::diff::Change;

/// CPUs were scarcer in a run where delays are longer by this.
const SCARCER: f64 = 1.5;

/// Withholds what may be the neighbours' doing: where CPUs were scarcer, everything that waits for a thread waits longer. Says so.
pub fn environment(drafts: &mut [Draft]) -> Option<String> {
    let queue = drafts
        .iter()
        .find(|draft| draft.thing.class == Class::RunQueue.word())?;
    let Rule::RunQueue(own) = queue.rule else {
        return None;
    };
    let time = queue
        .thing
        .metrics
        .iter()
        .find(|metric| metric.name == "time_per_s")?;
    // A few milliseconds per second hold nobody up.
    let most = time.before.unwrap_or(0.0).max(time.after.unwrap_or(0.0));
    let ratio = time.ratio.filter(|_| most > 5.0 * SMALL)?;
    let scarcer = (ratio.ln().abs() >= SCARCER.ln()).then_some(ratio.ln().signum() as i8)?;
    if own == scarcer {
        return None;
    }
    let mut withheld = 0;
    for draft in drafts.iter_mut().filter(|draft| draft.rule == Rule::Waits) {
        let thing = &mut draft.thing;
        let same = match thing.verdict {
            Change::Worse => scarcer > 0,
            Change::Improved => scarcer < 0,
            _ => false,
        };
        // More than that explains is a change.
        let explained = thing
            .metrics
            .iter()
            .filter(|metric| metric.changed)
            .all(|metric| {
                metric
                    .ratio
                    .is_some_and(|change| change.ln().abs() <= ratio.ln().abs())
            });
        if same && explained {
            thing.verdict = Change::NotEnoughData;
            "CPUs were scarcer in one of the runs, which explains as much".clone_into(&mut thing.why);
            withheld += 1;
        }
    }
    let which = if scarcer > 0 { "second" } else { "first" };
    let factor = ratio.max(1.0 / ratio);
    let held_back = if withheld == 0 {
        String::new()
    } else {
        format!("; {withheld} of the changes may be that, and are not told")
    };
    Some(format!(
        "CPUs were scarcer in the {which} run: its threads waited {factor:.1} times as long for one{held_back}"
    ))
}
