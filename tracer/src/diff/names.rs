//! Functions and locks by names that a rebuild keeps: without hashes, numbers of clones and closures, addresses and lines.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::report::{
    frames::{basename, is_app},
    model::StackFrame,
};

/// Longest name that is looked at.
const NAME_MAX: usize = 1024;
/// Frames of a stack that are looked at.
const FRAMES_MAX: usize = 128;
/// What compilers append, followed by a number.
const NUMBERED: [&str; 5] = [".llvm.", ".isra.", ".part.", ".constprop.", ".lto_priv."];
/// What compilers append, followed by nothing, or more of the kind.
const BARE: [&str; 2] = [".cold", ".cfi"];
/// What linkers and demanglers append, followed by anything.
const OPEN: [&str; 2] = [" [clone", "@@"];

/// Functions that are kept by name.
const SHOWN_MAX: usize = 8;

/// A stack as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The application's nearest functions, the nearest first; of all, when none is the application's.
    pub functions: Vec<String>,
    /// All of these, hashed.
    pub hashes: Vec<u64>,
    /// Of the whole chain.
    pub hash: u64,
    /// The nearest has no name: only a place in its file, which a rebuild moves.
    pub nameless: bool,
}

impl Chain {
    /// Of frames, leaf first.
    #[must_use]
    pub fn of(frames: &[StackFrame]) -> Self {
        let frames = frames.get(..frames.len().min(FRAMES_MAX)).unwrap_or(frames);
        let own: Vec<&StackFrame> = frames.iter().filter(|frame| is_app(frame)).collect();
        let chosen: Vec<&StackFrame> = if own.is_empty() {
            frames.iter().collect()
        } else {
            own
        };
        let mut functions: Vec<String> = chosen.iter().map(|frame| name(frame)).collect();
        // Recursion to another depth is the same code.
        functions.dedup();
        let hash = hash(&functions);
        let hashes = functions.iter().map(hash_one).collect();
        functions.truncate(SHOWN_MAX);
        Self {
            nameless: chosen.first().is_some_and(|frame| frame.function.is_none()),
            functions,
            hashes,
            hash,
        }
    }
}

fn hash(functions: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    functions.hash(&mut hasher);
    hasher.finish()
}

fn hash_one(function: &String) -> u64 {
    hash(std::slice::from_ref(function))
}

fn name(frame: &StackFrame) -> String {
    let module = || frame.module.as_deref().map_or("?", basename);
    match (&frame.function, frame.offset) {
        (Some(function), _) => stable(function),
        (None, Some(offset)) => format!("{}+{offset:#x}", head(module())),
        (None, None) => head(module()).to_owned(),
    }
}

fn head(text: &str) -> &str {
    let end = text.char_indices().nth(NAME_MAX).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text)
}

/// A function's name as any build of the same source has it.
#[must_use]
pub fn stable(name: &str) -> String {
    let mut name = head(name);
    let follows = |what: &str, goes_on: &dyn Fn(char) -> bool, at_end: bool| {
        let (at, _) = name.match_indices(what).find(|&(at, _)| {
            let after = name.get(at + what.len()..).unwrap_or_default();
            // Not at its start: that is a name of its own.
            at > 0 && after.chars().next().map_or(at_end, goes_on)
        })?;
        Some(at)
    };
    let numbered = NUMBERED
        .iter()
        .map(|clone| follows(clone, &|c| c.is_ascii_digit(), false));
    let bare = BARE.iter().map(|clone| follows(clone, &|c| c == '.', true));
    let open = OPEN.iter().map(|clone| follows(clone, &|_| true, true));
    if let Some(at) = numbered.chain(bare).chain(open).flatten().min() {
        name = name.get(..at).unwrap_or(name);
    }
    without_numbers(without_hash(name))
}

/// Without Rust's `::h` and sixteen hex digits.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path,
        _ => name,
    }
}

