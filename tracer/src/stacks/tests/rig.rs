//! Compiles and starts a program, and takes its threads' registers.

use crate::testing::skip;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_ebpf::wire::Regs;

use crate::stacks::memory;

/// A started program, killed when dropped.
pub(super) struct Program {
    pub(super) child: Child,
    /// The addresses that it printed.
    pub(super) addresses: Vec<u64>,
    _folder: TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Program {
    /// Compiles `source` and starts it. None, aloud, where there is no compiler for it.
    pub(super) fn start(compiler: &str, source: &str, options: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let input = folder
            .path()
            .join(if compiler == "g++" { "truth.cpp" } else { "truth.c" });
        let output = folder.path().join("truth");
        std::fs::write(&input, source).unwrap();
        let mut command = Command::new(compiler);
        command
            .args(options)
            .arg("-pthread")
            .arg("-o")
            .arg(&output)
            .arg(&input);
        let built = command.output().ok().filter(|o| o.status.success());
        if built.is_none() {
            skip(&format!("`{compiler} {options:?}` does not work here"));
            return None;
        }
        let mut child = Command::new(&output).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = |w: &str| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok();
        let addresses = line.split_whitespace().filter_map(address).collect();
        // "ready" is said just before blocking.
        std::thread::sleep(Duration::from_millis(200));
        Some(Self {
            child,
            addresses,
            _folder: folder,
        })
    }

    pub(super) fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// Registers of all threads by tid, with the top of their stacks.
    pub(super) fn threads(&self, copy: usize) -> BTreeMap<u32, (Regs, Vec<u8>)> {
        threads(self.tgid(), copy)
    }
}

pub(super) fn threads(tgid: u32, copy: usize) -> BTreeMap<u32, (Regs, Vec<u8>)> {
    let tasks = std::fs::read_dir(format!("/proc/{tgid}/task")).unwrap();
    let tids = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid: u32| Some((tid, registers(tgid, tid, copy)?)))
        .collect()
}

/// The same without the leader, which may be a zombie, and without copies.
pub(super) fn threads_but_first(tgid: u32) -> BTreeMap<u32, (Regs, Vec<u8>)> {
    let tids = crate::proc::maps::other_threads(tgid);
    tids.into_iter()
        .filter_map(|tid| Some((tid, registers(tgid, tid, 0)?)))
        .collect()
}

/// The stack from `sp` on, page by page up to the first that cannot be read, as the probe copies it.
pub(super) fn copy_stack(tgid: u32, sp: u64, copy: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < copy {
        let at = sp + bytes.len() as u64;
        let len = (4096 - at % 4096).min((copy - bytes.len()) as u64) as usize;
        let Some(more) = memory::read(tgid, at, len) else {
            break;
        };
        bytes.extend(more);
    }
    bytes
}

/// Stops a thread for a moment: only tests do that.
fn registers(tgid: u32, tid: u32, copy: usize) -> Option<(Regs, Vec<u8>)> {
    let (pid, null) = (tid as libc::pid_t, std::ptr::null_mut::<libc::c_void>());
    // SAFETY: all zeros is a value of these plain structs of integers.
    let mut user: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: ptrace on a child; GETREGS writes into `user`, which outlives the call.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, null, null) < 0 {
            return None;
        }
        libc::ptrace(libc::PTRACE_INTERRUPT, pid, null, null);
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
        libc::ptrace(libc::PTRACE_GETREGS, pid, null, &raw mut user);
    }
    let gp = [
        user.rax, user.rdx, user.rcx, user.rbx, user.rsi, user.rdi, user.rbp, user.rsp, user.r8, user.r9,
        user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
    ];
    let bytes = copy_stack(tgid, user.rsp, copy);
    let fault = if bytes.len() < copy {
        tracer_ebpf::wire::stack_fault::UNREADABLE
    } else {
        tracer_ebpf::wire::stack_fault::NONE
    };
    // SAFETY: ends what was begun above.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, null, null) };
    let regs = Regs {
        ip: user.rip,
        sp: user.rsp,
        gp,
        stack_len: bytes.len() as u32,
        missing: 0,
        reserved: 0,
        fault,
    };
    Some((regs, bytes))
}

/// Program counters of all physical frames of all threads according to gdb; None, aloud, where there is none.
pub(super) fn gdb(tgid: u32) -> Option<BTreeMap<u32, Vec<u64>>> {
    const SCRIPT: &str = "python
for t in gdb.selected_inferior().threads():
  t.switch()
  f = gdb.newest_frame()
  pcs = []
  while f is not None and f.is_valid():
    if f.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME): pcs.append('%x' % f.pc())
    f = f.older()
  print('THREAD', t.ptid[1] or t.ptid[0], *pcs)
end
";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SCRIPT).unwrap();
    let mut command = Command::new("gdb");
    command
        .args([
            "-nx",
            "-batch",
            "-iex",
            "set debuginfod enabled off",
            "-p",
            &tgid.to_string(),
            "-x",
        ])
        .arg(file.path());
    let Ok(output) = command.output() else {
        skip(&"no gdb to compare with");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let threads: BTreeMap<_, _> = text
        .lines()
        .filter_map(|l| {
            let mut words = l.strip_prefix("THREAD ")?.split_whitespace();
            let tid = words.next()?.parse().ok()?;
            Some((
                tid,
                words.filter_map(|w| u64::from_str_radix(w, 16).ok()).collect(),
            ))
        })
        .collect();
    if threads.is_empty() {
        skip(&"gdb cannot attach here");
        return None;
    }
    Some(threads)
}
