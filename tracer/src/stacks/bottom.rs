//! Functions of Go's runtime at which a scheduler's stack ends.
//!
//! Each thread of a Go program has a stack of the scheduler's (`g0`), on which goroutines park, are chosen and are made runnable. The
//! function that came to it from a goroutine's stack is its bottom: what is beyond is another stack, and the frame pointer found there
//! is the goroutine's, which may have gone on since. Told by names, which every Go program carries.

use super::pclntab::Pclntab;

/// What is beyond one of these functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bottom {
    /// A goroutine that has been left, and may run elsewhere: never to be followed.
    Left,
    /// A goroutine that waits for this stack, or nothing.
    Last,
}

const FUNCTIONS: [(&str, Bottom); 5] = [
    ("runtime.mcall", Bottom::Left),
    ("runtime.morestack", Bottom::Left),
    ("runtime.systemstack", Bottom::Last),
    ("runtime.mstart", Bottom::Last),
    ("runtime.rt0_go", Bottom::Last),
];
/// Functions kept: there is one of each, and a damaged table may say anything.
const MAX: usize = 4 * FUNCTIONS.len();

/// Where they are in one program.
#[derive(Debug, Default)]
pub(super) struct Bottoms(Vec<(u64, u64, Bottom)>);

impl Bottoms {
    pub(super) fn of(table: &Pclntab) -> Self {
        let mut found = Vec::new();
        table.each_function(|name, start, end| {
            let name = name.strip_suffix(b".abi0").unwrap_or(name);
            let known = FUNCTIONS.iter().find(|(known, _)| known.as_bytes() == name);
            if let Some(&(_, bottom)) = known
                && found.len() < MAX
            {
                found.push((start, end, bottom));
            }
        });
        Self(found)
    }

    /// What is beyond the function that holds an address, if it is one of them.
    pub(super) fn at(&self, vaddr: u64) -> Option<Bottom> {
        let holds = |&&(start, end, _): &&(u64, u64, Bottom)| start <= vaddr && vaddr < end;
        self.0.iter().find(holds).map(|&(.., bottom)| bottom)
    }
}
