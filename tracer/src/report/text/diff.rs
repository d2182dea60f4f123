//! What changed between two reports, for a person.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    TextOptions,
    escape::{clean, name},
    page::{Column, Page, Tone},
};
use crate::report::{
    diff::{Change, Diff, Matched, Metric, Side, Thing},
    frames::{basename, without_path},
    units::{GLUE, count, plain, time},
};

const CHANGED: &str = "Changed";
/// Columns of a function's name.
const NAME: usize = 40;
/// Callers shown in a row.
const CALLERS: usize = 3;

/// Renders a comparison as text: the verdict in a line, then what changed, most lost time first. What is not printable is escaped.
#[must_use]
pub fn render_diff(diff: &Diff, options: &TextOptions) -> String {
    let page = Page::new(options.width, options.color);
    let top = options.top.max(1);
    let mut lines = vec![
        page.heading(&format!("{} → {}", side(&diff.before), side(&diff.after))),
        page.paint(tone(diff.verdict), &page.line(0, &capital(&clean(&diff.summary)))),
    ];
    let significance = &diff.significance;
    lines.extend(page.wrap(
        0,
        &format!(
            "Rates are per {} ({}). A change is over {:.0}{GLUE}% and significant at {:.0}{GLUE}% over all {} tests.",
            diff.basis.unit,
            clean(&diff.basis.why),
            significance.margin * 100.0,
            significance.alpha * 100.0,
            significance.tests,
        ),
    ));
    for note in &diff.notes {
        lines.extend(page.labelled(2, "!", &clean(note)));
    }
    let of = |wanted: &[Change]| -> Vec<&Thing> {
        let things = diff.things.iter();
        things.filter(|thing| wanted.contains(&thing.verdict)).collect()
    };
    let changed = of(&[Change::Worse, Change::Improved, Change::Differs]);
    section(&mut lines, &page, CHANGED, &changed, top);
    for thing in changed.iter().take(top) {
        details(&mut lines, &page, thing);
    }
    if options.verbose || changed.is_empty() {
        section(&mut lines, &page, "Unchanged", &of(&[Change::Unchanged]), top);
    }
    if options.verbose {
        section(
            &mut lines,
            &page,
            "Not enough data",
            &of(&[Change::NotEnoughData]),
            top,
        );
    } else {
        let withheld: Vec<&Thing> = of(&[Change::NotEnoughData]);
        let reasons: BTreeMap<&str, u64> = withheld.iter().fold(BTreeMap::new(), |mut reasons, thing| {
            *reasons.entry(thing.why.as_str()).or_default() += 1;
            reasons
        });
        if !reasons.is_empty() {
            lines.push(String::new());
            lines.push(page.heading("Not enough data"));
            for (why, number) in reasons {
                lines.extend(page.labelled(8, &format!("{number:>5}"), &clean(why)));
            }
        }
    }
    if !options.verbose {
        lines.push(String::new());
        lines.push(page.line(
            0,
            "-v adds what is unchanged or cannot be told; the JSON has every number.",
        ));
    }
    let mut text = lines.join("\n").replace(GLUE, " ");
    text.push('\n');
    text
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn side(side: &Side) -> String {
    let documents = if side.documents > 1 {
        format!(", {} intervals", count(side.documents))
    } else {
        String::new()
    };
    let comm = side
        .comm
        .as_deref()
        .map_or_else(String::new, |comm| format!(", {}", name(comm, 16)));
    let file = name(basename(&side.file), 24);
    format!("{file} ({}{comm}{documents})", time(side.duration_ns))
}

const fn tone(change: Change) -> Tone {
    match change {
        Change::Worse => Tone::Red,
        Change::Improved => Tone::Bold,
        Change::Differs => Tone::Yellow,
        Change::Unchanged | Change::NotEnoughData => Tone::Plain,
    }
}

const fn word(change: Change) -> &'static str {
    match change {
        Change::Worse => "worse",
        Change::Improved => "improved",
        Change::Differs => "differs",
        Change::Unchanged => "unchanged",
        Change::NotEnoughData => "unknown",
    }
}

/// `mutex table_lock`, `mutex → rwlock table_lock`.
fn what(thing: &Thing) -> String {
    let kind = |kind: &str| name(&kind.replace('_', " "), NAME);
    let mut title = name(without_path(&thing.name), NAME);
    // A function that sleeps for others is told by its caller.
    if let (true, Some(caller)) = (thing.class == "blocked", thing.functions.get(1)) {
        title = format!("{title} ← {}", name(without_path(caller), NAME));
    }
    let kinds = match &thing.was {
        Some(was) => format!("{} → {}", kind(was), kind(&thing.kind)),
        None => kind(&thing.kind),
    };
    let together = match thing.rows {
        [1 | 0, 1 | 0] => String::new(),
        [one, two] if one == two => format!(" (×{one})"),
        [one, two] => format!(" (×{one}, ×{two})"),
    };
    match thing.class.as_str() {
        "run_queue" => "waiting for a CPU".to_owned(),
        "gc" => "GC pauses".to_owned(),
        "deadlock" => "deadlock".to_owned(),
        "fds" => format!("{kinds} descriptors of {title}"),
        "goroutines" => format!("goroutines in {title}"),
        "pool" => format!("pool used in {title}"),
        "blocked" => format!("{kinds} in {title}{together}"),
        _ => format!("{kinds} {title}{together}"),
    }
}

