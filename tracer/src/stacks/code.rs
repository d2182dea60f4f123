//! Unwind rules from the code itself, where a file gives none.
//!
//! Whatever way a function takes to its return, its stack pointer is then where it was at the beginning, and the registers that it
//! must preserve have been restored. So the instructions from a return address on, followed to the `ret`, say where the caller's
//! address lies and from where its registers are loaded: `add $8, %rsp; pop %rbx; ret` is a rule. One path suffices. Of branches the
//! one not taken is tried first, as compilers put what fails (and does not return) aside. What is not understood ends a path: a
//! jump through a register, a stack pointer that is computed, what looks like the beginning of another function. The result is still a
//! guess, as code may follow a call that never returns; who uses it checks what it leads to.

use rustc_hash::FxHashSet;

use super::instructions::{Flow, Origin, Place, State, step};
use super::row::{RBP, RSP, Row, Rule};

/// Instructions followed, on all paths together.
const MAX_STEPS: u32 = 400;
/// The same on the way from a function's beginning.
const MAX_STEPS_FROM_START: u32 = 2000;
/// Branches that are still to be tried.
const MAX_BRANCHES: usize = 32;
/// A frame larger than this is a mistake.
const MAX_FRAME: i64 = 1 << 20;

/// Ways on from an address, of which one is followed at a time.
struct Ways {
    rest: Vec<State>,
    seen: FxHashSet<u64>,
}

impl Ways {
    fn from(at: u64, entered: bool) -> Self {
        let state = State {
            at,
            sp: Place { base: RSP, by: 0 },
            registers: [Origin::Same; 16],
            entered,
        };
        Self {
            rest: vec![state],
            seen: FxHashSet::default(),
        }
    }

    /// Follows one instruction, or begins another way where that one ends without a return. None: no way is left.
    fn step(&mut self, fetch: &mut impl FnMut(u64) -> Vec<u8>) -> Option<Flow> {
        let state = self.rest.last_mut()?;
        let new = self.seen.insert(state.at);
        match new.then(|| step(state, &fetch(state.at))).flatten() {
            Some(Flow::Branch(to)) => {
                let taken = State { at: to, ..*state };
                if self.rest.len() < MAX_BRANCHES {
                    // Tried when the way straight on fails.
                    self.rest.insert(self.rest.len() - 1, taken);
                }
            }
            Some(flow) => return Some(flow),
            None => drop(self.rest.pop()),
        }
        Some(Flow::On)
    }
}

/// Rules at an address, by the code from there on. `fetch` gives the bytes at an address, up to `MAX_LENGTH` or fewer.
pub(super) fn derive(start: u64, mut fetch: impl FnMut(u64) -> Vec<u8>) -> Option<Row> {
    let mut ways = Ways::from(start, false);
    for _ in 0..MAX_STEPS {
        match ways.step(&mut fetch)? {
            Flow::On | Flow::Branch(_) => {}
            Flow::Return => return row(ways.rest.last()?),
            // Only where the way led straight to it.
            Flow::Bottom if ways.rest.len() == 1 && ways.seen.len() < MAX_BRANCHES => return Some(bottom()),
            Flow::Bottom => drop(ways.rest.pop()),
        }
    }
    None
}

/// Whether a function that begins at `start` comes to `goal`, with jumps into others, and there the caller's frame lies where
/// `cfa` says.
pub(super) fn comes_to(start: u64, goal: u64, cfa: &Rule, mut fetch: impl FnMut(u64) -> Vec<u8>) -> bool {
    let mut ways = Ways::from(start, true);
    for _ in 0..MAX_STEPS_FROM_START {
        if let Some(state) = ways.rest.last()
            && state.at == goal
        {
            return match *cfa {
                Rule::Register(base, by) if state.sp.base == RSP && usize::from(base) == RSP => {
                    state.sp.by.checked_add(i64::from(by)) == Some(8)
                }
                _ => true,
            };
        }
        match ways.step(&mut fetch) {
            None => return false,
            Some(Flow::On | Flow::Branch(_)) => {}
            Some(Flow::Return | Flow::Bottom) => drop(ways.rest.pop()),
        }
    }
    false
}

/// There is no caller.
fn bottom() -> Row {
    Row {
        cfa: Rule::Register(RSP as u8, 0),
        return_address: Rule::Undefined,
        saved: Box::default(),
        signal: false,
    }
}

fn row(state: &State) -> Option<Row> {
    let cfa = state.sp.plus(8);
    if !(0..MAX_FRAME).contains(&state.sp.by) && state.sp.base == RSP {
        return None;
    }
    let rule = |place: Place| Some(Rule::AtRegister(place.base as u8, i32::try_from(place.by).ok()?));
    let mut saved = Vec::new();
    for register in [3, RBP, 12, 13, 14, 15] {
        match state.registers.get(register) {
            Some(Origin::Same) => {}
            Some(&Origin::Slot(place)) => saved.push((register as u8, rule(place)?)),
            _ => saved.push((register as u8, Rule::Undefined)),
        }
    }
    Some(Row {
        cfa: Rule::Register(cfa.base as u8, i32::try_from(cfa.by).ok()?),
        return_address: Rule::AtCfa(-8),
        saved: saved.into(),
        signal: false,
    })
}
