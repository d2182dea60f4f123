//! Who made which goroutine, and who asked for what one of them does: the path of makers, nearest first.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::GoStart;

use crate::stacks::StackId;

/// Goroutines remembered, the ended ones too, as what they made asks for them: about 20 MB. Beyond, the oldest are forgotten.
const STARTS_MAX: usize = 1 << 18;
/// Makers of a path.
const STEPS: usize = 4;
/// Different paths; what comes by further ones has none, counted.
const ASKERS_MAX: usize = 16_384;

/// Number of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskerId(pub u32);

impl AskerId {
    /// Nobody is known.
    pub const NONE: Self = Self(0);
}

/// Who asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    /// Where each maker was at its `go` statement, nearest first; [`StackId::NONE`] after the last.
    steps: [StackId; STEPS],
    /// The `go` statement, where that is all that is known; else [`StackId::NONE`].
    pub creator: StackId,
}

impl Asker {
    /// Where each maker was, nearest first.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> {
        let known = |stack: &StackId| *stack != StackId::NONE;
        self.steps.into_iter().take_while(known)
    }
}

/// How a goroutine was made.
#[derive(Clone, Copy, Debug)]
struct Start {
    parent: u64,
    stack: StackId,
}

/// All goroutines that were seen to be made.
#[derive(Debug, Default)]
pub struct GoStarts {
    starts: FxHashMap<(u32, u64), Start>,
    /// In the order of their making.
    order: VecDeque<(u32, u64)>,
    askers: Vec<Asker>,
    by_asker: FxHashMap<Asker, AskerId>,
    /// Seen in all.
    seen: u64,
    folded: u64,
}

impl GoStarts {
    /// A goroutine was made, by one that was there.
    pub fn on_start(&mut self, record: &GoStart, stack: StackId) {
        self.seen += 1;
        let key = (record.header.tgid, record.goid);
        let start = Start {
            parent: record.parent_goid,
            stack,
        };
        // Go gives no number twice.
        if self.starts.insert(key, start).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > STARTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.starts.remove(&oldest);
        }
    }

    /// The process runs another program: numbers begin anew.
    pub fn on_exec(&mut self, tgid: u32) {
        if self.order.iter().any(|(of, _)| *of == tgid) {
            self.order.retain(|(of, _)| *of != tgid);
            self.starts.retain(|(of, _), _| *of != tgid);
        }
    }

    /// Who asked for what a goroutine does; its creator is what its own descriptor says.
    pub fn asker(&mut self, tgid: u32, goid: u64, creator: StackId) -> AskerId {
        if goid == 0 {
            return AskerId::NONE;
        }
        let mut asker = self.path(tgid, goid);
        if asker.steps[0] == StackId::NONE {
            asker.creator = creator;
        }
        if asker == Asker::default() {
            return AskerId::NONE;
        }
        if let Some(&id) = self.by_asker.get(&asker) {
            return id;
        }
        if self.askers.len() >= ASKERS_MAX {
            self.folded += 1;
            return AskerId::NONE;
        }
        self.askers.push(asker);
        let id = AskerId(self.askers.len() as u32);
        self.by_asker.insert(asker, id);
        id
    }

    /// Where the makers of a goroutine were.
    #[must_use]
    pub fn path(&self, tgid: u32, goid: u64) -> Asker {
        let mut asker = Asker::default();
        let mut at = goid;
        for step in &mut asker.steps {
            let Some(start) = self.starts.get(&(tgid, at)) else {
                break;
            };
            if start.stack == StackId::NONE {
                break;
            }
            (*step, at) = (start.stack, start.parent);
        }
        asker
    }

    /// What a number stands for.
    #[must_use]
    pub fn get(&self, id: AskerId) -> Asker {
        let at = (id.0 as usize).checked_sub(1);
        at.and_then(|at| self.askers.get(at)).copied().unwrap_or_default()
    }

    /// Goroutines seen to be made.
    #[must_use]
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// Births whose path found no room.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::wire::{Header, kind};

    use super::*;

    fn start(tgid: u32, goid: u64, parent_goid: u64) -> GoStart {
        GoStart {
            header: Header {
                kind: kind::GO_START,
                class: 0,
                tgid,
                tid: tgid,
                cpu: 0,
                ts_ns: 20,
            },
            goid,
            parent_goid,
            asked_ns: 10,
            stack: 0,
        }
    }

    /// What its own descriptor says.
    const CREATOR: StackId = StackId(97);

    fn path(starts: &mut GoStarts, tgid: u32, goid: u64) -> (Vec<StackId>, StackId) {
        let id = starts.asker(tgid, goid, CREATOR);
        let asker = starts.get(id);
        (asker.stacks().collect(), asker.creator)
    }

    #[test]
    fn the_path_goes_through_makers_that_have_ended() {
        let mut starts = GoStarts::default();
        starts.on_start(&start(1, 23, 7), StackId(5));
        starts.on_start(&start(1, 97, 23), StackId(6));
        assert_eq!(
            path(&mut starts, 1, 97),
            (vec![StackId(6), StackId(5)], StackId::NONE)
        );
        assert_eq!(path(&mut starts, 1, 23), (vec![StackId(5)], StackId::NONE));
        // The same number in another process, and one that was not seen: no more than what its descriptor says.
        assert_eq!(path(&mut starts, 2, 97), (vec![], CREATOR));
        assert_eq!(path(&mut starts, 1, 7), (vec![], CREATOR));
        assert_eq!(starts.asker(1, 0, CREATOR), AskerId::NONE);
        assert_eq!(starts.asker(1, 7, StackId::NONE), AskerId::NONE);
        assert_eq!(starts.asker(1, 23, StackId(1)), starts.asker(1, 23, StackId(2)));
    }

    #[test]
    fn a_maker_without_a_stack_ends_the_path() {
        let mut starts = GoStarts::default();
        starts.on_start(&start(1, 23, 7), StackId::NONE);
        starts.on_start(&start(1, 97, 23), StackId(6));
        assert_eq!(path(&mut starts, 1, 97), (vec![StackId(6)], StackId::NONE));
        assert_eq!(path(&mut starts, 1, 23), (vec![], CREATOR));
    }

    #[test]
    fn damaged_numbers_make_no_endless_path() {
        let mut starts = GoStarts::default();
        starts.on_start(&start(1, 23, 23), StackId(5));
        assert_eq!(path(&mut starts, 1, 23).0.len(), STEPS);
    }

    #[test]
    fn another_program_has_other_goroutines() {
        let mut starts = GoStarts::default();
        starts.on_start(&start(1, 23, 7), StackId(5));
        starts.on_start(&start(2, 23, 7), StackId(6));
        starts.on_exec(1);
        assert_eq!(path(&mut starts, 1, 23).0, []);
        assert_eq!(path(&mut starts, 2, 23).0, [StackId(6)]);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut starts = GoStarts::default();
        for goid in 1..=STARTS_MAX as u64 + 97 {
            starts.on_start(&start(1, goid, 0), StackId(5));
        }
        assert_eq!(
            (starts.starts.len(), starts.order.len()),
            (STARTS_MAX, STARTS_MAX)
        );
        assert_eq!(path(&mut starts, 1, 97).0, []);
        assert_eq!(path(&mut starts, 1, 98).0, [StackId(5)]);
        assert_eq!(starts.seen(), STARTS_MAX as u64 + 97);
    }

    #[test]
    fn paths_are_bounded() {
        let mut starts = GoStarts::default();
        for creator in 1..=ASKERS_MAX as u32 + 23 {
            starts.asker(1, 1, StackId(creator));
        }
        assert_eq!(starts.folded(), 23);
    }
}