/// Without the numbers of closures, lambdas and crates, which go by their order: `{closure#3}`, `{lambda(int)#2}`, `f.func2.1`,
/// `core[1a2b3c]::`.
fn without_numbers(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        if let Some(after) = rest.strip_prefix('#') {
            out.push('#');
            rest = after.get(digits(after)..).unwrap_or_default();
        } else if let Some(after) = rest.strip_prefix(".func").filter(|after| digits(after) > 0) {
            // Go: closures within closures are `.func1.2`.
            out.push_str(".func");
            rest = after.get(digits(after)..).unwrap_or_default();
            while let Some(inner) = rest.strip_prefix('.').filter(|inner| digits(inner) > 0) {
                rest = inner.get(digits(inner)..).unwrap_or_default();
            }
        } else if let Some((hash, after)) = rest
            .strip_prefix('[')
            .and_then(|after| after.split_once(']'))
            .filter(|(hash, after)| {
                after.starts_with("::")
                    && hash.len() >= 8
                    && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        {
            debug_assert!(!hash.is_empty());
            rest = after;
        } else {
            out.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

/// The symbol that a lock is named by; None when its name only says where memory came from or who waited.
#[must_use]
pub fn symbol(name: &str) -> Option<String> {
    const DESCRIBED: [&str; 8] = [
        "heap",
        "memory",
        "thread's stack",
        "shared ",
        "taken in ",
        "channels in ",
        "select in ",
        "runtime threads",
    ];
    if name.is_empty()
        || name.contains(", waited for in ")
        || DESCRIBED.iter().any(|word| name.starts_with(word))
    {
        return None;
    }
    // A member of a global, or of a file's data: its place moves.
    (!name.contains("+0x")).then(|| stable(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(function: Option<&str>, module: &str, line: u32, offset: u64) -> StackFrame {
        StackFrame {
            function: function.map(str::to_owned),
            module: Some(module.to_owned()),
            file: Some("/src/x.c".to_owned()),
            line: Some(line),
            inlined: false,
            address: format!("{:#x}", 0x55d0_0000_0000_u64 + offset),
            offset: Some(offset),
        }
    }

    #[test]
    fn what_a_rebuild_changes_is_left_out() {
        let same = [
            ("db::get::h0123456789abcdef", "db::get"),
            ("db::get::{{closure}}::hfedcba9876543210", "db::get::{{closure}}"),
            ("db::get::{closure#3}", "db::get::{closure#}"),
            ("flush.isra.0", "flush"),
            ("flush.part.2.cold", "flush"),
            ("flush(int) [clone .constprop.0]", "flush(int)"),
            ("run.llvm.8237498273", "run"),
            ("main.serve.func2.1", "main.serve.func"),
            (
                "run()::{lambda(int)#2}::operator()",
                "run()::{lambda(int)#}::operator()",
            ),
            ("app[1a2b3c4d5e6f7081]::run", "app::run"),
            ("main.Map[go.shape.int].Get", "main.Map[go.shape.int].Get"),
            ("h::happy", "h::happy"),
            (".cold", ".cold"),
            ("main.coldStart", "main.coldStart"),
            ("x.part.Sum", "x.part.Sum"),
        ];
        for (name, expected) in same {
            assert_eq!(stable(name), expected);
        }
    }

    #[test]
    fn lines_and_addresses_are_no_part_of_a_chain() {
        let one = [
            frame(Some("__lll_lock_wait"), "/lib/libc.so.6", 1, 9),
            frame(Some("get"), "/srv/a", 10, 4),
            frame(Some("walk"), "/srv/a", 11, 4),
            frame(Some("walk"), "/srv/a", 11, 4),
            frame(Some("main"), "/srv/a", 12, 4),
        ];
        let other = [
            frame(Some("get"), "/srv/b", 97, 8),
            frame(Some("walk"), "/srv/b", 98, 8),
            frame(Some("main"), "/srv/b", 99, 8),
        ];
        assert_eq!(Chain::of(&one), Chain::of(&other));
        assert_eq!(Chain::of(&one).functions, ["get", "walk", "main"]);
        let stripped = Chain::of(&[frame(None, "/srv/a", 0, 0x40)]);
        assert_eq!(
            (stripped.functions, stripped.nameless),
            (vec!["a+0x40".to_owned()], true)
        );
        assert!(Chain::of(&[]).functions.is_empty());
    }

    #[test]
    fn symbols_are_told_from_descriptions() {
        assert_eq!(symbol("table_lock").as_deref(), Some("table_lock"));
        for described in [
            "heap, waited for in get",
            "memory",
            "shards+0x40",
            "taken in run",
            "a.so+0x10, waited for in f",
            "",
        ] {
            assert_eq!(symbol(described), None, "{described}");
        }
    }

    proptest! {
        #[test]
        fn any_name_has_a_stable_form_that_stays(name in "\\PC{0,60}") {
            let once = stable(&name);
            prop_assert!(once.len() <= name.len());
            prop_assert_eq!(stable(&once), once);
        }

        #[test]
        fn a_hash_makes_no_difference(path in "[a-z]{1,8}(::[a-z]{1,8}){0,3}", hash in "[0-9a-f]{16}") {
            prop_assert_eq!(stable(&format!("{path}::h{hash}")), stable(&path));
        }
    }
}
