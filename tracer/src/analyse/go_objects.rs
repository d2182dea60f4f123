//! What goroutines wait on, and with whom they talk: asked of a few of each row, and told for the row.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    go::{
        connections::HttpLoop,
        held_up::LockKind as GoLockKind,
        memory::Memory,
        objects::Objects,
        snapshot::{Goroutine, NO_GROUP, Reader},
    },
    report::model::{GoChannel, GoObject, GoPeer, GoWaitsOn, LockKind},
};

/// Goroutines asked, of one row.
const MAX_ASKED: u64 = 256;
/// Goroutines asked, of all rows.
const MAX_ASKED_IN_ALL: usize = 1 << 16;
/// Objects, and servers, shown of a row.
const MAX_SHOWN: usize = 5;

/// The answers, by row.
#[derive(Debug, Default)]
pub(super) struct Answers {
    rows: FxHashMap<u32, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    asked: u64,
    known: u64,
    never: u64,
    objects: FxHashMap<(LockKind, u64), Found>,
    peers: FxHashMap<(String, String, String), u64>,
    peers_asked: u64,
}

#[derive(Debug, Default)]
struct Found {
    waiters: u64,
    longest_ns: Option<u64>,
    channel: Option<GoChannel>,
}

impl Answers {
    /// Asks some goroutines of each row of the last snapshot.
    pub(super) fn ask<M: Memory>(reader: &Reader<M>, objects: &mut Objects, now_ns: u64) -> Self {
        let mut answers = Self::default();
        let mut counts: FxHashMap<u32, u64> = FxHashMap::default();
        for (_, goroutine) in reader.goroutines() {
            *counts.entry(goroutine.group).or_default() += 1;
        }
        let mut asked: FxHashSet<u64> = FxHashSet::default();
        let mut met: FxHashMap<u32, u64> = FxHashMap::default();
        for (_, goroutine) in reader.goroutines() {
            if goroutine.group == NO_GROUP || asked.len() >= MAX_ASKED_IN_ALL {
                continue;
            }
            let all = counts.get(&goroutine.group).copied().unwrap_or(1);
            let met = met.entry(goroutine.group).or_default();
            *met += 1;
            // As far apart as they can be: neighbours in the runtime's list may be of one age, and do the same.
            let answer = answers.rows.entry(goroutine.group).or_default();
            if all <= MAX_ASKED || *met * MAX_ASKED / all > answer.asked {
                answer.asked += 1;
                asked.insert(goroutine.goid);
            }
        }
        for waiter in objects.channels(reader, |goroutine| asked.contains(&goroutine.goid)) {
            let Some(answer) = answers.rows.get_mut(&waiter.group) else {
                continue;
            };
            answer.known += 1;
            answer.never += u64::from(waiter.channels.is_empty());
            for channel in waiter.channels {
                let found = answer.found(LockKind::GoChan, channel.address);
                found.waiters += 1;
                found.channel = Some(GoChannel {
                    len: channel.len,
                    capacity: channel.capacity,
                    closed: channel.closed,
                    ticks: channel.ticks,
                });
            }
        }
        let wanted = |goroutine: &Goroutine| asked.contains(&goroutine.goid);
        for waiter in objects.held_up(reader, wanted, now_ns).waiters {
            let Some(answer) = answers.rows.get_mut(&waiter.group) else {
                continue;
            };
            answer.known += 1;
            let found = answer.found(kind(waiter.kind), waiter.lock);
            found.waiters += 1;
            let waited = waiter.since_ns.map(|since| now_ns.saturating_sub(since));
            found.longest_ns = found.longest_ns.max(waited);
        }
        for connection in objects.http(reader, |goroutine| asked.contains(&goroutine.goid)) {
            // Of its two goroutines the one that reads stands for the connection.
            if let Some(answer) = answers.rows.get_mut(&connection.group)
                && connection.kind == HttpLoop::Read
            {
                let peer = (connection.scheme, connection.host, connection.proxy);
                *answer.peers.entry(peer).or_default() += 1;
                answer.peers_asked += 1;
            }
        }
        answers
    }

    /// What those of a row wait on.
    pub(super) fn waits_on(&self, group: u32) -> Option<GoWaitsOn> {
        let answer = self.rows.get(&group).filter(|answer| answer.known > 0)?;
        let mut all: Vec<_> = answer.objects.iter().collect();
        all.sort_by_key(|((kind, address), found)| (std::cmp::Reverse(found.waiters), *address, *kind));
        let most = all
            .iter()
            .take(MAX_SHOWN)
            .map(|((kind, address), found)| GoObject {
                kind: *kind,
                address: format!("{address:#x}"),
                waiters: found.waiters,
                longest_ns: found.longest_ns,
                channel: found.channel.clone(),
            });
        Some(GoWaitsOn {
            asked: answer.asked,
            known: answer.known,
            objects: answer.objects.len() as u64,
            never: answer.never,
            ticks: self.ticks(group),
            most: most.collect(),
        })
    }

    /// The servers of a row, and how many connections were asked for theirs.
    pub(super) fn peers(&self, group: u32) -> (Vec<GoPeer>, u64) {
        let Some(answer) = self.rows.get(&group) else {
            return (Vec::new(), 0);
        };
        let mut peers: Vec<GoPeer> = answer
            .peers
            .iter()
            .map(|((scheme, host, proxy), &connections)| GoPeer {
                scheme: scheme.clone(),
                host: host.clone(),
                proxy: Some(proxy.clone()).filter(|proxy| !proxy.is_empty()),
                connections,
            })
            .collect();
        peers.sort_by(|a, b| {
            b.connections
                .cmp(&a.connections)
                .then_with(|| (&a.host, &a.scheme).cmp(&(&b.host, &b.scheme)))
        });
        peers.truncate(MAX_SHOWN);
        (peers, answer.peers_asked)
    }

    /// Whether some of a row wait for a time to come.
    pub(super) fn ticks(&self, group: u32) -> bool {
        self.rows.get(&group).is_some_and(|answer| {
            let mut found = answer.objects.values();
            found.any(|found| found.channel.as_ref().is_some_and(|channel| channel.ticks))
        })
    }
}

impl Answer {
    fn found(&mut self, kind: LockKind, address: u64) -> &mut Found {
        self.objects.entry((kind, address)).or_default()
    }
}

const fn kind(kind: GoLockKind) -> LockKind {
    match kind {
        GoLockKind::Mutex => LockKind::GoMutex,
        GoLockKind::RwRead | GoLockKind::RwWrite => LockKind::GoRwmutex,
        GoLockKind::WaitGroup => LockKind::GoWaitgroup,
        GoLockKind::Cond => LockKind::GoCond,
        GoLockKind::Semaphore => LockKind::Sem,
    }
}
