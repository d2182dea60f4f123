//! From futex words and stacks to locks: rows of one lock are put together, and the lock is named.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::wire::go_site;

use super::{
    go_locks, go_parks,
    names::Names,
    owners::is_plain,
    rules::{Class, Identity, classify},
    waiting::Sleeper,
};
use crate::{
    aggregate::{
        go_locks::GoLocks,
        holds::{Account, Doing, Holds},
        waits::{Key, Row, Waits},
    },
    go::locks::LockLayout,
    report::{
        frames::app_function,
        hist::hist,
        model::{Holder, Lock, LockKind, Reason, StackFrame, Waiter, WakerRow},
    },
    stacks::{AddressKind, StackId},
};

/// Waiters and wakers listed for each lock.
const SIDES_MAX: usize = 32;
/// Offset of the last word slept on in a `pthread_cond_t`.
const CONDITION_WORDS: u64 = 44;
/// Locks listed; the smallest are left out first.
const LOCKS_MAX: usize = 512;
/// Channels told apart, and rows of channels and selects listed: they take no room from locks.
const CHANNELS_MAX: usize = 128;
const CHANNEL_ROWS_MAX: usize = 256;

/// What makes two rows rows of one lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Group {
    Word {
        tgid: u32,
        kind: LockKind,
        base: u64,
    },
    Code {
        tgid: u32,
        kind: LockKind,
        acquiring: String,
        caller: String,
    },
    Process {
        tgid: u32,
        kind: LockKind,
    },
}

/// The report's locks, and what findings need besides.
#[derive(Debug, Default)]
pub struct Locks {
    /// Longest total wait first.
    pub locks: Vec<Lock>,
    /// Who used it, by [`Lock::id`].
    pub users: FxHashMap<String, Users>,
    /// Which lock a futex word belongs to.
    words: FxHashMap<(u32, u64), String>,
    /// Which lock a group is.
    groups: BTreeMap<Group, String>,
    /// Locks left out.
    pub left_out: u64,
}

/// Threads at a lock.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// Those that waited.
    pub waiters: FxHashSet<u32>,
    /// Those that ended waits.
    pub wakers: FxHashSet<u32>,
    /// Time waited inside the window: a wait may have begun before it.
    pub inside_ns: u64,
}

impl Locks {
    /// The lock that a word belongs to.
    #[must_use]
    pub fn of_word(&self, tgid: u32, uaddr: u64) -> Option<&str> {
        self.words.get(&(tgid, uaddr)).map(String::as_str)
    }

    /// The lock that a thread sleeps for now: one without a finished wait is added.
    pub fn slept_on(&mut self, sleeper: &Sleeper, class: &Class, names: &mut Names<'_>) -> String {
        let key = Key {
            tgid: sleeper.pid,
            reason: Reason::Futex,
            uaddr: sleeper.uaddr.unwrap_or_default(),
            pi: sleeper.pi,
            stack: sleeper.stack,
            kstack: -1,
        };
        if let (Identity::Word(_), Some(id)) = (class.identity, self.of_word(key.tgid, key.uaddr)) {
            return id.to_owned();
        }
        let row = Row::default();
        let member = Member {
            key,
            row: &row,
            class: *class,
            covered_ns: None,
        };
        let group = match (
            self.near(&key, class),
            group(&member, &FxHashMap::default(), names),
        ) {
            (Some(near), _) => near,
            (None, group) => group,
        };
        if let Some(id) = self.groups.get(&group) {
            return id.clone();
        }
        self.add(build(group, &[member], names))
    }

    /// The object of several words that this one is a word of.
    fn near(&self, key: &Key, class: &Class) -> Option<Group> {
        let Identity::Word(span) = class.identity else {
            return None;
        };
        let is_near = |group: &&Group| match group {
            Group::Word { tgid, kind, base } => {
                (*tgid, *kind) == (key.tgid, class.kind) && base.abs_diff(key.uaddr) <= span
            }
            Group::Code { .. } | Group::Process { .. } => false,
        };
        self.groups.keys().find(is_near).cloned()
    }

