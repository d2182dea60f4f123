//! Programs in the kernel, by id: to prove that `ctrace` leaves none behind.

use std::collections::BTreeSet;
use std::fs;
use std::mem::size_of_val;
use std::os::fd::{FromRawFd as _, OwnedFd};

use super::{can_trace, until};

/// `BPF_PROG_GET_NEXT_ID` of the bpf system call (`include/uapi/linux/bpf.h`).
const PROG_GET_NEXT_ID: libc::c_long = 11;

/// Ids of all programs loaded in the kernel.
fn loaded() -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    // start_id, next_id, open_flags of `union bpf_attr`
    let mut attr = [0u32; 4];
    loop {
        // SAFETY: attr is as long as we say and outlives the call, which writes only its second word.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_GET_NEXT_ID,
                attr.as_mut_ptr(),
                size_of_val(&attr),
            )
        };
        if result != 0 {
            return ids;
        }
        ids.insert(attr[1]);
        attr[0] = attr[1];
    }
}

/// Ids of the programs that a process holds by descriptors, of the programs themselves or of their links.
pub(crate) fn held_by(pid: u32) -> BTreeSet<u32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let ids = texts.flat_map(|text| {
        text.lines()
            .filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
            .collect::<Vec<u32>>()
    });
    ids.collect()
}

fn held_by_anyone() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.flat_map(held_by).collect()
}

/// Waits until none of these programs is loaded: the kernel frees them a little after their last descriptor.
pub(crate) fn until_gone(programs: &BTreeSet<u32>) {
    until("programs of an ended ctrace are gone from the kernel", || {
        loaded().is_disjoint(programs)
    });
}

/// What was loaded at one moment, to compare with later.
pub(crate) struct Before(BTreeSet<u32>);

impl Before {
    pub(crate) fn now() -> Self {
        Self(loaded())
    }

    /// Waits until every program loaded since then belongs to a living process: what nobody holds and is still
    /// there was left attached.
    pub(crate) fn nothing_left(&self) {
        until("no program is left that nobody holds", || {
            let held = held_by_anyone();
            loaded().difference(&self.0).all(|id| held.contains(id))
        });
    }
}

/// Loads the smallest program there is and leaves it to the descriptor.
fn load_smallest() -> OwnedFd {
    /// `BPF_PROG_LOAD` of the bpf system call, and the program type `BPF_PROG_TYPE_SOCKET_FILTER`.
    const PROG_LOAD: libc::c_long = 5;
    const SOCKET_FILTER: u32 = 1;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    // The first words of `union bpf_attr`: type and number of instructions, their address, the licence's.
    let attr: [u64; 4] = [
        u64::from(SOCKET_FILTER) | (instructions.len() as u64) << 32,
        instructions.as_ptr().addr() as u64,
        license.as_ptr().addr() as u64,
        0,
    ];
    // SAFETY: attr and what it points to outlive the call, which only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, attr.as_ptr(), size_of_val(&attr)) };
    assert!(fd >= 0, "bpf: {}", std::io::Error::last_os_error());
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// The checks above can fail: a program is seen while it is held and not seen afterwards. Otherwise an error of
/// theirs would read as "nothing left".
#[test]
fn held_programs_are_seen() {
    let Some(_turn) = can_trace() else { return };
    let program = load_smallest();
    let held = held_by(std::process::id());
    assert!(
        !held.is_empty() && held.is_subset(&loaded()),
        "held {held:?}, loaded {:?}",
        loaded()
    );
    drop(program);
    until_gone(&held);
}
