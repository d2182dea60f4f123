//! Things of one run that are one: of one window, and of windows that follow each other.

use std::collections::BTreeMap;

use super::{
    item::{Item, Shares, likeness},
    stats::Slot,
};

/// Things of a run that are compared, over all its reports: the first ones, which cost most in their report.
const ITEMS_MAX: usize = 2048;

/// What came before a window.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    /// All windows before.
    pub(super) all_ns: f64,
    /// Of these, those that share its slot.
    pub(super) slot_ns: f64,
    /// It opens a slot.
    pub(super) opens: bool,
}

/// Joins the next window's things to those of the windows before; how many found no room.
pub(super) fn append(all: &mut Vec<Item>, next: Vec<Item>, before: Before, duration: f64) -> u64 {
    let mut left_out = 0;
    let silent = |duration_ns: f64| Slot {
        duration_ns,
        ..Slot::default()
    };
    let mut met = vec![false; all.len()];
    for mut item in next {
        let found = all.iter_mut().enumerate().find(|(at, known)| {
            !met.get(*at).copied().unwrap_or(true)
                && same_kind(known, &item)
                && likeness(known, &item) >= ALIKE
        });
        if let Some((at, known)) = found {
            if let Some(met) = met.get_mut(at) {
                *met = true;
            }
            let told = known.sample.slots.is_empty() || item.sample.slots.is_empty();
            let mut slots = std::mem::take(&mut known.sample.slots);
            match (slots.last_mut(), item.sample.slots.first()) {
                (Some(open), Some(more)) if !before.opens => {
                    open.duration_ns += more.duration_ns;
                    open.count += more.count;
                    open.total_ns += more.total_ns;
                }
                _ => slots.append(&mut item.sample.slots),
            }
            merge(known, item);
            known.sample.slots = if told { Vec::new() } else { slots };
        } else if all.len() < ITEMS_MAX {
            // It was not there before, which is as good as told.
            if let Some(first) = item.sample.slots.first_mut() {
                if !before.opens {
                    first.duration_ns += before.slot_ns;
                }
                let earlier = before.all_ns - before.slot_ns;
                if earlier > 0.0 {
                    item.sample.slots.insert(0, silent(earlier));
                }
            }
            all.push(item);
        } else {
            left_out += 1;
        }
    }
    // Those that did not wait in this window.
    for (item, _) in all.iter_mut().zip(&met).filter(|(_, met)| !**met) {
        match item.sample.slots.last_mut() {
            Some(open) if !before.opens => open.duration_ns += duration,
            Some(_) => item.sample.slots.push(silent(duration)),
            None => {}
        }
    }
    left_out
}

/// From here on two things of one run are one: nothing but addresses tells them apart.
const ALIKE: f64 = 0.9;

/// Takes together what only addresses tell apart.
pub(super) fn alike(items: Vec<Item>) -> Vec<Item> {
    let mut kept: Vec<Item> = Vec::new();
    for item in items {
        let same = kept
            .iter_mut()
            .find(|known| same_kind(known, &item) && likeness(known, &item) >= ALIKE);
        match same {
            Some(known) => merge_slices(known, item),
            None => kept.push(item),
        }
    }
    kept
}

fn same_kind(one: &Item, other: &Item) -> bool {
    one.class == other.class && one.kind == other.kind
}

/// Of one window: slot by slot.
fn merge_slices(into: &mut Item, from: Item) {
    let mut slots = std::mem::take(&mut into.sample.slots);
    if slots.len() == from.sample.slots.len() {
        for (slot, more) in slots.iter_mut().zip(&from.sample.slots) {
            slot.count += more.count;
            slot.total_ns += more.total_ns;
        }
    } else {
        slots.clear();
    }
    let rows = into.rows + from.rows;
    merge(into, from);
    into.sample.slots = slots;
    into.rows = rows;
}

/// All but slots and rows.
fn merge(into: &mut Item, from: Item) {
    let (mine, theirs) = (into.sample.total_ns, from.sample.total_ns);
    let all = (mine + theirs).max(1.0);
    if theirs > mine {
        into.top = from.top;
        into.nameless = from.nameless;
        into.name = from.name;
    }
    let mix = |into: &mut Shares, from: Shares| {
        for share in into.values_mut() {
            *share *= mine / all;
        }
        for (name, share) in from {
            *into.entry(name).or_default() += share * theirs / all;
        }
    };
    mix(&mut into.chains, from.chains);
    mix(&mut into.leaves, from.leaves);
    mix(&mut into.functions, from.functions);
    into.neutral &= from.neutral;
    into.symbol = into
        .symbol
        .take()
        .filter(|symbol| Some(symbol) == from.symbol.as_ref());
    let sample = &mut into.sample;
    let recorded =
        sample.recorded.unwrap_or(sample.count) + from.sample.recorded.unwrap_or(from.sample.count);
    sample.count += from.sample.count;
    sample.total_ns += from.sample.total_ns;
    sample.recorded = (recorded < sample.count).then_some(recorded);
    let mut buckets: BTreeMap<u64, u64> = std::mem::take(&mut sample.buckets).into_iter().collect();
    for (upper, count) in from.sample.buckets {
        let sum = buckets.entry(upper).or_default();
        *sum = sum.saturating_add(count);
    }
    sample.buckets = buckets.into_iter().collect();
}
