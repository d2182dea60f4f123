//! gdb as the truth about stacks: every physical frame of every thread of a process, read while it is stopped.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use super::build::tool;

/// Stops the process `STOPS` times and reads all threads the last time. Frames that were inlined, and those that gdb infers of
/// tail calls, are no frames of the stack. Go's runtime has functions that never return, under which it leaves whatever was there:
/// its own tracebacks end at them, and the debugger's must.
const SCRIPT: &str = "
import gdb, time
BOTTOMS = ['runtime.' + name for name in ('goexit', 'mcall', 'morestack', 'mstart', 'rt0_go', 'systemstack_switch')]
BOTTOMS += [name + '.abi0' for name in BOTTOMS]
for stop in range(STOPS):
    gdb.execute('attach %d' % PID)
    if stop < STOPS - 1:
        gdb.execute('detach')
        time.sleep(0.3)
for thread in gdb.selected_inferior().threads():
    thread.switch()
    pcs = []
    try:
        frame = gdb.newest_frame()
        while frame is not None and frame.is_valid() and len(pcs) < 1000:
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                pcs.append('%x' % frame.pc())
            if frame.name() in BOTTOMS: break
            frame = frame.older()
    except gdb.error as why:
        print('GAVE UP', why)
    print('THREAD', thread.ptid[1] or thread.ptid[0], *pcs)
gdb.execute('detach')
";

/// Program counters by thread, leaf first.
pub(crate) type Stacks = BTreeMap<u32, Vec<u64>>;

/// Stops the process so many times, for some milliseconds each: its waits end and begin anew.
pub(crate) fn stacks(pid: u32, stops: u32) -> Stacks {
    let file = tempfile::Builder::new().suffix(".py").tempfile().unwrap();
    fs::write(file.path(), SCRIPT).unwrap();
    let mut command = Command::new(tool("gdb").expect("gdb is required before"));
    command.args(["-nx", "-batch"]);
    for setting in [
        "set debuginfod enabled off",
        "set backtrace past-main on",
        "set backtrace past-entry on",
        "set auto-load off",
        &format!("python PID, STOPS = {pid}, {stops}"),
    ] {
        command.args(["-iex", setting]);
    }
    let output = command.arg("-x").arg(file.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let thread = |line: &str| {
        let mut words = line.strip_prefix("THREAD ")?.split_whitespace();
        let tid = words.next()?.parse().ok()?;
        Some((
            tid,
            words.filter_map(|w| u64::from_str_radix(w, 16).ok()).collect(),
        ))
    };
    let threads: Stacks = text.lines().filter_map(thread).collect();
    assert!(
        !threads.is_empty(),
        "gdb says nothing of {pid}:\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    threads
}

/// What lies at code addresses of a live process.
pub(crate) struct Code {
    memory: fs::File,
    /// (start, end, path) of executable mappings.
    maps: Vec<(u64, u64, String)>,
}

impl Code {
    pub(crate) fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let map = |line: &str| {
            let fields: Vec<_> = line.splitn(6, ' ').collect();
            let (start, end) = fields.first()?.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let path = fields.get(5).map_or("", |path| path.trim()).to_owned();
            fields
                .get(1)?
                .contains('x')
                .then_some((hex(start)?, hex(end)?, path))
        };
        Self {
            memory: fs::File::open(format!("/proc/{pid}/mem")).unwrap(),
            maps: text.lines().filter_map(map).collect(),
        }
    }

    /// Path of the file that the code is of; None for code made at run time, and for what is no code.
    pub(crate) fn file(&self, address: u64) -> Option<&str> {
        let map = self.maps.iter().find(|map| (map.0..map.1).contains(&address))?;
        (map.2.starts_with('/') || map.2 == "[vdso]").then_some(map.2.as_str())
    }

    /// Whether this is `mov $15, %rax; syscall`, what a signal handler returns to.
    pub(crate) fn is_sigreturn(&self, address: u64) -> bool {
        let mut code = [0u8; 9];
        self.memory.read_exact_at(&mut code, address).is_ok() && code == *b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05"
    }

    /// Whether a call stands before the address: only then can it be one that a call returns to.
    pub(crate) fn follows_call(&self, address: u64) -> bool {
        let mut before = [0u8; 8];
        if self.memory.read_exact_at(&mut before, address - 8).is_err() {
            return false;
        }
        // `call rel32`.
        if before[3] == 0xe8 {
            return true;
        }
        // `call r/m`: opcode ff, register field 2, and as many bytes as its addressing takes.
        (2..=7).any(|length| {
            let code = &before[8 - length..];
            let (mode, rm) = (code[1] >> 6, code[1] & 7);
            let sib = usize::from(mode != 3 && rm == 4);
            let displacement = match (mode, rm) {
                (1, _) => 1,
                (2, _) | (0, 5) => 4,
                (0, 4) if code.get(2).is_some_and(|sib| sib & 7 == 5) => 4,
                _ => 0,
            };
            code[0] == 0xff && code[1] >> 3 & 7 == 2 && 2 + sib + displacement == length
        })
    }
}
