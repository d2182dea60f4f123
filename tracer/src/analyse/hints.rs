//! What the target's owner can do so that more of what the report shows has names.
//!
//! Only said when frames of the stacks shown lack one, and when something would help.

use std::collections::BTreeMap;

use crate::report::{
    model::{Hint, StackFrame, Target},
    units::counted,
};

/// CPython's loop over bytecode: whose Python function it runs is not in its name.
const PYTHON_LOOP: &str = "_PyEval_EvalFrameDefault";
/// V8's way into a function that it interprets.
const NODE_LOOP: &str = "Builtins_InterpreterEntryTrampoline";

/// How far the frames shown of one process have names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Code that a runtime compiled, without a name.
    unnamed: u64,
    /// The same with one.
    named: u64,
    /// Frames of an interpreter, which stand for functions that cannot be seen.
    interpreted: u64,
    /// The minor version of CPython, from its file's name.
    python: Option<u32>,
    /// The runtime wrote a map.
    pub mapped: bool,
}

impl Naming {
    /// Counts a stack's frames.
    pub fn add(&mut self, frames: &[StackFrame]) {
        for frame in frames {
            match (&frame.module, frame.function.as_deref()) {
                (None, None) => self.unnamed += 1,
                (None, Some(_)) => self.named += 1,
                (Some(module), Some(PYTHON_LOOP)) => {
                    self.interpreted += 1;
                    self.python = self.python.or_else(|| python_minor(module));
                }
                (Some(_), Some(NODE_LOOP)) => self.interpreted += 1,
                _ => {}
            }
        }
    }
}

/// 12 of `/usr/bin/python3.12` and of `libpython3.12.so.1.0`.
fn python_minor(path: &str) -> Option<u32> {
    let file = path.rsplit('/').next()?;
    let (_, rest) = file.split_once("python3.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

/// The hints for these processes.
#[must_use]
pub fn hints(targets: &[Target], naming: &BTreeMap<u32, Naming>) -> Vec<Hint> {
    let hint = |target: &Target| {
        let (frames, text) = hint(target, naming.get(&target.pid)?)?;
        Some(Hint {
            pid: target.pid,
            runtime: target.runtime.clone(),
            text,
            frames,
        })
    };
    targets.iter().filter_map(hint).collect()
}

/// Go programs whose goroutines are not in the report, and why.
pub fn unread_go(targets: &[Target], refused: &BTreeMap<u32, String>) -> Vec<Hint> {
    let hint = |(&pid, why): (&u32, &String)| {
        let target = targets.iter().find(|target| target.pid == pid)?;
        Some(Hint {
            pid,
            runtime: target.runtime.clone(),
            text: format!("goroutines were not read: {why}"),
            frames: 0,
        })
    };
    refused.iter().filter_map(hint).collect()
}

fn hint(target: &Target, naming: &Naming) -> Option<(u64, String)> {
    let Naming {
        unnamed,
        named,
        interpreted,
        python,
        mapped,
    } = *naming;
    let (frames, language, remedy) = match target.runtime.as_str() {
        "node" if !mapped && unnamed + interpreted > 0 => {
            let flag = if interpreted > 0 {
                " --interpreted-frames-native-stack"
            } else {
                ""
            };
            let remedy = format!("start node with --perf-basic-prof{flag}");
            (unnamed + interpreted, "JavaScript", remedy)
        }
        "jvm" if unnamed > 0 => {
            let when = if mapped {
                " again, they are newer than its map"
            } else {
                " while tracing"
            };
            let remedy = format!("run jcmd {} Compiler.perfmap{when}", target.pid);
            (unnamed, "compiled Java", remedy)
        }
        "python" if named == 0 && interpreted > 0 => {
            let remedy = if python.is_some_and(|minor| minor < 12) {
                "Python 3.12 or newer names them with -X perf"
            } else {
                "start python with -X perf"
            };
            (interpreted, "Python", remedy.to_owned())
        }
        "jvm" | "node" | "python" => return None,
        _ if unnamed > 0 && !mapped => {
            let remedy = format!("have the runtime write /tmp/perf-{}.map, as for perf", target.pid);
            (unnamed, "generated code", remedy)
        }
        _ => return None,
    };
    let text = format!(
        "{} of {language} without a name: {remedy}",
        counted(frames, "frame")
    );
    Some((frames, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn frame(function: Option<&str>, module: Option<&str>) -> StackFrame {
        StackFrame {
            function: function.map(str::to_owned),
            module: module.map(str::to_owned),
            file: None,
            line: None,
            inlined: false,
            address: "0x1".to_owned(),
            offset: None,
        }
    }

    fn told(runtime: &str, mapped: bool, frames: &[(Option<&str>, Option<&str>)]) -> Option<String> {
        let mut target = sample::contended().targets.remove(0);
        target.runtime = runtime.to_owned();
        let mut naming = Naming::default();
        let frames: Vec<_> = frames
            .iter()
            .map(|&(function, module)| frame(function, module))
            .collect();
        naming.add(&frames);
        naming.mapped = mapped;
        let naming = BTreeMap::from([(target.pid, naming)]);
        hints(&[target], &naming).pop().map(|hint| hint.text)
    }

    #[test]
    fn a_hint_for_each_runtime_and_none_where_nothing_lacks() {
        let (jit, file) = ((None, None), (Some("main"), Some("/srv/app")));
        let loop_of = |module| (Some(PYTHON_LOOP), Some(module));
        let node = (Some(NODE_LOOP), Some("/usr/bin/node"));
        let cases = [
            (
                "node",
                false,
                vec![jit, jit, file],
                Some("2 frames of JavaScript without a name: start node with --perf-basic-prof"),
            ),
            (
                "node",
                false,
                vec![jit, node],
                Some(
                    "2 frames of JavaScript without a name: start node with --perf-basic-prof --interpreted-frames-native-stack",
                ),
            ),
            ("node", false, vec![file], None),
            ("node", true, vec![jit, node], None),
            (
                "jvm",
                false,
                vec![jit],
                Some("1 frame of compiled Java without a name: run jcmd 4242 Compiler.perfmap while tracing"),
            ),
            (
                "jvm",
                true,
                vec![jit],
                Some(
                    "1 frame of compiled Java without a name: run jcmd 4242 Compiler.perfmap again, they are newer than its map",
                ),
            ),
            ("jvm", true, vec![file], None),
            (
                "python",
                false,
                vec![loop_of("/usr/bin/python3.11")],
                Some("1 frame of Python without a name: Python 3.12 or newer names them with -X perf"),
            ),
            (
                "python",
                false,
                vec![loop_of("/lib/libpython3.12.so.1.0")],
                Some("1 frame of Python without a name: start python with -X perf"),
            ),
            (
                "python",
                true,
                vec![(Some("sell"), None), loop_of("/usr/bin/python3.13")],
                None,
            ),
            ("native", false, vec![file], None),
            (
                "native",
                false,
                vec![jit],
                Some(
                    "1 frame of generated code without a name: have the runtime write /tmp/perf-4242.map, as for perf",
                ),
            ),
        ];
        for (runtime, mapped, frames, wanted) in cases {
            assert_eq!(
                told(runtime, mapped, &frames).as_deref(),
                wanted,
                "{runtime} {mapped} {frames:?}"
            );
        }
    }
}
