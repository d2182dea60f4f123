//! All raw numbers of a run, as JSON.

use serde_json::{Value, json};

use super::{
    Args,
    judge::Verdict,
    outcome::Outcome,
    row::{Measured, Pair, Row},
};

pub(super) fn all(args: &Args, measured: &[Measured], verdicts: &[Verdict]) -> Value {
    json!({
        "windows": args.windows,
        "seconds": args.seconds,
        "disturbed": args.disturbed,
        "loads": measured.iter().map(load).collect::<Vec<_>>(),
        "verdicts": verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}

fn load(measured: &Measured) -> Value {
    json!({
        "name": measured.load.name,
        "bystander": measured.load.bystander,
        "rows": measured.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    json!({
        "with": row.tracer.name(),
        "failures": row.failures,
        "failed": row.failed,
        "windows": row.pairs.iter().map(pair).collect::<Vec<_>>(),
    })
}

fn pair(pair: &Pair) -> Value {
    json!({
        "throughput": pair.throughput(),
        "cpu": pair.cpu(),
        "cpu_of_both": pair.cpu_of_both(),
        "added_ns": pair.added_ns(),
        "others_cpus": pair.others(),
        "others_that_traced": pair.tracers,
        "before": pair.before,
        "on": pair.on,
        "after": pair.after,
        "losses": pair.losses,
        "report": pair.report,
    })
}

fn verdict(verdict: &Verdict) -> Value {
    let (outcome, why) = match &verdict.outcome {
        Outcome::Pass => ("pass", None),
        Outcome::Fail => ("fail", None),
        Outcome::Inconclusive(why) => ("inconclusive", Some(why)),
    };
    json!({"bound": verdict.text, "outcome": outcome, "why": why})
}
