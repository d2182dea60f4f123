//! The Go runtime's own account of all goroutines: what SIGQUIT prints under `GOTRACEBACK=system`, or
//! `runtime.Stack`, from Go 1.19 on.

/// One goroutine of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goroutine {
    pub(crate) goid: u64,
    /// What it waits for (`chan send`), or else its status (`syscall`, `runnable`, `running`).
    pub(crate) state: String,
    /// Bound to its thread.
    pub(crate) locked: bool,
    /// Innermost first; none where it ran on another thread.
    pub(crate) frames: Vec<Frame>,
    /// Frames that were left out: the runtime prints no more than a hundred.
    pub(crate) elided: Option<Elided>,
    /// The function and the place of the `go` statement; none of the main goroutine.
    pub(crate) created_by: Option<Frame>,
    /// Who executed it; not told before Go 1.21.
    pub(crate) parent_goid: Option<u64>,
}

/// A frame, or the place of a `go` statement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Frame {
    pub(crate) function: String,
    pub(crate) file: String,
    pub(crate) line: u32,
    /// Inlined into the next frame.
    pub(crate) inlined: bool,
}

/// Frames that were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elided {
    /// How many frames come before them.
    pub(crate) after: usize,
    /// Told from Go 1.21 on, where the outermost fifty follow; before, all the rest is left out.
    pub(crate) count: Option<usize>,
}

/// All goroutines of an account, in its order. Whatever else the program or the runtime printed between them is passed
/// over; a goroutine that cannot be read is an error.
pub(crate) fn parse(account: &str) -> Result<Vec<Goroutine>, String> {
    let mut found = Vec::new();
    let mut lines = account.lines().map(|line| line.trim_end_matches('\r'));
    while let Some(line) = lines.next() {
        let Some(mut goroutine) = header(line) else {
            continue;
        };
        let mut body = lines.by_ref().take_while(|line| !line.is_empty());
        read_body(&mut goroutine, &mut body).map_err(|why| format!("goroutine {}: {why}", goroutine.goid))?;
        // A thread's own stack, on which the scheduler and signal handlers run, is printed as the goroutine 0.
        if goroutine.goid != 0 {
            found.push(goroutine);
        }
    }
    Ok(found)
}

/// `goroutine 17 gp=0xc000007c00 m=nil [chan receive, 2 minutes, locked to thread]:`, from Go 1.26 on perhaps with
/// `{label: value}` before the colon, and before Go 1.23 without `gp` and `m`.
fn header(line: &str) -> Option<Goroutine> {
    let (goid, rest) = line.strip_prefix("goroutine ")?.split_once(' ')?;
    let (_, rest) = rest.split_once('[')?;
    let (inside, labels) = rest.split_once(']')?;
    if !labels.ends_with(':') {
        return None;
    }
    let mut words = inside.split(", ");
    let state = words.next()?;
    let state = ["(scan)", "(leaked)"].iter().fold(state, |state, mark| {
        state.strip_suffix(mark).map_or(state, str::trim_end)
    });
    Some(Goroutine {
        goid: goid.parse().ok()?,
        state: state.to_owned(),
        locked: words.any(|word| word == "locked to thread"),
        frames: Vec::new(),
        elided: None,
        created_by: None,
        parent_goid: None,
    })
}

fn read_body<'a>(goroutine: &mut Goroutine, lines: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
    while let Some(line) = lines.next() {
        if line == "\tgoroutine running on other thread; stack unavailable" {
            continue;
        }
        if let Some(elided) = elision(line, goroutine.frames.len()) {
            goroutine.elided = Some(elided);
            continue;
        }
        let mut place = || {
            let line = lines.next().ok_or_else(|| format!("nothing follows {line:?}"))?;
            place(line).ok_or_else(|| format!("no place: {line:?}"))
        };
        if let Some(creator) = line.strip_prefix("created by ") {
            let (name, parent) = match creator.split_once(" in goroutine ") {
                Some((name, goid)) => (name, Some(goid.parse().map_err(|_| line.to_owned())?)),
                None => (creator, None),
            };
            goroutine.parent_goid = parent;
            goroutine.created_by = Some(frame(name, false, place()?));
        } else if let Some((name, inlined)) = call(line) {
            let frame = frame(name, inlined, place()?);
            goroutine.frames.push(frame);
        } else {
            return Err(format!("what is {line:?}?"));
        }
    }
    Ok(())
}