    /// Adds one as the last; its id.
    fn add(&mut self, (group, mut lock, row, words): Built) -> String {
        let id = format!("l{}", self.locks.len() + 1);
        lock.id.clone_from(&id);
        let users = Users {
            waiters: row.tids.into_iter().collect(),
            wakers: row.waker_tids.into_iter().collect(),
            inside_ns: row.inside_ns,
        };
        self.users.insert(id.clone(), users);
        self.words
            .extend(words.into_iter().map(|word| (word, id.clone())));
        self.groups.insert(group, id.clone());
        self.locks.push(lock);
        id
    }
}

/// A lock, the sum of its rows, and its words.
type Built = (Group, Lock, Row, Vec<(u32, u64)>);

#[derive(Clone, Copy)]
struct Member<'a> {
    key: Key,
    row: &'a Row,
    class: Class,
    /// How much of the window was covered, where that was not all of it.
    covered_ns: Option<u64>,
}

/// Waits of goroutines, and what is known of their programs.
#[derive(Clone, Copy)]
pub struct Go<'a> {
    /// The waits.
    pub waits: &'a GoLocks,
    /// Layouts of locks by process.
    pub layouts: &'a FxHashMap<u32, LockLayout>,
    /// Why goroutines park, by number, by process.
    pub reasons: &'a FxHashMap<u32, Vec<String>>,
    /// For how long waits for locks were seen, and all others, where that was not the whole window.
    pub covered_ns: [Option<u64>; 2],
    /// The window.
    pub window_ns: u64,
}

/// Puts the futex waits, if any are to be, and those of goroutines together. `held` has who held what, unless what was seen has gaps;
/// `is_go` tells which processes are Go programs.
pub fn locks(
    waits: Option<&Waits>,
    go: Go<'_>,
    held: Option<&Holds>,
    names: &mut Names<'_>,
    is_go: impl Fn(u32) -> bool,
) -> Locks {
    let mut members: Vec<Member<'_>> = waits
        .into_iter()
        .flat_map(Waits::rows)
        .filter(|(key, _)| key.reason == Reason::Futex)
        .map(|(key, row)| Member {
            key: *key,
            row,
            class: classify(names.frames(key.stack), key.pi, is_go(key.tgid)),
            covered_ns: None,
        })
        .collect();
    adopt(&mut members);
    members.extend(goroutines(go, names));
    members.sort_by_key(|member| member.key);
    let bases = bases(&members);
    let mut groups: BTreeMap<Group, Vec<Member<'_>>> = BTreeMap::new();
    for member in members {
        let group = group(&member, &bases, names);
        groups.entry(group).or_default().push(member);
    }
    let mut built: Vec<Built> = groups
        .into_iter()
        .map(|(group, members)| {
            let mut built = build(group, &members, names);
            if let Some(held) = held {
                add_holds(&mut built, &members, (held, go.window_ns), names);
            }
            built
        })
        .collect();
    // What was seen for a part of the window is as long as it was in that part: to be put in order, not to be told.
    let whole_ns = |lock: &Lock| match lock.covered_ns {
        Some(covered_ns) => lock.wait.total_ns as f64 * go.window_ns as f64 / covered_ns.max(1) as f64,
        None => lock.wait.total_ns as f64,
    };
    built.sort_by(|(_, a, ..), (_, b, ..)| {
        let longest = whole_ns(b).total_cmp(&whole_ns(a));
        let channels_last = is_of_channels(a.kind).cmp(&is_of_channels(b.kind));
        a.idle.cmp(&b.idle).then(longest).then(channels_last)
    });
    let mut room = [LOCKS_MAX, CHANNEL_ROWS_MAX];
    let all = built.len();
    built.retain(|(_, lock, ..)| {
        let left = &mut room[usize::from(is_of_channels(lock.kind))];
        let fits = *left > 0;
        *left = left.saturating_sub(1);
        fits
    });
    let mut result = Locks {
        left_out: (all - built.len()) as u64,
        ..Locks::default()
    };
    for mut one in built {
        one.1.slices = one.2.slices.report(go.window_ns);
        result.add(one);
    }
    result
}