/// The metric that the verdict rests on: the first that changed, else the first.
fn main_metric(thing: &Thing) -> Option<&Metric> {
    let order = ["time_per_s", "growth_per_s", "p99", "p50", "count_per_s"];
    let changed = order.iter().find_map(|name| {
        thing
            .metrics
            .iter()
            .find(|metric| metric.name == **name && metric.changed)
    });
    changed.or_else(|| thing.metrics.first())
}

fn value(metric: &Metric, value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return "?".to_owned();
    };
    match metric.unit.as_str() {
        "ns/s" => format!("{}/s", time(value as u64)),
        "ns" => time(value as u64),
        "1/s" if value < 99.5 => format!("{value:.1}/s"),
        "1/s" => format!("{}/s", count(value as u64)),
        _ => format!("{value:.2}"),
    }
}

fn ratio(ratio: f64) -> String {
    if ratio >= 1.995 {
        format!("×{ratio:.1}")
    } else {
        let percent = (ratio - 1.0) * 100.0;
        let places = usize::from(percent < -99.0);
        let sign = if percent < 0.0 { "−" } else { "+" };
        format!("{sign}{:.places$}{GLUE}%", percent.abs())
    }
}

fn change(thing: &Thing, metric: &Metric) -> String {
    match (metric.ratio, thing.matched) {
        (Some(by), _) => ratio(by),
        (None, Matched::OnlyBefore) => "gone".to_owned(),
        (None, Matched::OnlyAfter) => "new".to_owned(),
        _ if thing.verdict == Change::Improved => "gone".to_owned(),
        _ if thing.verdict == Change::Worse => "new".to_owned(),
        _ => "?".to_owned(),
    }
}

fn label(metric: &Metric) -> &'static str {
    match metric.name.as_str() {
        "time_per_s" => "time",
        "count_per_s" => "waits",
        "growth_per_s" => "growth",
        "p50" => "p50",
        "p99" => "p99",
        _ => "",
    }
}

fn section(lines: &mut Vec<String>, page: &Page, title: &str, things: &[&Thing], top: usize) {
    if things.is_empty() {
        return;
    }
    let columns = [
        Column::Text(""),
        Column::Word(""),
        Column::Word(""),
        Column::Number("before"),
        Column::Number("after"),
        Column::Number("change"),
    ];
    let rows: Vec<Vec<String>> = things
        .iter()
        .take(top)
        .map(|thing| {
            let metric = main_metric(thing);
            let cell = |of: &dyn Fn(&Metric) -> String| metric.map_or_else(String::new, of);
            vec![
                what(thing),
                // The heading says it where it is the same for all.
                if title == CHANGED {
                    word(thing.verdict).to_owned()
                } else {
                    String::new()
                },
                cell(&|metric| label(metric).to_owned()),
                cell(&|metric| value(metric, metric.before)),
                cell(&|metric| value(metric, metric.after)),
                cell(&|metric| change(thing, metric)),
            ]
        })
        .collect();
    lines.push(String::new());
    lines.extend(page.table(&format!("{title} ({})", things.len()), &columns, &rows));
    if things.len() > rows.len() {
        lines.push(page.line(2, &format!("… {} more in the JSON", things.len() - rows.len())));
    }
}

fn details(lines: &mut Vec<String>, page: &Page, thing: &Thing) {
    lines.push(String::new());
    lines.push(page.paint(
        tone(thing.verdict),
        &page.line(0, &format!("{}: {}", word(thing.verdict), what(thing))),
    ));
    let callers: Vec<String> = thing
        .functions
        .iter()
        .take(CALLERS)
        .map(|function| name(without_path(function), NAME))
        .collect();
    if !callers.is_empty() {
        lines.push(page.line(2, &format!("in {}", callers.join(" ← "))));
    }
    let counterpart = match (thing.matched, thing.similarity) {
        (Matched::Replaced, Some(alike)) => format!(
            "; another kind in the same functions ({:.0}{GLUE}% alike)",
            alike * 100.0
        ),
        (Matched::Similar, Some(alike)) => {
            format!("; its functions are {:.0}{GLUE}% the same", alike * 100.0)
        }
        _ => String::new(),
    };
    lines.extend(page.wrap(2, &format!("{}{counterpart}", clean(&thing.why))));
    for metric in &thing.metrics {
        lines.push(page.line(2, &numbers(thing, metric)));
    }
}

/// `p99   20.3 ms → 1.20 ms  −94 % (95 %: −95 % to −92 %), p < 0.001`
fn numbers(thing: &Thing, metric: &Metric) -> String {
    let mut line = format!(
        "{:7}{} → {}  {}",
        label(metric),
        value(metric, metric.before),
        value(metric, metric.after),
        change(thing, metric),
    );
    // Writing to a string does not fail.
    if let Some([low, high]) = metric.ratio_ci {
        let _ = write!(line, " (95{GLUE}%: {} to {})", ratio(low), ratio(high));
    }
    if let Some(p) = metric.p_adjusted {
        let _ = if p < 0.001 {
            write!(line, ", p < 0.001")
        } else {
            write!(line, ", p = {p:.3}")
        };
    }
    plain(&line)
}

#[cfg(test)]
mod tests;