/// `...102 frames elided...`, or `...additional frames elided...` of Go before 1.21.
fn elision(line: &str, after: usize) -> Option<Elided> {
    let what = line.strip_prefix("...")?.strip_suffix(" frames elided...")?;
    let count = what.parse().ok();
    (count.is_some() || what == "additional").then_some(Elided { after, count })
}

/// `main.f(0x1, {0x2?, ...})`, or `main.f(...)` of one that was inlined. Arguments have no parentheses inside.
fn call(line: &str) -> Option<(&str, bool)> {
    let (name, arguments) = line.strip_suffix(')')?.rsplit_once('(')?;
    (!name.is_empty()).then_some((name, arguments == "..."))
}

/// `\t/path/to/file.go:31 +0x1d fp=0xc0 sp=0xc1 pc=0x48`: what comes after the line may be missing.
fn place(line: &str) -> Option<(&str, u32)> {
    let place = line.strip_prefix('\t')?;
    let end = [" +0x", " fp=0x"]
        .iter()
        .filter_map(|mark| place.find(mark))
        .min();
    let (file, line) = place[..end.unwrap_or(place.len())].rsplit_once(':')?;
    Some((file, line.parse().ok()?))
}

fn frame(name: &str, inlined: bool, (file, line): (&str, u32)) -> Frame {
    // The only name that is printed otherwise than it is.
    let function = if name == "panic" { "runtime.gopanic" } else { name };
    Frame {
        function: function.to_owned(),
        file: file.to_owned(),
        line,
        inlined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(function: &str, file: &str, line: u32) -> Frame {
        frame(function, false, (file, line))
    }

    fn inlined(function: &str, file: &str, line: u32) -> Frame {
        frame(function, true, (file, line))
    }

    fn one(account: &str) -> Goroutine {
        let mut all = parse(account).unwrap();
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    /// Go 1.19: neither `gp` nor the creator's number; a frame that begins with its call has no offset.
    #[test]
    fn go_1_19() {
        let found = one("SIGQUIT: quit
PC=0x402ecc m=0 sigcode=0

goroutine 315 [chan receive, locked to thread]:
runtime.gopark(0x0?, 0x0?, 0x0?, 0x0?, 0x0?)
\t/usr/lib/go-1.19/src/runtime/proc.go:363 +0xd6 fp=0xc00002ed50 sp=0xc00002ed30 pc=0x4377f6
main.goCalledFromC(...)
\t/src/cgo.go:58
_cgoexp_d7398d253720_goCalledFromC(0x0?)
\t_cgo_gotypes.go:80 +0x33 fp=0xc0000bfe70 sp=0xc0000bfe50 pc=0x4e1bf3
runtime.systemstack_switch()
\t/usr/lib/go-1.19/src/runtime/asm_amd64.s:459 fp=0xc00017cf58 sp=0xc00017cf50 pc=0x45eda0
panic({0x4f08e0, 0x53b7e0})
\t/usr/lib/go-1.19/src/runtime/panic.go:884 +0x212 fp=0xc00017cf80 sp=0xc00017cf58 pc=0x405d32
main.(*place).stay(0x0?)
\t<autogenerated>:1 +0x2d fp=0xc00017cfa0 sp=0xc00017cf80 pc=0x4f8c2d
created by main.park
\t/src/still.go:31 +0xbe

rax    0xfffffffffffffe00
");
        let runtime = "/usr/lib/go-1.19/src/runtime";
        let wanted = Goroutine {
            goid: 315,
            state: "chan receive".to_owned(),
            locked: true,
            frames: vec![
                at("runtime.gopark", &format!("{runtime}/proc.go"), 363),
                inlined("main.goCalledFromC", "/src/cgo.go", 58),
                at("_cgoexp_d7398d253720_goCalledFromC", "_cgo_gotypes.go", 80),
                at(
                    "runtime.systemstack_switch",
                    &format!("{runtime}/asm_amd64.s"),
                    459,
                ),
                at("runtime.gopanic", &format!("{runtime}/panic.go"), 884),
                at("main.(*place).stay", "<autogenerated>", 1),
            ],
            elided: None,
            created_by: Some(at("main.park", "/src/still.go", 31)),
            parent_goid: None,
        };
        assert_eq!(found, wanted);
    }

    /// Go 1.21 and 1.23: the creator's number; arguments with braces, a path with spaces, type arguments left out.
    #[test]
    fn go_1_21() {
        let found = one("goroutine 388 gp=0xc0001061c0 m=nil [coroutine]:
runtime.coroswitch(0x0?)
\t/go 1.23/src/runtime/coro.go:93 +0x47 fp=0xc000106d50 sp=0xc000106d30 pc=0x46d647
iter.Pull[...].func1.1({0x5301c0?, ...}, {{0x1, 0x2}, _})
\t/go 1.23/src/iter/iter.go:279 +0x53
created by iter.Pull[...] in goroutine 1
\t/go 1.23/src/iter/iter.go:263 +0xa5
");
        assert_eq!((found.goid, &*found.state), (388, "coroutine"));
        assert_eq!(found.frames[0].file, "/go 1.23/src/runtime/coro.go");
        assert_eq!(found.frames[1].function, "iter.Pull[...].func1.1");
        assert!(!found.frames[1].inlined);
        assert_eq!(found.parent_goid, Some(1));
        assert_eq!(found.created_by.unwrap().function, "iter.Pull[...]");
    }

    /// Go 1.27: labels with anything in them; marks on the state.
    #[test]
    fn go_1_27() {
        let goroutines = parse(
            "goroutine 0 gp=0x6acd00 m=0 mp=0x6add00 [idle]:
runtime.futex(0x6ade58, 0x80, 0x0, 0x0, 0x0, 0x0)
\t/go/src/runtime/sys_linux_amd64.s:575 +0x21 fp=0x7ffff7cac030 sp=0x7ffff7cac028 pc=0x48e701

goroutine 7 gp=0xc000007c00 m=nil [chan send (nil chan) (scan), 3 minutes] {job: \"wait: {a}]\", zone: b}:
main.sendNone()
\t/src/still.go:75 +0x1f

goroutine 8 gp=0xc000007d00 m=3 mp=0xc000008000 [running]:
\tgoroutine running on other thread; stack unavailable
created by main.main in goroutine 1
\t/src/main.go:60 +0x1f9

goroutine 9 gp=0xc000007e00 m=nil [select (no cases) (leaked), 12 minutes, locked to thread]:
main.selectNone()
\t/src/still.go:120 +0x11
",
        )
        .unwrap();
        let states: Vec<_> = goroutines
            .iter()
            .map(|g| (g.goid, &*g.state, g.locked, g.frames.len(), g.parent_goid))
            .collect();
        assert_eq!(
            states,
            [
                (7, "chan send (nil chan)", false, 1, None),
                (8, "running", false, 0, Some(1)),
                (9, "select (no cases)", true, 1, None),
            ]
        );
    }

    /// What is left out, and where.
    #[test]
    fn frames_left_out() {
        let frames = |count: usize| "main.dive(0x5)\n\t/src/calls.go:57 +0x7c\n".repeat(count);
        let new = format!(
            "goroutine 4 [chan receive]:\n{}...102 frames elided...\n{}\n",
            frames(50),
            frames(50)
        );
        let new = one(&new);
        let elided = Elided {
            after: 50,
            count: Some(102),
        };
        assert_eq!((new.frames.len(), new.elided), (100, Some(elided)));
        let old = one(&format!(
            "goroutine 4 [chan receive]:\n{}...additional frames elided...\ncreated by main.park\n\t/a.go:3\n",
            frames(100)
        ));
        let elided = Elided {
            after: 100,
            count: None,
        };
        assert_eq!((old.frames.len(), old.elided), (100, Some(elided)));
        assert!(old.created_by.is_some());
    }

    /// Nothing is passed over inside a goroutine.
    #[test]
    fn what_is_not_understood_is_an_error() {
        for bad in [
            "main.f(0x1)",
            "main.f(0x1)\n/src/a.go:3",
            "main.f(0x1)\n\t/src/a.go",
            "runtime: something is wrong",
        ] {
            let account = format!("goroutine 4 [chan receive]:\n{bad}\n");
            assert!(parse(&account).unwrap_err().starts_with("goroutine 4: "), "{bad}");
        }
        assert_eq!(parse("no goroutine at all\n"), Ok(Vec::new()));
    }
}