/// The waits of goroutines as those of threads at the lock's first word.
fn goroutines<'a>(go: Go<'a>, names: &mut Names<'_>) -> Vec<Member<'a>> {
    let unknown = LockLayout::default();
    let member = |(key, row): (&crate::aggregate::go_locks::Key, &'a Row)| {
        let (class, uaddr) = if key.site == go_site::PARK {
            let reasons = go.reasons.get(&key.tgid)?;
            (go_parks::classify(key, row, reasons, names)?, key.address)
        } else {
            let layout = go.layouts.get(&key.tgid).unwrap_or(&unknown);
            go_locks::classify(names.frames(key.stack), key.site, key.address, layout)
        };
        let member = Member {
            key: Key {
                tgid: key.tgid,
                reason: Reason::Futex,
                uaddr,
                pi: false,
                stack: key.stack,
                kstack: -1,
            },
            row,
            class,
            covered_ns: go.covered_ns[usize::from(key.site == go_site::PARK)],
        };
        Some((key.address, member))
    };
    let mut members: Vec<(u64, Member<'a>)> = go.waits.rows().filter_map(member).collect();
    // A wait without a stack is what others on the same word are; that for channels is told by its reason.
    let known: FxHashMap<(u32, u64), (Class, u64)> = members
        .iter()
        .filter(|(_, member)| member.class.frame.is_some())
        .map(|(word, member)| ((member.key.tgid, *word), (member.class, member.key.uaddr)))
        .collect();
    for (word, member) in members
        .iter_mut()
        .filter(|(word, member)| member.class.frame.is_none() && *word != 0)
    {
        if let Some(&(class, uaddr)) = known.get(&(member.key.tgid, *word)) {
            member.class = Class { frame: None, ..class };
            member.key.uaddr = uaddr;
        }
    }
    let mut members: Vec<Member<'a>> = members.into_iter().map(|(_, member)| member).collect();
    fold_channels(&mut members);
    members
}

const fn is_of_channels(kind: LockKind) -> bool {
    matches!(kind, LockKind::GoChan | LockKind::GoSelect)
}

/// Channels beyond those waited for longest are told by where they are waited for.
fn fold_channels(members: &mut [Member<'_>]) {
    let is_channel = |member: &Member<'_>| {
        is_of_channels(member.class.kind) && matches!(member.class.identity, Identity::Word(_))
    };
    let mut totals: FxHashMap<(u32, u64), u64> = FxHashMap::default();
    for member in members.iter().filter(|member| is_channel(member)) {
        *totals.entry((member.key.tgid, member.key.uaddr)).or_default() += member.row.wait.total();
    }
    if totals.len() <= CHANNELS_MAX {
        return;
    }
    let mut longest: Vec<((u32, u64), u64)> = totals.into_iter().collect();
    longest.sort_unstable_by_key(|&(channel, total)| (std::cmp::Reverse(total), channel));
    let apart: FxHashSet<(u32, u64)> = longest
        .iter()
        .take(CHANNELS_MAX)
        .map(|(channel, _)| *channel)
        .collect();
    for member in members.iter_mut().filter(|member| is_channel(member)) {
        if !apart.contains(&(member.key.tgid, member.key.uaddr)) {
            member.class.identity = Identity::Code;
        }
    }
}

/// A wait whose stack says nothing (lost, cut short) is what other waits on the same word are.
fn adopt(members: &mut [Member<'_>]) {
    let known: FxHashMap<(u32, u64), Class> = members
        .iter()
        .filter(|member| member.class.frame.is_some() && matches!(member.class.identity, Identity::Word(_)))
        .map(|member| ((member.key.tgid, member.key.uaddr), member.class))
        .collect();
    for member in members.iter_mut().filter(|member| member.class.frame.is_none()) {
        if let Some(class) = known.get(&(member.key.tgid, member.key.uaddr)) {
            member.class = Class {
                frame: None,
                ..*class
            };
        }
    }
}

/// First word of the object that each word belongs to: words of one kind within the object's size are one object's.
fn bases(members: &[Member<'_>]) -> FxHashMap<(u32, LockKind, u64), u64> {
    let mut words: Vec<(u32, LockKind, u64, u64)> = members
        .iter()
        .filter_map(|member| match member.class.identity {
            Identity::Word(span) => Some((member.key.tgid, member.class.kind, member.key.uaddr, span)),
            Identity::Code | Identity::Process => None,
        })
        .collect();
    words.sort_unstable();
    let mut bases = FxHashMap::default();
    let mut object: Option<(u32, LockKind, u64)> = None;
    for (tgid, kind, uaddr, span) in words {
        let base = match object {
            Some((t, k, base)) if t == tgid && k == kind && uaddr - base <= span => base,
            _ => uaddr,
        };
        object = Some((tgid, kind, base));
        bases.insert((tgid, kind, uaddr), base);
    }
    bases
}

fn group(member: &Member<'_>, bases: &FxHashMap<(u32, LockKind, u64), u64>, names: &mut Names<'_>) -> Group {
    let (tgid, kind) = (member.key.tgid, member.class.kind);
    match member.class.identity {
        Identity::Word(_) => {
            let base = bases
                .get(&(tgid, kind, member.key.uaddr))
                .copied()
                .unwrap_or(member.key.uaddr);
            Group::Word { tgid, kind, base }
        }
        Identity::Process => Group::Process { tgid, kind },
        Identity::Code => {
            let frames = names.frames(member.key.stack);
            let at = member.class.frame.unwrap_or(0);
            Group::Code {
                tgid,
                kind,
                acquiring: name_of(frames.get(at)),
                caller: name_of(app_function(frames.get(at + 1..).unwrap_or_default())),
            }
        }
    }
}

fn name_of(frame: Option<&StackFrame>) -> String {
    frame
        .and_then(|frame| frame.function.clone())
        .unwrap_or_else(|| "code without a name".into())
}

fn build(group: Group, members: &[Member<'_>], names: &mut Names<'_>) -> Built {
    let mut sum = Row::default();
    let mut waiters: FxHashMap<StackId, Waiter> = FxHashMap::default();
    for member in members {
        sum.merge(member.row);
        let waiter = waiters.entry(member.key.stack).or_insert_with(|| Waiter {
            stack: None,
            waits: 0,
            total_ns: 0,
            max_ns: 0,
        });
        waiter.waits += member.row.wait.count();
        waiter.total_ns += member.row.wait.total();
        waiter.max_ns = waiter.max_ns.max(member.row.wait.max());
    }
    let mut waiters: Vec<(StackId, Waiter)> = waiters.into_iter().collect();
    waiters.sort_by(|a, b| (b.1.total_ns, a.0).cmp(&(a.1.total_ns, b.0)));
    let waiters: Vec<Waiter> = waiters
        .into_iter()
        .take(SIDES_MAX)
        .map(|(stack, waiter)| Waiter {
            stack: names.key(stack),
            ..waiter
        })
        .collect();
    let mut wakers: Vec<((StackId, u32), u64)> =
        sum.wakers.iter().map(|(&waker, &wakes)| (waker, wakes)).collect();
    wakers.sort_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    let wakers = wakers
        .into_iter()
        .take(SIDES_MAX)
        .map(|((stack, pid), wakes)| WakerRow {
            stack: names.key(stack),
            pid,
            wakes,
        })
        .collect();
    let first = members.first();
    let (tgid, kind, address, name) = match &group {
        Group::Word { tgid, kind, base } => (
            *tgid,
            *kind,
            Some(*base),
            Some(name_word(*tgid, *base, first.copied(), names)),
        ),
        Group::Code {
            tgid, kind, caller, ..
        } => {
            let name = match kind {
                LockKind::GoChan => format!("channels in {caller}"),
                LockKind::GoSelect => format!("select in {caller}"),
                _ => format!("taken in {caller}"),
            };
            (*tgid, *kind, None, Some(name))
        }
        Group::Process { tgid, kind } => {
            let name = match kind {
                LockKind::Gil => Some("the interpreter lock".to_owned()),
                LockKind::RuntimeIdle => Some("runtime threads without work".to_owned()),
                _ => None,
            };
            (*tgid, *kind, None, name)
        }
    };
    let words = members
        .iter()
        .filter(|member| matches!(member.class.identity, Identity::Word(_)))
        .map(|member| (tgid, member.key.uaddr))
        .collect();
    let lock = Lock {
        id: String::new(),
        pid: tgid,
        address: address.map(|address| format!("{address:#x}")),
        name,
        kind,
        idle: members.iter().all(|member| member.class.idle),
        waits: sum.wait.count(),
        wait: hist(&sum.wait),
        run_queue: hist(&sum.run_queue),
        outcomes: sum.outcomes(),
        waiters,
        wakers,
        holders: Vec::new(),
        hold: None,
        utilisation: None,
        covered_ns: first.and_then(|first| first.covered_ns),
        slices: None,
    };
    (group, lock, sum, words)
}

/// Places of holders told of one lock.
const HOLDERS_MAX: usize = 16;

/// What its holders did, and how much of the time it was taken: of locks that those who wait for them also release. What one side alone
/// releases is an event, not a lock.
fn add_holds(
    (_, lock, row, _): &mut Built,
    members: &[Member<'_>],
    (held, window_ns): (&Holds, u64),
    names: &mut Names<'_>,
) {
    // Of one that many may hold together the first to come is not the last to go. What goroutines hold passes on without a wake-up.
    let whole = match lock.kind {
        LockKind::Mutex | LockKind::Pi => true,
        LockKind::Rwlock => false,
        _ => return,
    };
    let takes_turns = row.tids.meets(&row.waker_tids);
    let plain =
        |member: &Member<'_>, names: &mut Names<'_>| is_plain(&member.class, names.frames(member.key.stack));
    if !takes_turns || !members.iter().any(|member| plain(member, names)) {
        return;
    }
    let mut words: Vec<(u32, u64)> = members
        .iter()
        .map(|member| (member.key.tgid, member.key.uaddr))
        .collect();
    words.sort_unstable();
    words.dedup();
    let mut sum: Option<Account> = None;
    for account in words.into_iter().filter_map(|word| held.of(word)) {
        match &mut sum {
            Some(sum) => sum.merge(&account),
            None => sum = Some(account),
        }
    }
    let Some(sum) = sum else { return };
    lock.utilisation = Some((sum.taken_ns() as f64 / window_ns.max(1) as f64).min(1.0));
    if !whole || sum.hold.count() == 0 {
        return;
    }
    lock.hold = Some(hist(&sum.hold));
    let mut places: Vec<_> = sum.places.into_iter().collect();
    places.sort_by_key(|&(place, (ns, _))| (std::cmp::Reverse(ns), place));
    lock.holders = places
        .into_iter()
        .take(HOLDERS_MAX)
        .map(|((doing, stack), (total_ns, holder))| {
            let (state, reason) = match doing {
                Doing::Running => ("running", None),
                Doing::Runnable => ("runnable", None),
                Doing::Blocked(reason) => ("blocked", Some(reason)),
            };
            Holder {
                stack: names.key(stack),
                tid: holder,
                total_ns,
                state: state.to_owned(),
                reason,
            }
        })
        .collect();
}

/// A global by its symbol, else the mapping and offset, else where memory came from and who waited first.
fn name_word(tgid: u32, address: u64, member: Option<Member<'_>>, names: &mut Names<'_>) -> String {
    let stack = member.map(|member| member.key.stack);
    // Words inside an object of several: the object is the lock.
    let inside = match member.map(|member| member.class.identity) {
        // glibc's condition variable: the words slept on lie at 40 and 44.
        Some(Identity::Word(_)) if member.is_some_and(|member| member.class.kind == LockKind::Cond) => {
            CONDITION_WORDS
        }
        Some(Identity::Word(span)) => span,
        _ => 0,
    };
    let waited = |names: &mut Names<'_>| {
        let frames = names.frames(stack.unwrap_or(StackId::NONE));
        app_function(frames)
            .and_then(|frame| frame.function.clone())
            .map_or_else(String::new, |function| format!(", waited for in {function}"))
    };
    match names.describe(tgid, address) {
        AddressKind::Symbol(symbol) if symbol.offset <= inside => symbol.name,
        AddressKind::Symbol(symbol) => format!("{}+{:#x}", symbol.name, symbol.offset),
        AddressKind::Module { path, offset } => format!("{}+{offset:#x}{}", basename(&path), waited(names)),
        AddressKind::Heap => format!("heap{}", waited(names)),
        AddressKind::ThreadStack => format!("thread's stack{}", waited(names)),
        AddressKind::SharedMemory { path, offset } => {
            format!("shared {}+{offset:#x}{}", basename(&path), waited(names))
        }
        AddressKind::Anonymous | AddressKind::Unmapped => format!("memory{}", waited(names)),
    }
}

fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
