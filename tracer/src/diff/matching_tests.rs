use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::diff::{
    item::{Class, Shares},
    stats::Sample,
};

/// A lock waited for in these chains of functions (numbers), with these weights.
fn lock(kind: &str, symbol: Option<&str>, waiters: &[(&[u64], f64)]) -> Item {
    let all: f64 = waiters.iter().map(|(_, weight)| weight).sum();
    let (mut chains, mut leaves, mut functions) = (Shares::new(), Shares::new(), BTreeMap::new());
    for (chain, weight) in waiters {
        let share = weight / all;
        let hash = chain
            .iter()
            .fold(7, |hash: u64, &f| hash.wrapping_mul(31).wrapping_add(f));
        *chains.entry(hash).or_default() += share;
        *leaves.entry(chain[0]).or_default() += share;
        for &function in *chain {
            *functions.entry(function).or_default() += share / chain.len() as f64;
        }
    }
    Item {
        class: Class::Lock,
        kind: kind.to_owned(),
        excludes: kind != "cond",
        neutral: false,
        symbol: symbol.map(str::to_owned),
        name: None,
        chains,
        leaves,
        functions,
        top: vec!["f".to_owned()],
        nameless: false,
        rows: 1,
        sample: Sample::default(),
    }
}

fn found(pairs: &[Pair]) -> Vec<(Option<usize>, Option<usize>, Matched)> {
    let mut found: Vec<_> = pairs
        .iter()
        .map(|pair| (pair.before, pair.after, pair.matched))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn the_same_code_is_the_same_lock() {
    let before = [
        lock("mutex", None, &[(&[1, 2], 1.0)]),
        lock("mutex", None, &[(&[3, 2], 1.0)]),
    ];
    let after = [
        lock("mutex", None, &[(&[3, 2], 1.0)]),
        lock("mutex", None, &[(&[1, 2], 1.0)]),
    ];
    let pairs = pairs(&before, &after);
    assert_eq!(
        found(&pairs),
        [
            (Some(0), Some(1), Matched::Same),
            (Some(1), Some(0), Matched::Same)
        ]
    );
    assert!(pairs.iter().all(|pair| !pair.ambiguous));
}

#[test]
fn a_caller_that_changed_is_similar_and_other_code_is_another() {
    let before = [
        lock("mutex", None, &[(&[1, 2, 9], 1.0)]),
        lock("mutex", None, &[(&[5, 6, 7], 1.0)]),
    ];
    let after = [
        lock("mutex", None, &[(&[1, 4, 2, 9], 1.0)]),
        lock("mutex", None, &[(&[11, 12, 13], 1.0)]),
    ];
    assert_eq!(
        found(&pairs(&before, &after)),
        [
            (None, Some(1), Matched::OnlyAfter),
            (Some(0), Some(0), Matched::Same),
            (Some(1), None, Matched::OnlyBefore)
        ]
    );
}

#[test]
fn two_globals_in_one_function_keep_their_names() {
    let both = |a, b| {
        [
            lock("mutex", Some(a), &[(&[1, 2], 1.0)]),
            lock("mutex", Some(b), &[(&[1, 2], 1.0)]),
        ]
    };
    let pairs = pairs(&both("from", "to"), &both("to", "from"));
    assert_eq!(
        found(&pairs),
        [
            (Some(0), Some(1), Matched::Same),
            (Some(1), Some(0), Matched::Same)
        ]
    );
}

#[test]
fn another_kind_in_the_same_functions_stands_in() {
    // Of the readers and the writer of the mutex, only the writer waits for the other.
    let before = [lock(
        "mutex",
        Some("table_mutex"),
        &[(&[1, 2], 95.0), (&[3, 2], 5.0)],
    )];
    let after = [lock("rwlock", Some("table_rwlock"), &[(&[3, 2], 1.0)])];
    assert_eq!(
        found(&pairs(&before, &after)),
        [(Some(0), Some(0), Matched::Replaced)]
    );
    // One of the same kind goes first.
    let more = [after[0].clone(), before[0].clone()];
    assert_eq!(
        found(&pairs(&before, &more)),
        [
            (None, Some(0), Matched::OnlyAfter),
            (Some(0), Some(1), Matched::Same)
        ]
    );
    let idle = [lock("cond", None, &[(&[3, 2], 1.0)])];
    assert_eq!(pairs(&before, &idle).len(), 2);
}

#[test]
fn two_as_likely_are_ambiguous() {
    let before = [lock("mutex", None, &[(&[1, 2], 1.0)])];
    let after = [
        lock("mutex", None, &[(&[1, 3], 1.0)]),
        lock("mutex", None, &[(&[1, 4], 1.0)]),
    ];
    let pairs = pairs(&before, &after);
    assert!(pairs.iter().any(|pair| pair.before.is_some() && pair.ambiguous));
}

fn any_lock() -> impl Strategy<Value = Item> {
    let chain = prop::collection::vec(0_u64..6, 1..4);
    let kind = prop::sample::select(vec!["mutex", "rwlock", "cond"]);
    let symbol = prop::option::of(prop::sample::select(vec!["a", "b"]));
    (kind, symbol, prop::collection::vec((chain, 0.1_f64..10.0), 1..4)).prop_map(|(kind, symbol, waiters)| {
        let waiters: Vec<(&[u64], f64)> = waiters
            .iter()
            .map(|(chain, weight)| (chain.as_slice(), *weight))
            .collect();
        lock(kind, symbol, &waiters)
    })
}

proptest! {
    #[test]
    fn each_is_paired_once(
        before in prop::collection::vec(any_lock(), 0..8),
        after in prop::collection::vec(any_lock(), 0..8),
    ) {
        let pairs = pairs(&before, &after);
        let mut left: Vec<usize> = pairs.iter().filter_map(|pair| pair.before).collect();
        let mut right: Vec<usize> = pairs.iter().filter_map(|pair| pair.after).collect();
        left.sort_unstable();
        right.sort_unstable();
        prop_assert_eq!(left, (0..before.len()).collect::<Vec<_>>());
        prop_assert_eq!(right, (0..after.len()).collect::<Vec<_>>());
        for pair in &pairs {
            prop_assert!((0.0..=1.0).contains(&pair.likeness));
            if let (Some(one), Some(two)) = (pair.before, pair.after) {
                prop_assert_eq!(before[one].kind != after[two].kind, pair.matched == Matched::Replaced);
            }
        }
    }

    #[test]
    fn a_run_matches_itself(items in prop::collection::vec(any_lock(), 0..8)) {
        for pair in pairs(&items, &items) {
            prop_assert!(pair.before.is_some() && pair.after.is_some());
            let (one, two) = (&items[pair.before.unwrap()], &items[pair.after.unwrap()]);
            prop_assert!(likeness(one, two) > 0.99, "{one:?} {two:?}");
        }
    }
}
