//! One birth, one death: what they change in the table and in the rows.

use std::collections::BTreeMap;

use super::births::Source;
use super::{Death, FdTable, Live, MAX_CALLS, MAX_LIVE, MAX_ROWS, Origin, Row, RowKey, SPLIT_ROWS};
use crate::aggregate::ages::Ages;
use crate::aggregate::go_starts::AskerId;
use crate::aggregate::series::Series;
use crate::report::model::FdKind;

impl FdTable {
    pub(super) fn birth(
        &mut self,
        fd: i32,
        ts_ns: u64,
        key: RowKey,
        source: Source,
        call: Option<i64>,
        over: bool,
    ) {
        if fd < 0 {
            return;
        }
        self.timeline.begin(ts_ns);
        self.candidates.remove(&fd);
        let (kind, sure, noted) = match source {
            Source::Made(kind) => (kind, true, None),
            Source::Guess(kind) => (kind, false, None),
            Source::CopyOf(of) => self
                .live
                .get(&of)
                .map_or((FdKind::Other, false, None), |of| (of.kind, of.sure, of.noted)),
        };
        if let Some(old) = self.live.remove(&fd) {
            if old.origin == Origin::Seed && self.seeded.is_some_and(|(_, ended_ns)| ts_ns <= ended_ns) {
                // The first scan saw this very one.
                let row = &mut self.rows[old.row as usize];
                row.series.unseeded();
                uncount(&mut row.kinds, old.kind);
                self.total.unseeded();
            } else {
                // Only dup2 and dup3 return a number that is in use; otherwise its end was missed.
                self.bury(&old, ts_ns, if over { Death::Seen } else { Death::Unseen });
            }
        }
        let origin = if key == RowKey::Unseen {
            Origin::Scan
        } else {
            Origin::Event
        };
        self.insert(
            fd,
            Live {
                row: 0,
                origin,
                birth_ns: ts_ns,
                kind,
                sure,
                noted,
            },
            key,
            call,
        );
    }

    pub(super) fn insert(&mut self, fd: i32, mut live: Live, key: RowKey, call: Option<i64>) {
        if live.origin == Origin::Scan {
            self.unseen_births += 1;
        } else {
            self.opened += 1;
        }
        if self.live.len() >= MAX_LIVE {
            self.set_incomplete("more descriptors than are kept");
            return;
        }
        live.row = self.row(key);
        let row = &mut self.rows[live.row as usize];
        row.series.born();
        if let Some(sum) = row.sum.and_then(|sum| self.sums.all.get_mut(sum as usize)) {
            sum.series.born();
        }
        *row.kinds.entry(live.kind).or_default() += 1;
        if let Some(call) = call {
            if let Some(known) = row.calls.iter_mut().find(|known| known.0 == call) {
                known.1 += 1;
            } else if row.calls.len() < MAX_CALLS {
                row.calls.push((call, 1));
            }
        }
        self.total.born();
        self.live.insert(fd, live);
    }

    pub(super) fn death(&mut self, fd: i32, ts_ns: u64) {
        self.candidates.remove(&fd);
        if let Some(old) = self.live.remove(&fd) {
            self.bury(&old, ts_ns, Death::Seen);
        }
    }

    pub(super) fn bury(&mut self, old: &Live, ts_ns: u64, how: Death) {
        match how {
            Death::Seen => self.closed += 1,
            Death::Unseen => self.unseen_deaths += 1,
        }
        let row = &mut self.rows[old.row as usize];
        row.series.died();
        let mut sum = row.sum.and_then(|sum| self.sums.all.get_mut(sum as usize));
        if let Some(sum) = &mut sum {
            sum.series.died();
        }
        self.total.died();
        if old.origin == Origin::Seed {
            let since_ns = ts_ns.saturating_sub(self.timeline.start_ns().unwrap_or(ts_ns));
            self.before_closed.entry(old.kind).or_default().add(since_ns);
        } else {
            let age = ts_ns.saturating_sub(old.birth_ns);
            row.deaths.add(age);
            if let Some(sum) = sum {
                sum.deaths.add(age);
            }
        }
    }

    pub(super) fn row(&mut self, key: RowKey) -> u32 {
        if let Some(&row) = self.by_key.get(&key) {
            return row;
        }
        if let RowKey::Stack(stack, asker) = key
            && asker != AskerId::NONE
            && self.rows.len() >= SPLIT_ROWS
            && self.sums.has(stack)
        {
            return self.row(RowKey::Others(stack));
        }
        if self.rows.len() >= MAX_ROWS && matches!(key, RowKey::Stack(..) | RowKey::Others(_)) {
            self.folded += 1;
            return self.row(RowKey::Folded);
        }
        let row = self.rows.len() as u32;
        self.rows.push(Row {
            key,
            sum: None,
            series: Series::new(self.timeline.len()),
            kinds: BTreeMap::new(),
            calls: Vec::new(),
            deaths: Ages::default(),
        });
        self.by_key.insert(key, row);
        self.join_sum(row);
        row
    }
}

pub(super) fn uncount(kinds: &mut BTreeMap<FdKind, u64>, kind: FdKind) {
    if let Some(number) = kinds.get_mut(&kind) {
        *number -= 1;
        if *number == 0 {
            kinds.remove(&kind);
        }
    }
}
